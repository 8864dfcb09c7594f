"""The tests that cv2.Canny puts each pixel to, as numbers that have a gradient.

cv2.Canny(picture, low, high) (Canny 1986, doi:10.1109/TPAMI.1986.4767851) keeps a pixel whose
strength |dx| + |dy| is above a threshold and above that of the two pixels beside it, across the edge.
Here each test is a margin, positive where the pixel passes. On 8-bit pictures all the margins being
positive is cv2.Canny itself, pixel for pixel: nothing is smoothed but the step from "just fails" to
"just passes".
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

SOFTNESS = 50.0  # in units of strength, 0 to 2040: see examples/canny_surrogate/measure.py
TAN_22_5 = 13573 / 2**15  # as cv2 rounds it: gradients within 22.5 degrees of an axis follow it
_TIE = 0.5  # strengths are whole numbers: a > b is a - b - 0.5 > 0, a >= b is a - b + 0.5 > 0


def edge_logit(image: Tensor, low: float, high: float) -> Tensor:
    """Log odds that a pixel is an edge, [B, 1, H, W], of an image [B, 3, H, W] in [0, 1].

    -log of the sum of exp(-margin / softness) over the tests, a soft minimum of the margins: the
    test that decides always has a gradient.
    """
    return -torch.logsumexp(-edge_margins(image, low, high) / SOFTNESS, dim=0)


def edge_margins(image: Tensor, low: float, high: float) -> Tensor:
    """By how much each pixel passes the three tests, [3, B, 1, H, W], in units of strength.

    The edge's direction and the threshold (`low` where a chain of edges leads to one above `high`,
    else `high`) are read off the picture as it is and have no gradient.
    """
    strength, dx, dy = _strongest_slope(image)
    before, after = _across(strength, dx, dy)
    is_peak = (before > 0) & (after > 0)
    candidates = (is_peak & (strength > low)).to(image.dtype)
    certain = (is_peak & (strength > high)).to(image.dtype)
    threshold = torch.where(_connected(certain, candidates) > 0, low, high)
    return torch.stack([strength - threshold - _TIE, before, after])


def _strongest_slope(image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """|dx| + |dy| on 0..255 by Sobel in the colour channel where it is largest; all [B, 1, H, W]."""
    framed = functional.pad(255 * image, (1, 1, 1, 1), mode="replicate")
    rows = framed[..., :-2, :] + 2 * framed[..., 1:-1, :] + framed[..., 2:, :]
    columns = framed[..., :-2] + 2 * framed[..., 1:-1] + framed[..., 2:]
    dx = rows[..., 2:] - rows[..., :-2]  # [B, 3, H, W]
    dy = columns[..., 2:, :] - columns[..., :-2, :]
    strength, channel = (dx.abs() + dy.abs()).max(dim=1, keepdim=True)
    return strength, dx.gather(1, channel).detach(), dy.gather(1, channel).detach()


def _across(strength: Tensor, dx: Tensor, dy: Tensor) -> tuple[Tensor, Tensor]:
    """By how much a pixel is stronger than its neighbours across the edge, before and after it."""
    height, width = strength.shape[-2:]
    framed = functional.pad(strength, (1, 1, 1, 1))  # outside of the picture there is no edge

    def neighbour(down: int, right: int) -> Tensor:
        return framed[..., 1 + down : 1 + down + height, 1 + right : 1 + right + width]

    horizontal = dy.abs() < TAN_22_5 * dx.abs()
    vertical = dy.abs() - 2 * dx.abs() > TAN_22_5 * dx.abs()  # tan(67.5) = 2 + tan(22.5)
    falling = dx * dy < 0

    def pick(left: Tensor, above: Tensor, rising_side: Tensor, falling_side: Tensor) -> Tensor:
        diagonal = torch.where(falling, falling_side, rising_side)
        return torch.where(horizontal, left, torch.where(vertical, above, diagonal))

    before = pick(neighbour(0, -1), neighbour(-1, 0), neighbour(-1, -1), neighbour(-1, 1))
    after = pick(neighbour(0, 1), neighbour(1, 0), neighbour(1, 1), neighbour(1, -1))
    # Of two equal pixels the first is kept, but for diagonals, where cv2 keeps neither.
    tie_after = torch.where(horizontal | vertical, _TIE, -_TIE)
    return strength - before - _TIE, strength - after + tie_after


@torch.no_grad()
def _connected(certain: Tensor, candidates: Tensor) -> Tensor:
    """The candidates that touch a certain one, directly or through others: hysteresis."""
    while True:
        grown = functional.max_pool2d(certain, 3, stride=1, padding=1) * candidates
        if torch.equal(grown, certain):
            return certain
        certain = grown
