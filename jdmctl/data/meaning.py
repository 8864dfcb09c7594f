"""What `--data PATH` is taken for; `jdmctl data inspect` says the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

from jdmctl.data.formats import CONDITION, find_format
from jdmctl.errors import BadInputError


class Meaning(NamedTuple):
    """In a recipe's words."""

    source: str  # images, conditions or prompts
    path: str
    format: str = ""


def meaning_of(path: str, format: str = "") -> Meaning:
    """A list of prompts, or rows of a format, whose ready-made conditions are taken where they are sure to be.

    A metadata.jsonl means its folder. Raises BadInputError as `find_format` does, and for another list of pictures.
    """
    place = Path(path)
    if format in ("", "imagefolder") and place.name == "metadata.jsonl" and place.is_file():
        path = str(place.parent)
    elif not format and place.suffix in (".txt", ".jsonl"):
        if found := _picture_columns(place):
            raise BadInputError(
                f"{path} lists pictures ({', '.join(found)}), so it is no list of prompts",
                hint="call it metadata.jsonl, beside the pictures, and give their folder; "
                f"for its captions alone: --set data.source=prompts --set data.path={path}",
            )
        return Meaning("prompts", path)
    name = format or find_format(path)
    has_conditions = name == "controlnet" or (name == "imagefolder" and bool(condition_columns(path)))
    return Meaning("conditions" if has_conditions else "images", path, name)


def condition_columns(folder: str) -> list[str]:
    """Columns of condition pictures that the first row of an imagefolder has."""
    return [column for column in _picture_columns(Path(folder, "metadata.jsonl")) if column != "file_name"]


def _picture_columns(file: Path) -> list[str]:
    """None where no such file is, or its first row is not an object: reading the rows tells of that."""
    if not file.is_file():
        return []
    with file.open(encoding="utf-8-sig", errors="replace") as lines:
        first = next((line for line in lines if line.strip()), "")
    try:
        row = json.loads(first)
    except json.JSONDecodeError:
        return []
    columns = row if isinstance(row, dict) else {}
    return [column for column in columns if column == "file_name" or column.startswith(CONDITION)]
