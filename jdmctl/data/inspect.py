"""A look at a data set before anything is trained on it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from jdmctl.data.conditionfolder import read_maps
from jdmctl.data.formats import open_rows, require_options
from jdmctl.data.meaning import meaning_of
from jdmctl.data.options import ReadOptions
from jdmctl.data.pictures import SMALLEST_PX, read_image, require_fit, size_of
from jdmctl.data.prompts import PromptList
from jdmctl.data.rows import Rows
from jdmctl.errors import BadInputError

_SHOWN_ROWS, _SHOWN_SIZES = 3, 8


def inspect(path: str, options: ReadOptions, format: str = "", num_opened: int = 100) -> dict[str, Any]:
    """What is there: format, counts, captions, sizes, first rows, and what is wrong with the pictures opened.

    `source` is what `--data` would use of it. Captions are looked at in all rows, `num_opened` pictures (0: all) are
    opened whole, evenly spread, and their conditions with them. Raises BadInputError where the data set cannot be read
    at all.
    """
    source, path, name = meaning_of(path, format)
    if source == "prompts":
        prompts = PromptList(path)
        texts = [prompts.text(index) for index in range(len(prompts))]
        found: dict[str, Any] = {"path": path, "format": "prompts", "source": source, "rows": len(texts)}
        return found | {"first": texts[:_SHOWN_ROWS], "problems": [], "warnings": []}
    rows = _rows(path, options, name)
    texts = [rows.text(index) for index in range(len(rows))]
    problems: list[str] = []
    num = min(num_opened or len(rows), len(rows))
    opened = [len(rows) * number // num for number in range(num)]
    sizes: Counter[str] = Counter()
    resized: Counter[str] = Counter()  # column -> conditions of another size than their picture
    for index in opened:
        try:
            height, width = size_of(rows.picture(index))
            sizes[f"{width} x {height}"] += 1
            for column in ("", *rows.conditions):
                read_image(rows.picture(index, column), SMALLEST_PX)
            for column in rows.conditions:
                require_fit(rows.picture(index), rows.picture(index, column))
                resized[column] += size_of(rows.picture(index, column)) != (height, width)
        except BadInputError as problem:
            problems.append(str(problem))
    return {
        "path": path,
        "format": name,
        "source": source,
        "rows": len(rows),
        "shown_per_epoch": sum(rows.repeats(index) for index in range(len(rows))),
        "captions_empty": sum(not text.strip() for text in texts),
        "captions_different": len(set(texts)),
        "conditions": list(rows.conditions),
        "opened": num,
        "sizes": dict(sizes.most_common(_SHOWN_SIZES)),
        "sizes_different": len(sizes),
        "first": texts[:_SHOWN_ROWS],
        "problems": problems,
        "warnings": [
            f"{count} of {num} {column} are of another size than their picture; thin lines fade where they are resized"
            for column, count in resized.items()
            if count
        ],
    }


def _rows(path: str, options: ReadOptions, format: str) -> Rows:
    if format != "maps":
        return open_rows(path, options, format)
    require_options(format, options)
    return read_maps(Path(path))
