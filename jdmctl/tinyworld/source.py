"""Where a world's pictures come from: the rendered scenes (default) or any folder of captioned images."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from jdmctl.tinyworld.captions import caption
from jdmctl.tinyworld.scenes import COLORS, FLOORS, SHAPES, Scenes, render

SPLIT_SEEDS = {"train": 1, "reference": 2, "val": 3, "test": 4}
LABELS = tuple(
    f"{attribute}: {value}"
    for attribute, values in {
        "shape": SHAPES,
        "color": COLORS,
        "striped": ("no", "yes"),
        "floor": FLOORS,
        "checkered": ("no", "yes"),
    }.items()
    for value in values
)


@dataclass(frozen=True)
class Pictures:
    """N captioned pictures of one split.

    `truth` and `stated` are multi-hot over the world's labels: what a picture shows, and what a caption says of it.
    """

    images: Tensor  # uint8 [N, 3, H, W]
    captions: tuple[tuple[str, ...], ...]  # several wordings a picture
    truth: Tensor  # bool [N, L]
    stated: Tensor  # bool [N, wordings, L]
    inverse_depth: Tensor | None = None  # float16 [N, H, W] in [0, 1]

    def __len__(self) -> int:
        return len(self.images)

    def image(self, index: int | Tensor) -> Tensor:
        """[3, H, W] (or [B, 3, H, W]) in [0, 1]."""
        return self.images[index].float() / 255

    def text(self, index: int) -> str:
        return self.captions[index][0]


def scenes(split: str, num: int, folder: Path, wordings: int = 4) -> Pictures:
    """`num` rendered scenes of a split, rendered once and kept in `folder`. Splits differ by seed."""
    file = folder / f"scenes-{split}-{num}.npz"
    if file.exists():
        drawn = Scenes.load(file)
    else:
        drawn = render(num, SPLIT_SEEDS[split], processes=os.cpu_count() or 1)
        folder.mkdir(parents=True, exist_ok=True)
        partial = file.with_suffix(".partial.npz")
        drawn.save(partial)
        partial.replace(file)
    rng = np.random.default_rng(SPLIT_SEEDS[split])
    words = [[caption(drawn, i, rng) for _ in range(wordings)] for i in range(len(drawn))]
    return Pictures(
        images=torch.from_numpy(drawn.image).permute(0, 3, 1, 2).contiguous(),
        captions=tuple(tuple(c.text for c in row) for row in words),
        truth=_multi_hot([_attributes(drawn, i) for i in range(len(drawn))]),
        stated=torch.stack([_multi_hot([c.stated for c in row]) for row in words]),
        inverse_depth=torch.from_numpy(drawn.inverse_depth),
    )


def _attributes(drawn: Scenes, i: int) -> dict[str, int]:
    main = {name: int(getattr(drawn, name)[i, 0]) for name in ("shape", "color", "striped")}
    return main | {name: int(getattr(drawn, name)[i]) for name in ("floor", "checkered")}


def _multi_hot(rows: list[dict[str, int]]) -> Tensor:
    """[{attribute: class}] to bool [len(rows), L]."""
    attributes = [label.split(": ")[0] for label in LABELS]
    hot = torch.zeros(len(rows), len(LABELS), dtype=torch.bool)
    for row, classes in zip(hot, rows, strict=True):
        for attribute, value in classes.items():
            row[attributes.index(attribute) + value] = True
    return hot
