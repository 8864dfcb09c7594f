"""A folder of captioned pictures, in the layout of Hugging Face's imagefolder."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from jdmctl.data.metadata import first_problem, problem_of_file, problem_of_text, read_rows
from jdmctl.data.pictures import read_image
from jdmctl.errors import BadInputError


class ImageFolder:
    """`metadata.jsonl` beside the pictures, one {"file_name": "a.png", "text": "a red cube"} a line.

    All rows are checked at once when it is made; a picture is opened only when it is asked for.
    """

    def __init__(self, path: str | Path, resolution_px: int) -> None:
        folder = Path(path)
        rows = read_rows(
            find_metadata(folder),
            lambda row: first_problem((problem_of_file(row, "file_name", folder), problem_of_text(row))),
        )
        self._resolution_px = resolution_px
        self._files = [folder / row["file_name"] for row in rows]
        self._texts = [row["text"] for row in rows]

    def __len__(self) -> int:
        return len(self._files)

    def text(self, index: int) -> str:
        return self._texts[index]

    def image(self, index: int) -> Tensor:
        """[3, H, W] in [0, 1]; raises BadInputError for a picture that cannot be read."""
        return read_image(self._files[index], self._resolution_px)


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
