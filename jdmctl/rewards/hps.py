"""Human Preference Score v2: an open_clip ViT-H-14 fine-tuned on people's rankings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

from torch import Tensor

from jdmctl.rewards.image_text import ImageTextEncoder


class HPS:
    """100 cos(image, text), the scale of the tables that HPSv2 prints (Wu et al. 2023, arXiv:2306.09341).

    `folder` is what `jdmctl reward convert HPS_v2.1_compressed.pt FOLDER` writes. As in HPSv2's own
    transform the longest side is fitted, with black around. Numbers of v2.0 and v2.1 do not compare.
    """

    name = "hps"
    description = "HPSv2 / v2.1: 100 times the cosine of picture and caption, tuned on rankings"
    reads_text = True

    def __init__(self, folder: str) -> None:
        self.encoder = ImageTextEncoder(folder, fit="pad")

    def __call__(self, image: Tensor, texts: Sequence[str]) -> Tensor:
        return 100 * self.encoder.similarity(image, texts)

    def to(self, device: Any) -> Self:
        self.encoder.to(device)
        return self
