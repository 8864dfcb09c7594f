"""A folder of ready-made condition pictures with captions; no photograph is needed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from jdmctl.data.imagefolder import condition_columns, find_metadata
from jdmctl.data.metadata import Row, first_problem, problem_of_file, problem_of_text, read_rows
from jdmctl.data.pictures import read_image, require_fit
from jdmctl.data.rows import ListedRows, name_in


class ConditionFolder:
    """`metadata.jsonl` with {"text": ..., "conditioning_image": "a.png"} a line, as diffusers has it.

    With several controls there is one column for each, such as `conditioning_image_canny`; the
    short name serves where there is only one.
    """

    def __init__(self, path: str | Path, controls: Sequence[str], resolution_px: int) -> None:
        folder = Path(path)
        single = len(controls) == 1

        def column(row: Row, control: str) -> str:
            full = f"conditioning_image_{control}"
            return "conditioning_image" if single and full not in row else full

        def problem_of(row: Row) -> str:
            files = (problem_of_file(row, column(row, control), folder) for control in controls)
            return first_problem((*files, problem_of_text(row)))

        rows = read_rows(find_metadata(folder), problem_of)
        self._folder, self._resolution_px = folder, resolution_px
        self._texts = [row["text"] for row in rows]
        self._files = [{control: folder / row[column(row, control)] for control in controls} for row in rows]

    def __len__(self) -> int:
        return len(self._texts)

    def text(self, index: int) -> str:
        return self._texts[index]

    def shown(self, index: int) -> tuple[str, ...]:
        """Which maps they are."""
        return tuple(name_in(self._folder, file) for file in self._files[index].values())

    def conditions(self, index: int) -> dict[str, Tensor]:
        """Control -> condition [3, H, W] in [0, 1]; raises BadInputError for maps that do not lie over one another."""
        files = self._files[index]
        first, *others = files.values()
        for file in others:
            require_fit(first, file)
        return {control: read_image(file, self._resolution_px) for control, file in files.items()}


def read_maps(folder: Path) -> ListedRows:
    """The rows of such a folder with the columns that its first row has, the first of which stands for the picture.

    Raises BadInputError with all rows that are wrong.
    """
    file = find_metadata(folder)
    columns = condition_columns(file)
    rows = read_rows(
        file,
        lambda row: first_problem((*(problem_of_file(row, key, folder) for key in columns), problem_of_text(row))),
    )
    others = {column: [folder / row[column] for row in rows] for column in columns}
    return ListedRows(folder, others[columns[0]], [row["text"] for row in rows], others)
