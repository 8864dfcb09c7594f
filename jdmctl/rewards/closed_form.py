"""Rewards without a network: for trying things out, and for tests whose answer is known."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

from torch import Tensor

_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601


class _ClosedForm:
    """A function of the pixels alone."""

    reads_text = False

    def to(self, device: Any) -> Self:
        return self


class Brightness(_ClosedForm):
    """Mean luma, in [0, 1]."""

    name = "brightness"
    description = "mean luma"

    def __call__(self, image: Tensor, texts: Sequence[str] = ()) -> Tensor:
        return _luma(image.clamp(0, 1)).mean((1, 2))


class Contrast(_ClosedForm):
    """Standard deviation of luma, in [0, 0.5]."""

    name = "contrast"
    description = "standard deviation of luma"

    def __call__(self, image: Tensor, texts: Sequence[str] = ()) -> Tensor:
        return _deviation(_luma(image.clamp(0, 1)))


class Warmth(_ClosedForm):
    """Mean red minus mean blue, in [-1, 1]."""

    name = "warmth"
    description = "red minus blue"

    def __call__(self, image: Tensor, texts: Sequence[str] = ()) -> Tensor:
        red, _, blue = image.clamp(0, 1).mean((2, 3)).unbind(1)
        return red - blue


class Colorfulness(_ClosedForm):
    """sqrt(var rg + var yb) + 0.3 sqrt(mean rg^2 + mean yb^2), with rg = R - G and yb = (R + G) / 2 - B.

    (Hasler & Suesstrunk 2003, doi:10.1117/12.477378, there of values up to 255.) 0 for a grey picture.
    """

    name = "colorfulness"
    description = "spread and strength of colours (Hasler & Suesstrunk 2003)"

    def __call__(self, image: Tensor, texts: Sequence[str] = ()) -> Tensor:
        red, green, blue = image.clamp(0, 1).unbind(1)  # [B, H, W] each
        rg, yb = red - green, (red + green) / 2 - blue
        spread = _root(rg.var((1, 2), correction=0) + yb.var((1, 2), correction=0))
        strength = _root(rg.mean((1, 2)).square() + yb.mean((1, 2)).square())
        return spread + 0.3 * strength


def _luma(image: Tensor) -> Tensor:
    return sum(weight * channel for weight, channel in zip(_LUMA, image.unbind(1), strict=True))  # type: ignore[return-value]


def _deviation(values: Tensor) -> Tensor:
    return _root(values.var((1, 2), correction=0))


def _root(values: Tensor) -> Tensor:
    """Square root whose slope stays finite at 0, where a grey picture is."""
    return (values + 1e-12).sqrt() - 1e-6
