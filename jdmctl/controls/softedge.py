"""Soft edges: how much a picture changes around each pixel, at several scales; smooth throughout."""

from __future__ import annotations

from typing import Any, Self

import torch
from kornia.filters import gaussian_blur2d, spatial_gradient
from kornia.metrics import ssim
from torch import Tensor

from jdmctl.objectives.energy import l1, pseudo_huber

_SCALES_PX = (0.7, 1.4, 2.8)
_GAIN = 5.0  # a step of half the range between black and white comes to about 0.8
_SMALL = 0.1  # an error that counts by its square still
_ROUNDING = 1e-3  # keeps the gradient of the magnitude finite where the picture is flat


class SoftEdge:
    """Multi-scale edge strength in [0, 1], equal in the three channels.

    e = mean over sigma of tanh(gain * sigma * |grad(G_sigma * image)|), the magnitude taken over
    the colours too. The factor sigma makes a step equally strong at every scale
    (Lindeberg 1998, doi:10.1023/A:1008045108935).
    """

    name = "softedge"
    gradient = "exact"
    description = "smooth multi-scale edge strength"
    headline = "ssim"
    higher_is_better = True

    @torch.no_grad()
    def condition(self, image: Tensor) -> Tensor:
        return edge_strength(image).repeat(1, 3, 1, 1)  # [B, 3, H, W]

    def energy(self, image: Tensor, condition: Tensor) -> Tensor:
        """Pseudo-Huber distance of e(image) to the condition, [B]: edges count for more than almost flat ground."""
        return pseudo_huber(edge_strength(image), condition[:, :1], _SMALL)

    @torch.no_grad()
    def scores(self, image: Tensor, condition: Tensor) -> dict[str, Tensor]:
        edges, requested = edge_strength(image.clamp(0, 1)), condition[:, :1]
        similarity = ssim(edges, requested, window_size=11).flatten(1).mean(1)
        return {"ssim": similarity, "l1": l1(edges, requested)}

    def to(self, device: Any) -> Self:
        return self


def edge_strength(image: Tensor) -> Tensor:
    """Images [B, 3, H, W] in [0, 1] -> [B, 1, H, W] in [0, 1)."""
    return torch.stack([_edge_strength_at(image, sigma) for sigma in _SCALES_PX]).mean(0)


def _edge_strength_at(image: Tensor, sigma: float) -> Tensor:
    width = 2 * round(3 * sigma) + 1
    blurred = gaussian_blur2d(image, (width, width), (sigma, sigma), border_type="replicate")
    slopes = spatial_gradient(blurred, mode="sobel", normalized=True)  # [B, 3, 2, H, W]
    squared = slopes.square().sum(2).mean(1, keepdim=True)  # [B, 1, H, W]
    magnitude = (squared + _ROUNDING**2).sqrt() - _ROUNDING
    return torch.tanh(_GAIN * sigma * magnitude)
