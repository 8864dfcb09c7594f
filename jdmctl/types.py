"""The words that every floor shares: what a network, a control, a batch and a step are.

Letters in shapes: B batch, C channels, H W pixels, h w latent rows and columns.
Time t runs in [0, 1]: 0 is clean, 1 is pure noise. An image is [B, 3, H, W] in [0, 1].
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, nn

Prompt = Any  # encoded text; only the family that made it looks inside
Controls = Mapping[str, Tensor]  # control name -> condition [B, 3, H, W] in [0, 1]


class Denoiser(Protocol):
    """Teacher, student and fake score alike: the expected clean latent behind a noisy one."""

    def __call__(
        self,
        x_t: Tensor,  # [B, C, h, w]
        t: Tensor,  # [B], float
        prompt: Prompt,
        controls: Controls | None = None,
    ) -> Tensor: ...  # x0 [B, C, h, w]


class Student(Denoiser, Protocol):
    """A denoiser that draws a picture in one call, at a time of its own."""

    def generate(
        self, noise: Tensor, prompt: Prompt, controls: Controls | None = None
    ) -> Tensor: ...  # noise ~ N(0, I) [B, C, h, w] -> x0 [B, C, h, w]


class Critic(Protocol):
    """What tells teacher from student: logits that estimate log p_t(x_t) / q_t(x_t)."""

    def __call__(self, x_t: Tensor, t: Tensor, prompt: Prompt, controls: Controls | None = None) -> Tensor: ...  # [B]


class Codec(Protocol):
    """Between pixels and latents, both ways differentiable."""

    def encode(self, image: Tensor) -> Tensor: ...  # [B, 3, H, W] -> [B, C, h, w]

    def decode(self, latent: Tensor) -> Tensor: ...  # not clamped: may leave [0, 1] a little


class Draws(Protocol):
    """The randomness of one batch: within it, the same name gives the same numbers."""

    @property
    def size(self) -> int: ...  # B

    def normal(self, name: str, shape: tuple[int, ...]) -> Tensor: ...  # N(0, 1), [B, *shape]

    def uniform(self, name: str) -> Tensor: ...  # [B] in [0, 1)


@dataclass(frozen=True)
class Batch:
    """What one loss is computed from."""

    prompt: Prompt
    conditions: Controls
    draws: Draws
    texts: tuple[str, ...] = ()  # the captions behind `prompt`, where known
    images: Tensor | None = None  # the pictures behind `conditions`, where known
    latents: Tensor | None = None  # clean samples of the teacher for `prompt`, drawn blind to `conditions`
    latent_noise: Tensor | None = None  # what those samples were made from
    latent_shape: tuple[int, int, int] | None = None  # C, h, w, where it is not the family's own

    def __len__(self) -> int:
        return self.draws.size


class Energy(Protocol):
    """How far an image is from obeying its batch: -log p(c | image), up to scale and constant."""

    @property
    def name(self) -> str: ...

    def __call__(self, image: Tensor, batch: Batch) -> Tensor: ...  # [B], differentiable


@dataclass(frozen=True)
class Losses:
    """`total` is the scalar to call backward on; `logs` are detached scalars."""

    total: Tensor
    logs: dict[str, Tensor]


@dataclass(frozen=True)
class Phase:
    """One optimiser's share of a step: `repeats` updates of `parameters` by `loss`."""

    name: str
    loss: Callable[[Batch], Losses]
    parameters: tuple[nn.Parameter, ...]
    repeats: int = 1


class Step(Protocol):
    """A training method: its phases, in the order in which they run."""

    @property
    def phases(self) -> tuple[Phase, ...]: ...


EnergyWeights = dict[str, float]  # energy's name -> lambda: all that a step reads and that changes while it trains
