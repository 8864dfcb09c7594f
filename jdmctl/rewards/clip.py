"""CLIP score: how well a picture fits its caption."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

from torch import Tensor

from jdmctl.rewards.image_text import ImageTextEncoder


class Clip:
    """100 cos(image, text) of a CLIP-like folder.

    That is torchmetrics' CLIPScore without its cut at 0, where the gradient would end. (Hessel et al.
    2021, arXiv:2104.08718, scale the cosine by 2.5 instead.)
    """

    name = "clip"
    description = "CLIP score: 100 times the cosine of picture and caption"
    reads_text = True

    def __init__(self, folder: str) -> None:
        self.encoder = ImageTextEncoder(folder)

    def __call__(self, image: Tensor, texts: Sequence[str]) -> Tensor:
        return 100 * self.encoder.similarity(image, texts)

    def to(self, device: Any) -> Self:
        self.encoder.to(device)
        return self
