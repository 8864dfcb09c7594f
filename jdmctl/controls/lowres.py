"""Low resolution: the condition is the picture itself, made smaller; obeying it is super-resolution."""

from __future__ import annotations

from typing import Any, Self

import torch
from torch import Tensor
from torch.nn import functional

from jdmctl.errors import BadInputError
from jdmctl.objectives.energy import l1, l2, pseudo_huber

_SMALL = 0.1  # an error that counts by its square still


class LowRes:
    """Means of `factor` x `factor` squares of pixels, shown at full size."""

    name = "lowres"
    gradient = "exact"
    description = "the picture reduced: super-resolution"
    headline = "psnr"
    higher_is_better = True

    def __init__(self, factor: int = 8) -> None:
        if factor < 2:
            raise BadInputError(f"lowres: factor is {factor}", hint="choose 2 or more")
        self._factor = factor

    @torch.no_grad()
    def condition(self, image: Tensor) -> Tensor:
        small = self._reduce(image).clamp(0, 1)
        return functional.interpolate(small, scale_factor=self._factor, mode="nearest")

    def energy(self, image: Tensor, condition: Tensor) -> Tensor:
        """Pseudo-Huber distance of the reduced pictures, [B]: an object of a wrong colour counts for more than as many
        background pixels that are a little off."""
        return pseudo_huber(self._reduce(image), self._reduce(condition), _SMALL)

    @torch.no_grad()
    def scores(self, image: Tensor, condition: Tensor) -> dict[str, Tensor]:
        small, requested = self._reduce(image.clamp(0, 1)), self._reduce(condition)
        error = l2(small, requested).clamp(min=1e-10)  # an exact picture has 100 dB, not infinitely many
        return {"psnr": -10 * error.log10(), "l1": l1(small, requested)}

    def to(self, device: Any) -> Self:
        return self

    def _reduce(self, image: Tensor) -> Tensor:
        height, width = image.shape[-2:]
        if height % self._factor or width % self._factor:
            raise BadInputError(
                f"lowres: a picture of {width} x {height} px does not divide by {self._factor}",
                hint="choose a resolution that is a multiple of the factor, or another factor",
            )
        return functional.avg_pool2d(image, self._factor)  # [B, 3, H / factor, W / factor]
