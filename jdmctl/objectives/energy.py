"""Distances for energies: what is asked against what is there, as one number a sample.

Each is a mean over dimensions and belongs to a noise model p(c | x): it is -log p(c | x), up to a
constant and a factor, which the weight lambda takes in.
"""

from torch import Tensor


def l1(a: Tensor, b: Tensor) -> Tensor:
    """Mean |a - b| [B]: Laplace noise."""
    return _mean((a - b).abs())


def l2(a: Tensor, b: Tensor) -> Tensor:
    """Mean (a - b)^2 [B]: Gaussian noise."""
    return _mean((a - b).square())


def pseudo_huber(a: Tensor, b: Tensor, c: float) -> Tensor:
    """Mean sqrt((a - b)^2 + c^2) - c [B]: l2 / (2 c) well below c, l1 well above, smooth between.

    (Charbonnier et al. 1997, doi:10.1109/83.551699.)
    """
    return _mean(((a - b).square() + c**2).sqrt() - c)


def _mean(values: Tensor) -> Tensor:
    return values.flatten(1).mean(1)  # [B, ...] -> [B]
