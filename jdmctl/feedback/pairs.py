"""People's choices between two pictures, read from a file, with everything that is wrong with it told at once."""

from __future__ import annotations

import csv
import io
import json
import os
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jdmctl.data.metadata import is_whole
from jdmctl.errors import BadInputError

FIELDS = ("prompt", "image_a", "image_b", "preferred")
LABELS = {"a": 1.0, "b": 0.0, "tie": 0.5, "0": 1.0, "1": 0.0, "0.5": 0.5}  # 0 and 1: which picture is preferred
SPLITS = {"train": False, "held_out": True, "val": True, "validation": True, "test": True}
_SHOWN = 20

Group = str | Path


@dataclass(frozen=True)
class Pair:
    """One choice. `label` is the share of people that prefer picture a: 1, 0, or 0.5 for a tie."""

    prompt: str
    image_a: Path
    image_b: Path
    label: float
    held_out: bool | None = None  # as the file says, if it does
    line: int = 0

    @property
    def key(self) -> tuple[str, frozenset[Path]]:
        """What was compared, whatever the order."""
        return same_prompt(self.prompt), frozenset((self.image_a, self.image_b))


def same_prompt(prompt: str) -> str:
    """Prompts that differ in case or spaces only are one prompt."""
    return " ".join(prompt.lower().split())


def groups(pairs: Sequence[Pair]) -> list[Group]:
    """What is independent of all else, for each pair: its prompt, or of those without one all that share pictures."""
    joined: dict[Path, Path] = {}

    def first(image: Path) -> Path:
        while joined.setdefault(image, image) != image:
            joined[image] = joined[joined[image]]
            image = joined[image]
        return image

    for pair in pairs:
        if not same_prompt(pair.prompt):
            joined[first(pair.image_b)] = first(pair.image_a)
    return [same_prompt(pair.prompt) or first(pair.image_a) for pair in pairs]


def read_pairs(path: str | Path) -> list[Pair]:
    """The pairs of a .jsonl or .csv file with prompt, image_a, image_b and preferred (a, b or tie; also 0, 1, 0.5).

    Pictures are relative to the file. A prompt may be empty: taste in pictures alone. A column `split` with train and
    held_out (or val, test) is kept.

    Raises:
        BadInputError: with up to 20 of all problems and their number: missing columns and files,
            unknown labels, a picture against itself, a prompt in both splits.
    """
    path = Path(path)
    problems: list[str] = []
    pairs: list[Pair] = []
    for line, row in _rows(path):
        pair = row if isinstance(row, str) else _pair(row, path.parent, line)
        if isinstance(pair, str):
            problems.append(f"line {line}: {pair}")
        else:
            pairs.append(pair)
    problems += _split_problems(pairs)
    if problems:
        shown = "".join(f"\n  {problem}" for problem in problems[:_SHOWN])
        rest = f"\n  and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
        count = f"{len(problems)} problem{'s' * (len(problems) > 1)}"
        raise BadInputError(f"{path} has {count}:{shown}{rest}", hint="repair these lines or leave them out")
    if not pairs:
        raise BadInputError(f"{path} has no pairs", hint=f"one {{{', '.join(FIELDS)}}} a line")
    return pairs


def repeated(pairs: Sequence[Pair]) -> tuple[list[tuple[Pair, Pair]], list[tuple[Pair, Pair]]]:
    """(first, later) of comparisons that come again: with the same choice, and with another one."""
    groups: dict[Any, list[Pair]] = defaultdict(list)
    for pair in pairs:
        groups[pair.key].append(pair)
    same: list[tuple[Pair, Pair]] = []
    other: list[tuple[Pair, Pair]] = []
    for first, *later in groups.values():
        for pair in later:
            turned = pair.image_a != first.image_a
            agrees = (1 - pair.label if turned else pair.label) == first.label
            (same if agrees else other).append((first, pair))
    return same, other


