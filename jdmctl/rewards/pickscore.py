"""PickScore: a CLIP fine-tuned on what people picked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

from torch import Tensor

from jdmctl.rewards.image_text import ImageTextEncoder


class PickScore:
    """exp(logit_scale) cos(image, text) (Kirstain et al. 2023, arXiv:2305.01569).

    A difference of 1 between two pictures means that the better one is picked with odds of e. The
    weights' own repository, yuvalkirstain/PickScore_v1, leaves its tokenizer and image processor to
    laion/CLIP-ViT-H-14-laion2B-s32B-b79K: name it as `processor`.
    """

    name = "pickscore"
    description = "PickScore: logit that people pick the picture for its caption"
    reads_text = True

    def __init__(self, folder: str, processor: str | None = None) -> None:
        self.encoder = ImageTextEncoder(folder, processor)

    def __call__(self, image: Tensor, texts: Sequence[str]) -> Tensor:
        return self.encoder.network.logit_scale.exp() * self.encoder.similarity(image, texts)

    def to(self, device: Any) -> Self:
        self.encoder.to(device)
        return self
