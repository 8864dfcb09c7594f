"""How much picture and how much noise there is at time t: x_t = alpha_t x0 + sigma_t noise."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, Self

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

    alphas_cumprod: Tensor  # [N], alpha^2, falling, float64
    _tables: dict[tuple[str, torch.device, torch.dtype], Tensor] = field(default_factory=dict, repr=False)

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
        return self._table("alpha", t)[self.timestep(t)]

    def sigma(self, t: Tensor) -> Tensor:
        return self._table("sigma", t)[self.timestep(t)]

    def _table(self, name: str, t: Tensor) -> Tensor:
        """Of all N, where t is and of its dtype; float64 stays on the CPU, as not every device has it."""
        key = name, t.device, t.dtype
        if key not in self._tables:
            squares = self.alphas_cumprod if name == "alpha" else 1 - self.alphas_cumprod
            self._tables[key] = squares.sqrt().to(t.dtype).to(t.device)
        return self._tables[key]


@dataclass(frozen=True)
class RectifiedFlow:
    """The straight path (Liu et al. 2022, arXiv:2209.03003): alpha = 1 - sigma, and sigma = t where `shift` is 1.

    A larger shift, for larger pictures, stays longer with noise: sigma = shift t / (1 + (shift - 1) t)
    (Esser et al. 2024, arXiv:2403.03206, sec. 5.3.2).
    """

    shift: float = 1.0

    @classmethod
    def from_diffusers(cls, config: Mapping[str, Any], num_tokens: int = 4096) -> Self:
        """As a diffusers scheduler's config says, whose shift may depend on the number of tokens of a picture.

        4096 are 1024 x 1024 px.

        Raises:
            BadInputError: it is not the config of a flow.
        """
        if config.get("_class_name") in _FLOWS_IN_COSINES:
            return cls()
        if config.get("_class_name") not in _FLOWS and not config.get("use_flow_sigmas"):
            raise BadInputError(
                f"scheduler {config.get('_class_name')} is not a flow",
                hint="use a folder whose scheduler is FlowMatchEulerDiscreteScheduler or the like",
            )
        if not config.get("use_dynamic_shifting"):
            return cls(config.get("shift") or config.get("flow_shift") or 1.0)
        few, many = config.get("base_image_seq_len", 256), config.get("max_image_seq_len", 4096)
        low, high = config.get("base_shift", 0.5), config.get("max_shift", 1.15)
        mu = low + (high - low) * (num_tokens - few) / (many - few)
        return cls(math.exp(mu) if config.get("time_shift_type", "exponential") == "exponential" else mu)

    def timestep(self, t: Tensor) -> Tensor:
        """1000 sigma, as diffusers' schedulers number it."""
        return 1000 * self.sigma(t)

    def time(self, timestep: float) -> float:
        """The t of a timestep; BadInputError if it is none."""
        if not 0 <= timestep <= 1000:
            raise BadInputError(f"there is no timestep {timestep}", hint="give one from 0 to 1000")
        return timestep / (1000 * self.shift - (self.shift - 1) * timestep)

    def alpha(self, t: Tensor) -> Tensor:
        return 1 - self.sigma(t)

    def sigma(self, t: Tensor) -> Tensor:
        return self.shift * t / (1 + (self.shift - 1) * t)


# SANA-Sprint's TrigFlow is the same path, seen at another scale: with x = cos(a) x0 + sin(a) noise, its network is
# given x / (cos(a) + sin(a)) = (1 - s) x0 + s noise at s = sin(a) / (cos(a) + sin(a)), and its x0 is the flow's
_FLOWS_IN_COSINES = ("SCMScheduler",)
_FLOWS = ("FlowMatchEulerDiscreteScheduler", "FlowMatchLCMScheduler", "FlowMatchHeunDiscreteScheduler")


def expand(values: Tensor, like: Tensor) -> Tensor:
    """[B] -> [B, 1, 1, 1], with as many ones as `like` needs to be multiplied by it."""
    return values.reshape(-1, *[1] * (like.ndim - 1))


def diffuse(schedule: Schedule, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """x_t = alpha_t x0 + sigma_t noise; x0 and noise [B, C, h, w], t [B]."""
    return expand(schedule.alpha(t), x0) * x0 + expand(schedule.sigma(t), x0) * noise
