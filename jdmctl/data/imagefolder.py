"""A folder of captioned pictures, in the layout of Hugging Face's imagefolder."""

from __future__ import annotations

from pathlib import Path

from jdmctl.data.metadata import first_problem, problem_of_file, problem_of_text, read_rows
from jdmctl.data.rows import ListedRows, Pictures
from jdmctl.errors import BadInputError


def read_imagefolder(folder: Path) -> ListedRows:
    """`metadata.jsonl` beside the pictures, one {"file_name": "a.png", "text": "a red cube"} a line.

    Raises BadInputError with all rows that are wrong.
    """
    rows = read_rows(
        find_metadata(folder),
        lambda row: first_problem((problem_of_file(row, "file_name", folder), problem_of_text(row))),
    )
    return ListedRows([folder / row["file_name"] for row in rows], [row["text"] for row in rows])


class ImageFolder(Pictures):
    """The pictures of an imagefolder as centre squares."""

    def __init__(self, path: str | Path, resolution_px: int) -> None:
        super().__init__(read_imagefolder(Path(path)), resolution_px)


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
