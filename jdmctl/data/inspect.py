"""A look at a data set before anything is trained on it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from jdmctl.data.formats import find_format, open_rows
from jdmctl.data.options import ReadOptions
from jdmctl.data.pictures import SMALLEST_PX, read_image, size_of
from jdmctl.data.prompts import PromptList
from jdmctl.errors import BadInputError

_SHOWN_ROWS, _SHOWN_SIZES = 3, 8


def inspect(path: str, options: ReadOptions, format: str = "", num_opened: int = 100) -> dict[str, Any]:
    """What is there: format, counts, captions, sizes, first rows, and what is wrong with the pictures opened.

    Captions are looked at in all rows, `num_opened` pictures (0: all) are opened whole, evenly spread.
    Raises BadInputError where the data set cannot be read at all.
    """
    if not format and Path(path).suffix in (".txt", ".jsonl"):
        prompts = PromptList(path)
        texts = [prompts.text(index) for index in range(len(prompts))]
        return {"path": path, "format": "prompts", "rows": len(texts), "first": texts[:_SHOWN_ROWS], "problems": []}
    name = format or find_format(path)
    rows = open_rows(path, options, name)
    texts = [rows.text(index) for index in range(len(rows))]
    problems: list[str] = []
    num = min(num_opened or len(rows), len(rows))
    opened = [len(rows) * number // num for number in range(num)]
    sizes: Counter[str] = Counter()
    for index in opened:
        try:
            height, width = size_of(rows.picture(index))
            sizes[f"{width} x {height}"] += 1
            for column in ("", *rows.conditions):
                read_image(rows.picture(index, column), SMALLEST_PX)
        except BadInputError as problem:
            problems.append(str(problem))
    return {
        "path": path,
        "format": name,
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
    }
