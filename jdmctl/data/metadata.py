"""Lists of samples as files: JSON lines, every row checked, every problem told at once."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from jdmctl.errors import BadInputError

_SHOWN = 20

Row = dict[str, Any]


def read_rows(path: Path, problem_of: Callable[[Row], str], example: str = 'one {"text": "..."} a line') -> list[Row]:
    """The rows of a .jsonl file; `problem_of(row)` says what is wrong with one, "" for nothing.

    Raises:
        BadInputError: with up to 20 of the problems, by line, and their number.
    """
    found: list[tuple[str, Any]] = []
    for number, line in _numbered_lines(path):
        try:
            found.append((f"line {number}", json.loads(line)))
        except (ValueError, RecursionError) as reason:
            found.append((f"line {number}", reason))
    return check_rows(path, found, problem_of, example)


def check_rows(
    path: Path, found: Iterable[tuple[str, Any]], problem_of: Callable[[Row], str], example: str
) -> list[Row]:
    """The rows, each given with where it is. Raises BadInputError as `read_rows` does."""
    rows: list[Row] = []
    problems: list[str] = []
    for where, row in found:
        if isinstance(row, json.JSONDecodeError):
            problem = f"not valid json ({row.msg} at column {row.colno})"
        elif isinstance(row, (ValueError, RecursionError)):  # a number of thousands of digits, or nested as deep
            problem = f"json that cannot be read ({row})"
        else:
            problem = problem_of(row) if isinstance(row, dict) else "not an object {...}"
        if problem:
            problems.append(f"{where}: {problem}")
        else:
            rows.append(row)
    if problems:
        raise problems_error(path, problems, "repair these lines or leave them out")
    if not rows:
        raise BadInputError(f"{path} has no rows", hint=f"write {example}")
    return rows


def read_lines(path: Path) -> list[str]:
    """The lines of a text file that are not blank, without the spaces around them."""
    return [line.strip() for _, line in _numbered_lines(path)]


def problem_of_text(row: Row, column: str = "text") -> str:
    """What is wrong with a row's caption."""
    if column not in row:
        return f'no "{column}"'
    if not isinstance(row[column], str):
        return f'"{column}" is {row[column]!r}, not a string'
    return "" if is_whole(row[column]) else f'"{column}" is {row[column]!r}, which has half a character'


def is_whole(text: str) -> bool:
    """Whether a text can be encoded: json may hold one half of a surrogate pair, as where an emoji was cut."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def problem_of_file(row: Row, column: str, folder: Path) -> str:
    """What is wrong with a row's path, which is relative to the folder."""
    if column not in row:
        return f'no "{column}"'
    if not isinstance(row[column], str):
        return f'"{column}" is {row[column]!r}, not a string'
    return "" if (folder / row[column]).is_file() else f'"{column}": no file {folder / row[column]}'


def first_problem(problems: Iterable[str]) -> str:
    return next(filter(None, problems), "")


def read_text(path: Path) -> str:
    """A text file. Raises BadInputError where there is none, or it is not UTF-8."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as reason:
        raise BadInputError(f"no file {path}", hint="check the path") from reason
    except UnicodeDecodeError as reason:
        raise BadInputError(f"{path} is not UTF-8 text: {reason}", hint="save it as UTF-8") from reason


def problems_error(path: Path | str, problems: list[str], hint: str) -> BadInputError:
    """All problems of a data set in one message, the first twenty in words."""
    return BadInputError(_summary(path, problems), hint=hint)


def _numbered_lines(path: Path) -> Iterable[tuple[int, str]]:
    numbered = enumerate(read_text(path).split("\n"), start=1)  # not splitlines: a caption may hold U+2028
    return [(number, line) for number, line in numbered if line.strip()]


def _summary(path: Path | str, problems: list[str]) -> str:
    count = f"{len(problems)} problem{'s' * (len(problems) > 1)}"
    shown = "".join(f"\n  {problem}" for problem in problems[:_SHOWN])
    rest = len(problems) - _SHOWN
    return f"{path} has {count}:{shown}" + (f"\n  and {rest} more" if rest > 0 else "")
