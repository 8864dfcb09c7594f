"""The data set of ControlNet's own tutorial: pictures, each with a ready-made condition."""

from __future__ import annotations

from pathlib import Path

from jdmctl.data.formats import CONDITION
from jdmctl.data.metadata import first_problem, problem_of_file, problem_of_text, read_rows
from jdmctl.data.rows import ListedRows

_EXAMPLE = 'one {"source": "source/0.png", "target": "target/0.png", "prompt": "a red circle"} a line'


def read_controlnet(path: Path) -> ListedRows:
    """`prompt.json`, one {"source": condition, "target": picture, "prompt": caption} a line.

    Paths are relative to the file's folder, as in fill50k (github.com/lllyasviel/ControlNet, tutorial_dataset.py).
    Raises BadInputError with all rows that are wrong.
    """
    file = path / "prompt.json" if path.is_dir() else path
    folder = file.parent
    rows = read_rows(
        file,
        lambda row: first_problem(
            (*(problem_of_file(row, key, folder) for key in ("source", "target")), problem_of_text(row, "prompt"))
        ),
        example=_EXAMPLE,
    )
    return ListedRows(
        folder,
        files=[folder / row["target"] for row in rows],
        texts=[row["prompt"] for row in rows],
        others={CONDITION: [folder / row["source"] for row in rows]},
    )