def _pair(row: dict[str, Any], folder: Path, line: int) -> Pair | str:
    """The pair of a row, or what is wrong with it."""
    if missing := [name for name in FIELDS if row.get(name) is None or (row[name] == "" and name != "prompt")]:
        return f"no {', '.join(missing)}"
    if None in row:  # where csv puts what is left over
        return "more columns than the first line names: quote a text that holds a comma"
    wrong = []
    if not is_whole(str(row["prompt"])):
        wrong.append(f"prompt {row['prompt']!r} is cut within a letter")
    label = str(row["preferred"]).strip().lower()
    label = label.removesuffix(".0")
    if label not in LABELS:
        wrong.append(f"preferred is {row['preferred']!r}, not a, b or tie")
    split = row.get("split") or None
    if split is not None and not (isinstance(split, str) and split in SPLITS):
        wrong.append(f"split is {split!r}, not train or held_out")
    texts = [row[name] for name in FIELDS[:3]]
    if not all(isinstance(text, str) for text in texts):
        return "; ".join([*wrong, "prompt, image_a and image_b must be strings"])
    image_a, image_b = folder / texts[1], folder / texts[2]
    wrong += [f"no file {image}" for image in (image_a, image_b) if not os.path.isfile(image)]  # however long its name
    if image_a == image_b:
        wrong.append(f"{image_a} against itself")
    if wrong:
        return "; ".join(wrong)
    held_out = SPLITS[split] if split else None
    return Pair(texts[0], image_a, image_b, LABELS[label], held_out, line)


def _split_problems(pairs: Sequence[Pair]) -> list[str]:
    stated = [pair for pair in pairs if pair.held_out is not None]
    if stated and len(stated) < len(pairs):
        return [f"{len(pairs) - len(stated)} of {len(pairs)} pairs have no split, the others do"]
    lines: dict[Group, dict[bool, int]] = defaultdict(dict)
    for pair, group in zip(stated, groups(stated), strict=True):
        lines[group].setdefault(bool(pair.held_out), pair.line)
    return [
        f"line {where[True]}: {_called(group)} is held out, but line {where[False]} trains on it"
        for group, where in lines.items()
        if len(where) == 2
    ]


def _called(group: Group) -> str:
    return f"the prompt {group!r}" if isinstance(group, str) else f"what is compared with {group}"


def _rows(path: Path) -> Iterator[tuple[int, dict[str, Any] | str]]:
    """(line, row), or (line, what is wrong with it)."""
    if path.suffix not in (".jsonl", ".csv"):
        raise BadInputError(f"{path} is no list of pairs", hint="give a .jsonl or .csv file")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as reason:
        raise BadInputError(f"no file {path}", hint="check the path") from reason
    except UnicodeDecodeError as reason:
        raise BadInputError(f"{path} is not UTF-8 text: {reason}", hint="save it as UTF-8") from reason
    if path.suffix == ".csv":
        yield from _csv_rows(text)
        return
    for number, line in enumerate(text.split("\n"), start=1):  # not splitlines: a prompt may hold U+2028
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as reason:
            yield number, f"not valid json ({reason.msg} at column {reason.colno})"
        else:
            yield number, row if isinstance(row, dict) else "not an object {...}"


def _csv_rows(text: str) -> Iterator[tuple[int, dict[str, Any] | str]]:
    """(line that a row begins on, row), or what is wrong with it; nothing more is read after a broken one."""
    reader = csv.DictReader(io.StringIO(text), strict=True)
    line = 1
    try:
        columns = reader.fieldnames or ()
        if missing := [name for name in FIELDS if name not in columns]:
            yield line, f"no column {', '.join(missing)}; found {', '.join(columns) or 'nothing'}"
            return
        line = reader.line_num + 1
        for row in reader:
            yield line, row
            line = reader.line_num + 1
    except csv.Error as reason:
        yield line, f"not valid csv ({reason}): is a quote that it opens not closed?"
