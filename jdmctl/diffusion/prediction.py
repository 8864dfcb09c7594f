"""What a raw network output means, and the only place where it becomes x0.

With x_t = a x0 + s noise (a = alpha_t, s = sigma_t, s > 0), a network may predict

    epsilon          noise                 (Ho et al. 2020, arXiv:2006.11239)
    v_prediction     a noise - s x0        (Salimans and Ho 2022, arXiv:2202.00512)
    flow_prediction  noise - x0            (Liu et al. 2022, arXiv:2209.03003)
    sample           x0

All conversions hold for any a and s, not only for a^2 + s^2 = 1 or a + s = 1, and run in float32
or wider: late in Stable Diffusion's schedule 1/a is 15, which half precision does not survive.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from jdmctl.diffusion.schedule import expand
from jdmctl.errors import BadInputError

_Formula = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]

_TO_X0: dict[str, _Formula] = {
    "epsilon": lambda noise, x_t, a, s: (x_t - s * noise) / a,
    "v_prediction": lambda v, x_t, a, s: (a * x_t - s * v) / (a**2 + s**2),
    "flow_prediction": lambda flow, x_t, a, s: (x_t - s * flow) / (a + s),
    "sample": lambda x0, x_t, a, s: x0,
}

_FROM_X0: dict[str, _Formula] = {
    "epsilon": lambda x0, x_t, a, s: (x_t - a * x0) / s,
    "v_prediction": lambda x0, x_t, a, s: (a * x_t - (a**2 + s**2) * x0) / s,
    "flow_prediction": lambda x0, x_t, a, s: (x_t - (a + s) * x0) / s,
    "sample": lambda x0, x_t, a, s: x0,
}

PREDICTIONS = tuple(_TO_X0)


def to_x0(prediction: str, output: Tensor, x_t: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """Network output [B, C, h, w] -> x0 [B, C, h, w]; alpha and sigma are [B]."""
    return _convert(_TO_X0, prediction, output, x_t, alpha, sigma)


def from_x0(prediction: str, x0: Tensor, x_t: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """x0 [B, C, h, w] -> what a network of this prediction would have said about x_t."""
    return _convert(_FROM_X0, prediction, x0, x_t, alpha, sigma)


def _convert(
    formulas: dict[str, _Formula],
    prediction: str,
    value: Tensor,
    x_t: Tensor,
    alpha: Tensor,
    sigma: Tensor,
) -> Tensor:
    if prediction not in formulas:
        raise BadInputError(
            f"unknown prediction type {prediction!r} in the scheduler",
            hint=f"prediction_type in scheduler_config.json: one of {', '.join(PREDICTIONS)}",
        )
    wide = torch.promote_types(torch.promote_types(value.dtype, x_t.dtype), torch.float32)
    a, s = expand(alpha.to(wide), x_t), expand(sigma.to(wide), x_t)
    return formulas[prediction](value.to(wide), x_t.to(wide), a, s)
