"""How much picture and how much noise there is at time t: x_t = alpha_t x0 + sigma_t noise."""

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from jdmctl.errors import BadInputError


class Schedule(Protocol):
    """Both take t in [0, 1] and keep its shape and dtype."""

    def alpha(self, t: Tensor) -> Tensor: ...

    def sigma(self, t: Tensor) -> Tensor: ...


class NetworkSchedule(Schedule, Protocol):
    """One that also knows what a network is told for t."""

    def timestep(self, t: Tensor) -> Tensor: ...  # [B] -> [B]

    def time(self, timestep: float) -> float: ...  # the t at which that is told


@dataclass(frozen=True, eq=False)
class DiscreteSchedule:
    """A variance-preserving table (Ho et al. 2020, arXiv:2006.11239): alpha^2 + sigma^2 = 1.

    The N noise levels sit at t = 0, 1/(N-1), ..., 1; a t between two of them is rounded.
    The cleanest level still holds some noise: in Stable Diffusion sigma(0) = 0.03.
    """

    alphas_cumprod: Tensor  # [N], alpha^2, falling

    @classmethod
    def from_diffusers(cls, scheduler: Any) -> "DiscreteSchedule":
        """The table of a diffusers scheduler; BadInputError if it has none."""
        table = getattr(scheduler, "alphas_cumprod", None)
        if table is None:
            raise BadInputError(
                f"scheduler {type(scheduler).__name__} has no table of noise levels",
                hint="use a folder whose scheduler is DDPM- or DDIM-like (has alphas_cumprod)",
            )
        return cls(torch.as_tensor(table).double())

    def timestep(self, t: Tensor) -> Tensor:
        """The row of the table that t means, as long."""
        return (t * (len(self.alphas_cumprod) - 1)).round().long()

    def time(self, timestep: float) -> float:
        """The t whose row that is; BadInputError if the table has no such row."""
        last = len(self.alphas_cumprod) - 1
        if not 0 <= timestep <= last:
            raise BadInputError(f"there is no timestep {timestep}", hint=f"give one from 0 to {last}")
        return timestep / last

    def alpha(self, t: Tensor) -> Tensor:
        return self._square(t).sqrt().to(t.dtype)

    def sigma(self, t: Tensor) -> Tensor:
        return (1 - self._square(t)).sqrt().to(t.dtype)

    def _square(self, t: Tensor) -> Tensor:
        return self.alphas_cumprod.to(t.device)[self.timestep(t)]


class RectifiedFlow:
    """The straight path (Liu et al. 2022, arXiv:2209.03003): alpha = 1 - t, sigma = t."""

    def alpha(self, t: Tensor) -> Tensor:
        return 1 - t

    def sigma(self, t: Tensor) -> Tensor:
        return t


def expand(values: Tensor, like: Tensor) -> Tensor:
    """[B] -> [B, 1, 1, 1], with as many ones as `like` needs to be multiplied by it."""
    return values.reshape(-1, *[1] * (like.ndim - 1))


def diffuse(schedule: Schedule, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """x_t = alpha_t x0 + sigma_t noise; x0 and noise [B, C, h, w], t [B]."""
    return expand(schedule.alpha(t), x0) * x0 + expand(schedule.sigma(t), x0) * noise
