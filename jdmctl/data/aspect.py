"""Pictures by aspect ratio: sizes of about as many pixels as the square, and which of them a picture is nearest to."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from jdmctl.data.arrays import keep_arrays, read_arrays
from jdmctl.data.metadata import problems_error
from jdmctl.data.pictures import size_of
from jdmctl.data.rows import Rows
from jdmctl.errors import BadInputError

Size = tuple[int, int]  # height, width


def bucket_sizes(resolution_px: int, step_px: int) -> tuple[Size, ...]:
    """Sizes whose sides are multiples of a step, of no more pixels than the square and no further from it than 4:1.

    For each width the largest such height, as in Aspect Ratio Bucketing (NovelAI 2022; kohya-ss/sd-scripts,
    docs/train_README-en.md). Tall ones come first.
    """
    smallest, largest = math.ceil(resolution_px / 2 / step_px) * step_px, 2 * resolution_px
    widths = range(max(smallest, step_px), largest + 1, step_px)
    heights = (min(resolution_px**2 // width, largest) // step_px * step_px for width in widths)
    return tuple((height, width) for height, width in zip(heights, widths, strict=True) if height >= smallest)


def nearest(size: Size, sizes: Sequence[Size]) -> int:
    """The number of the size whose aspect ratio differs least, as a factor; the first of two that differ as much."""

    def difference(other: Size) -> float:
        return abs(math.log(size[1] / size[0] * other[0] / other[1]))

    return min(range(len(sizes)), key=lambda number: difference(sizes[number]))


def buckets_of(rows: Rows, sizes: Sequence[Size], indices: Sequence[int], cache: Path) -> dict[int, int]:
    """Row -> number of its bucket.

    All headers are read the first time, which for pictures in tables and archives means all of their bytes; then the
    sizes are kept in the cache. Raises BadInputError with all pictures that cannot be opened.
    """
    key = f"{rows.identity()} {list(indices)}"
    file = cache / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.npz"
    kept = read_arrays(file)
    found = kept["sizes"] if kept else _measure(rows, indices)
    if not kept:
        keep_arrays(file, {"sizes": found})
    return {index: nearest(tuple(size), sizes) for index, size in zip(indices, found.tolist(), strict=True)}


def _measure(rows: Rows, indices: Sequence[int]) -> np.ndarray:
    found, problems = [], []
    for index in indices:
        try:
            found.append(size_of(rows.picture(index)))
        except BadInputError as problem:
            problems.append(str(problem))
    if problems:
        raise problems_error("the data set", problems, "repair these pictures or leave them out")
    return np.array(found)
