"""A folder of captioned pictures, in the layout of Hugging Face's imagefolder."""

from __future__ import annotations

import json
from pathlib import Path

from jdmctl.data.formats import CONDITION
from jdmctl.data.metadata import first_problem, problem_of_file, problem_of_text, read_rows
from jdmctl.data.rows import ListedRows, Pictures
from jdmctl.errors import BadInputError


def read_imagefolder(folder: Path) -> ListedRows:
    """`metadata.jsonl` beside the pictures, one {"file_name": "a.png", "text": "a red cube"} a line.

    Columns of condition pictures that the first row has all rows must have. Raises BadInputError with all rows that are
    wrong.
    """
    file = find_metadata(folder)
    conditions = condition_columns(file)
    keys = ("file_name", *conditions)
    rows = read_rows(
        file, lambda row: first_problem((*(problem_of_file(row, key, folder) for key in keys), problem_of_text(row)))
    )
    return ListedRows(
        folder,
        files=[folder / row["file_name"] for row in rows],
        texts=[row["text"] for row in rows],
        others={column: [folder / row[column] for row in rows] for column in conditions},
    )


class ImageFolder(Pictures):
    """The pictures of an imagefolder as centre squares."""

    def __init__(self, path: str | Path, resolution_px: int) -> None:
        super().__init__(read_imagefolder(Path(path)), resolution_px)


def condition_columns(file: Path) -> list[str]:
    """Columns of condition pictures that the first row of a metadata.jsonl has."""
    return [column for column in picture_columns(file) if column != "file_name"]


def picture_columns(file: Path) -> list[str]:
    """Of the first row, those that name pictures.

    None where no such file is, or its first row is not an object: reading the rows tells of that.
    """
    if not file.is_file():
        return []
    with file.open(encoding="utf-8-sig", errors="replace") as lines:
        first = next((line for line in lines if line.strip()), "")
    try:
        row = json.loads(first)
    except (ValueError, RecursionError):
        return []
    columns = row if isinstance(row, dict) else {}
    return [column for column in columns if column == "file_name" or column.startswith(CONDITION)]


def find_metadata(folder: Path) -> Path:
    """The folder's metadata.jsonl; raises BadInputError where there is no such folder or file."""
    if not folder.is_dir():
        raise BadInputError(f"no folder {folder}", hint="check the path")
    path = folder / "metadata.jsonl"
    if not path.is_file():
        raise BadInputError(
            f"{folder} has no metadata.jsonl",
            hint='write one {"file_name": "a.png", "text": "a red cube"} a line',
        )
    return path
