"""Fidelity by the distance between scores, a second path beside the f-divergences.

    D = E_t E_{x_t ~ q_t} [ phi( y ) ],    y = s_q(x_t) - s_p(x_t) = (alpha / sigma^2) (fake_x0 - teacher_x0)

With the samples held where they are, the gradient of D in the student is that of

    - E[ < phi'(y), s_q(x_t) - grad log q(x_t | x0) > ],   s_q - grad log q(x_t | x0) = (alpha / sigma^2) (fake_x0 - x0)

(Luo et al. 2024, SIM, arXiv:2410.16794; Zhou et al. 2024, SiD, arXiv:2404.04057), PROVIDED that it also flows through
x_t into both networks, whose weights stay frozen. So teacher_x0 and fake_x0 must come with their graphs. The price is
memory: the activations of teacher and fake score are kept for one backward pass through both, where the f-divergences
keep none; with a guided teacher that is three passes instead of two.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

Units = Literal["score", "x0"]


def sim_loss(
    x0: Tensor,
    teacher_x0: Tensor,
    fake_x0: Tensor,
    alpha: Tensor,
    sigma: Tensor,
    huber: float = 0.03,
    units: Units = "x0",
) -> Tensor:
    """The loss of phi(y) = sqrt(|y|^2 + c^2) - c, c = huber sqrt(C h w), one number a sample [B].

    x0, teacher_x0 and fake_x0 are [B, C, h, w], alpha and sigma [B]. In units of "score" it is the formula above; in
    units of "x0", y and the second factor leave alpha / sigma^2 out: a weight by noise level, and phi' is bounded, so
    that all levels push about equally. The size of c in the paper could not be read; the form of its growth with the
    dimension is that of Song and Dhariwal 2023, arXiv:2310.14189.
    """
    scale = _scale(alpha, sigma, units)  # [B]
    y = scale[:, None] * (fake_x0 - teacher_x0).flatten(1)
    error = scale[:, None] * (x0 - fake_x0).flatten(1)
    slope = y / (y.square().sum(1, keepdim=True) + huber**2 * y.shape[1]).sqrt()  # phi'
    return (slope * error).sum(1)


def sid_loss(
    x0: Tensor,
    teacher_x0: Tensor,
    fake_x0: Tensor,
    alpha: Tensor,
    sigma: Tensor,
    mix: float = 1.2,
    units: Units = "x0",
) -> Tensor:
    """(1 - mix) |y|^2 + < y, x0 - fake_x0 >, one number a sample [B]; shapes as for `sim_loss`.

    At mix = 1 this is the loss of phi = |y|^2 / 2; SiD's own 1.2 (its alpha) cancels an error that an imperfect fake
    score brings. In units of "x0" the sum is divided by mean |x0 - teacher_x0|, held fixed, as in SiD's code; in units
    of "score" it is not, and both factors carry alpha / sigma^2.
    """
    scale = _scale(alpha, sigma, units)
    y = scale[:, None] * (fake_x0 - teacher_x0).flatten(1)
    error = scale[:, None] * (x0 - fake_x0).flatten(1)
    loss = (1 - mix) * y.square().sum(1) + (y * error).sum(1)
    if units == "x0":
        loss = loss / (x0 - teacher_x0).detach().abs().flatten(1).mean(1).clamp(min=1e-6)
    return loss


@dataclass(frozen=True)
class ScoreDivergence:
    """SIM or SiD as a `matching` of the JDM step. `huber` is SIM's, `mix` is SiD's."""

    method: Literal["sim", "sid"] = "sim"
    units: Units = "x0"
    huber: float = 0.03
    mix: float = 1.2

    through_networks: ClassVar[bool] = True

    def gradient(self, x0: Tensor, teacher_x0: Tensor, fake_x0: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """d(loss)/d(x0) of each sample [B, C, h, w]; teacher_x0 and fake_x0 must depend on x0 through x_t."""
        if self.method == "sim":
            loss = sim_loss(x0, teacher_x0, fake_x0, alpha, sigma, self.huber, self.units)
        else:
            loss = sid_loss(x0, teacher_x0, fake_x0, alpha, sigma, self.mix, self.units)
        (gradient,) = torch.autograd.grad(loss.sum(), x0)
        return gradient


def _scale(alpha: Tensor, sigma: Tensor, units: Units) -> Tensor:
    return alpha / sigma**2 if units == "score" else torch.ones_like(alpha)
