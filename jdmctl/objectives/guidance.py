"""Guidance by the prompt or by controls, as a denoiser around a denoiser."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from jdmctl.diffusion.timesteps import UniformTimesteps
from jdmctl.types import Controls, Denoiser, Prompt


@dataclass(frozen=True)
class Guided:
    """x0(empty) + scale (x0(prompt) - x0(empty))  (Ho and Salimans 2022, arXiv:2207.12598).

    Guidance is linear in epsilon, v and x0 alike, so x0 serves every family. Controls go into
    both calls. At scale 1 the two calls are one.
    """

    denoiser: Denoiser
    scale: float
    empty_prompt: Prompt | Callable[[int], Prompt]  # itself, or batch size -> itself

    def __call__(self, x_t: Tensor, t: Tensor, prompt: Prompt, controls: Controls | None = None) -> Tensor:
        x0 = self.denoiser(x_t, t, prompt, controls)
        if self.scale == 1:
            return x0
        empty = self.empty_prompt(len(x_t)) if callable(self.empty_prompt) else self.empty_prompt
        x0_empty = self.denoiser(x_t, t, empty, controls)
        return x0_empty + self.scale * (x0 - x0_empty)


@dataclass(frozen=True)
class ControlGuided:
    """x0(blind) + weight (x0(controls) - x0(blind)), of a denoiser that has control branches.

    The difference is sigma^2 / alpha times grad log p(c | x_t), by Bayes' rule: an implicit
    classifier, so `weight` plays lambda for a control whose extractor has no gradient. At weight 1
    the two calls are one.
    """

    denoiser: Denoiser
    weight: float = 1.0

    def __call__(self, x_t: Tensor, t: Tensor, prompt: Prompt, controls: Controls | None = None) -> Tensor:
        x0 = self.denoiser(x_t, t, prompt, controls)
        if self.weight == 1:
            return x0
        blind = self.denoiser(x_t, t, prompt)
        return blind + self.weight * (x0 - blind)


@dataclass(frozen=True)
class PromptGuidance:
    """Guidance apart from the teacher that it guides: how strong, at which noise levels, and without which prompt."""

    weight: float  # beside an unguided teacher, scale - 1 of the coupled form
    timesteps: UniformTimesteps
    empty_prompt: Callable[[int], Prompt]  # batch size -> the prompt that asks for nothing
