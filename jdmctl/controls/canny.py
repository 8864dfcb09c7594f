"""Canny edges: made and scored by cv2.Canny, obeyed through a likelihood of the same arithmetic."""

from __future__ import annotations

from typing import Any, Self

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from jdmctl.controls.soft_canny import edge_logit
from jdmctl.errors import BadInputError


class Canny:
    """Thin edges, white on black, at the picture's own resolution.

    cv2.Canny is called directly: controlnet_aux's CannyDetector does the same but first resizes the
    picture to a multiple of 64 px and then interpolates the edges, which makes them grey. At
    multiples of 64 px the two are equal.
    """

    name = "canny"
    gradient = "surrogate"
    description = "thin edges of cv2.Canny"
    headline = "f1"
    higher_is_better = True

    def __init__(self, low: int = 100, high: int = 200, tolerance_px: int = 1) -> None:
        """`tolerance_px` is how far off an edge may be for the energy; scores always allow one pixel."""
        if not 0 < low <= high:
            raise BadInputError(f"canny: low is {low} and high is {high}", hint="choose 0 < low <= high")
        if tolerance_px < 0:
            raise BadInputError(f"canny: tolerance_px is {tolerance_px}", hint="choose 0, 1, 2 ...")
        self._low, self._high, self._tolerance_px = low, high, tolerance_px

    @torch.no_grad()
    def condition(self, image: Tensor) -> Tensor:
        return self._edges(image).to(image.dtype).repeat(1, 3, 1, 1)  # [B, 3, H, W]

    def energy(self, image: Tensor, condition: Tensor) -> Tensor:
        """-log p(requested edges | image) per pixel, in nats, [B], `tolerance_px` off being allowed.

        A pixel is an edge with the odds of `edge_logit`. Where an edge is requested, the likeliest of
        the pixels near it should be one; where none is requested near, none should be. So a request
        that is not met pulls, and an edge that nobody asked for pushes.
        """
        requested = _requested(condition)
        logit = edge_logit(image, self._low, self._high)
        missing = functional.softplus(-_largest_near(logit, self._tolerance_px)) * requested
        unasked = functional.softplus(logit) * (_largest_near(requested.to(logit.dtype), self._tolerance_px) == 0)
        return (missing + unasked).flatten(1).mean(1)

    @torch.no_grad()
    def scores(self, image: Tensor, condition: Tensor) -> dict[str, Tensor]:
        return edge_agreement(self._edges(image), _requested(condition))

    def to(self, device: Any) -> Self:
        return self

    def _edges(self, image: Tensor) -> Tensor:
        """cv2.Canny of the pictures as they would be saved, bool [B, 1, H, W]."""
        pictures = (image.detach().clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).cpu()
        edges = [cv2.Canny(p, self._low, self._high) for p in pictures.contiguous().numpy()]
        return torch.from_numpy(np.stack(edges) > 0)[:, None].to(image.device)


def edge_agreement(edges: Tensor, requested: Tensor) -> dict[str, Tensor]:
    """f1, precision, recall and l1 [B] of boolean edge maps [B, 1, H, W], one pixel off being allowed.

    precision is the share of edge pixels with a requested one among their 3 x 3 neighbours, recall
    the reverse, f1 their harmonic mean. A share of nothing is 1. l1 is the share of all pixels that
    differ, without any allowance.
    """
    precision = _share_near(edges, requested)
    recall = _share_near(requested, edges)
    f1 = 2 * precision * recall / (precision + recall).clamp(min=1e-12)
    l1 = (edges != requested).flatten(1).float().mean(1)
    return {"f1": f1, "precision": precision, "recall": recall, "l1": l1}


def _share_near(edges: Tensor, others: Tensor) -> Tensor:
    near = _largest_near(others.float()) > 0
    count = edges.flatten(1).sum(1)
    hits = (edges & near).flatten(1).sum(1)
    return torch.where(count > 0, hits / count.clamp(min=1), 1.0)


def _largest_near(values: Tensor, distance_px: int = 1) -> Tensor:
    """Of the pixels within a distance of each, sideways, up and down: 3 x 3 of them within 1."""
    return functional.max_pool2d(values, 2 * distance_px + 1, stride=1, padding=distance_px)


def _requested(condition: Tensor) -> Tensor:
    return condition[:, :1] > 0.5  # a map that was resized or saved as JPEG may hold greys
