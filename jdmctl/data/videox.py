"""The json list of VideoX-Fun's training scripts, as far as it names pictures."""

from __future__ import annotations

import json
from pathlib import Path

from jdmctl.data.folders import is_shown
from jdmctl.data.formats import CONDITION
from jdmctl.data.metadata import Row, check_rows, first_problem, problem_of_file, problem_of_text, read_text
from jdmctl.data.rows import ListedRows
from jdmctl.errors import BadInputError

_CONTROL = "control_file_path"
_EXAMPLE = '[{"file_path": "train/a.jpg", "text": "a red cube", "type": "image"}]'


def read_videox(path: Path) -> ListedRows:
    """[{"file_path", "text", "type": "image", "control_file_path"}, ...]: the last is the condition, if all have it.

    Paths are absolute or relative to the file's folder; `type` left out is image; other fields are not looked at
    (github.com/aigc-apps/VideoX-Fun, scripts/qwenimage_fun/README_TRAIN.md). `path` is the file, or its folder.
    Raises BadInputError with all rows that are wrong, videos among them.
    """
    file = list_in(path) if path.is_dir() else path
    try:
        listed = json.loads(read_text(file))
    except json.JSONDecodeError as reason:
        raise BadInputError(
            f"{file} line {reason.lineno}: not valid json ({reason.msg})", hint=f"write {_EXAMPLE}"
        ) from reason
    except (ValueError, RecursionError) as reason:
        raise BadInputError(f"{file}: json that cannot be read ({reason})", hint=f"write {_EXAMPLE}") from reason
    if not isinstance(listed, list):
        raise BadInputError(f"{file} holds {type(listed).__name__}, not a list", hint=f"write {_EXAMPLE}")
    has_conditions = any(isinstance(row, dict) and row.get(_CONTROL) for row in listed)

    def problem_of(row: Row) -> str:
        if row.get("type", "image") != "image":
            return f'"type" is {row["type"]!r}: only pictures are read'
        keys = ("file_path", _CONTROL) if has_conditions else ("file_path",)
        return first_problem((*(problem_of_file(row, key, file.parent) for key in keys), problem_of_text(row)))

    rows = check_rows(file, [(f"row {number}", row) for number, row in enumerate(listed, 1)], problem_of, _EXAMPLE)
    return ListedRows(
        file.parent,
        files=[file.parent / row["file_path"] for row in rows],
        texts=[row["text"] for row in rows],
        others={CONDITION: [file.parent / row[_CONTROL] for row in rows]} if has_conditions else {},
    )


def list_in(folder: Path) -> Path:
    """The json list in a folder. Raises BadInputError unless there is exactly one."""
    found = [file for file in sorted(folder.glob("*.json")) if is_shown(file.name) and is_list(file)]
    if len(found) == 1:
        return found[0]
    several = f"{len(found)} of them: " + ", ".join(file.name for file in found)
    raise BadInputError(
        f"{folder} should hold one json list of pictures, and has {several if found else 'none'}",
        hint="give the file itself as data.path" if found else f"write {_EXAMPLE}",
    )


def is_list(file: Path) -> bool:
    """Whether a json file looks like VideoX-Fun's: a list whose beginning names a file_path."""
    with file.open(encoding="utf-8-sig", errors="replace") as stream:
        start = stream.read(4096)
    return start.lstrip().startswith("[") and '"file_path"' in start
