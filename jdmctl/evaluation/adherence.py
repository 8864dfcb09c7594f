"""How well pictures obey their conditions, by a control's own hard or held-out scorer."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from jdmctl.evaluation.bootstrap import Estimate, mean


class Scorer(Protocol):
    """What evaluation needs of a control."""

    headline: str  # the metric that stands for the control

    def scores(self, image: Tensor, condition: Tensor) -> dict[str, Tensor]: ...


@torch.no_grad()
def scores(
    control: Scorer, images: Tensor, conditions: Tensor, batch_size: int = 64, device: str = "cpu"
) -> dict[str, Tensor]:
    """Metric -> [N], of images and conditions [N, 3, H, W] in [0, 1]; all on the CPU but the control."""
    pairs = zip(images.split(batch_size), conditions.split(batch_size), strict=True)
    parts = [control.scores(image.to(device), condition.to(device)) for image, condition in pairs]
    return {name: torch.cat([part[name] for part in parts]).cpu() for name in parts[0]}


def adherence(control: Scorer, images: Tensor, conditions: Tensor, **options) -> dict[str, Estimate]:
    """Metric -> mean with its interval; options as for `bootstrap`."""
    each = scores(control, images, conditions)
    return {name: mean(values, **options) for name, values in each.items()}
