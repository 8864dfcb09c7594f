"""Denoising: the regression by which a network learns the score of what it is shown."""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

DenoisingWeight = Literal["snr_clamped", "epsilon", "x0"]

_WEIGHTS: dict[str, Callable[[Tensor], Tensor]] = {  # of the signal-to-noise ratio
    "snr_clamped": lambda snr: snr.clamp(max=5.0),
    "epsilon": lambda snr: snr,
    "x0": torch.ones_like,
}


def denoising_loss(
    x0_prediction: Tensor,
    x0: Tensor,
    alpha: Tensor,
    sigma: Tensor,
    weight: DenoisingWeight = "snr_clamped",
) -> Tensor:
    """Weighted mean squared error of x0 [B, C, h, w], one number a sample [B].

    With snr = alpha^2 / sigma^2 the weights are

        snr_clamped  min(snr, 5)  (Hang et al. 2023, min-SNR, arXiv:2303.09556)
        epsilon      snr: the squared error of the noise (Ho et al. 2020, arXiv:2006.11239)
        x0           1

    None of them moves the optimum, the conditional mean; they share out the effort between times.
    """
    error = (x0_prediction - x0).square().flatten(1).mean(1)  # [B]
    return _WEIGHTS[weight]((alpha / sigma) ** 2) * error
