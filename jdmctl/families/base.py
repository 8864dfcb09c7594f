"""What every family shares: a foreign network becomes `denoiser(x_t, t, prompt, controls) -> x0` here, once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from jdmctl.diffusion.prediction import to_x0
from jdmctl.diffusion.schedule import NetworkSchedule, expand
from jdmctl.families.checkpointing import kept_activations
from jdmctl.types import Controls, Prompt


class DiffusionDenoiser(nn.Module):
    """Teacher, student and fake score alike: a backbone with control branches that answers with x0.

    A family subclasses it with `network`, the raw call. x0 is computed in float32, since 1/alpha is about 15 at
    Stable Diffusion's last timestep. `noise_scale` multiplies the noise that a student starts from.
    """

    backbone: Any  # a family's own kind of network

    def __init__(
        self,
        backbone: nn.Module,
        schedule: NetworkSchedule,
        prediction: str,
        student_time: float = 1.0,
        noise_scale: float = 1.0,
    ):
        super().__init__()
        self.backbone = backbone
        self.schedule = schedule
        self.prediction = prediction
        self.student_time = student_time
        self.noise_scale = noise_scale
        self.branches = nn.ModuleDict()
        self.control_scales: dict[str, float] = {}

    def network(self, x_t: Tensor, timestep: Tensor, prompt: Prompt, controls: Controls) -> Tensor:
        """The backbone's raw output [B, C, h, w] at the schedule's timesteps [B]."""
        raise NotImplementedError

    def forward(self, x_t: Tensor, t: Tensor, prompt: Prompt, controls: Controls | None = None) -> Tensor:
        """x0 [B, C, h, w] in float32 from x_t [B, C, h, w] at times t [B] in [0, 1] (0 = clean)."""
        output = self.network(x_t, self.schedule.timestep(t), prompt, controls or {})
        alpha, sigma = expand(self.schedule.alpha(t), x_t), expand(self.schedule.sigma(t), x_t)
        return to_x0(self.prediction, output.float(), x_t.float(), alpha, sigma)

    def generate(self, noise: Tensor, prompt: Prompt, controls: Controls | None = None) -> Tensor:
        """The student's one call: noise [B, C, h, w] ~ N(0, I) at its own fixed time to x0."""
        t = torch.full((len(noise),), self.student_time, device=noise.device)
        return self(noise if self.noise_scale == 1 else self.noise_scale * noise, t, prompt, controls)

    def features(self, x_t: Tensor, t: Tensor, prompt: Prompt, controls: Controls | None = None) -> list[Tensor]:
        """What the backbone sees in x_t: maps [B, feature_channels[i], h_i, w_i], for heads to read.

        Its weights get no gradient, x_t does.
        """
        raise NotImplementedError

    @property
    def feature_channels(self) -> tuple[int, ...]:
        raise NotImplementedError

    def summary(self, prompt: Prompt) -> Tensor:
        """A prompt as one vector each, [B, summary_width]."""
        raise NotImplementedError

    @property
    def summary_width(self) -> int:
        raise NotImplementedError

    def trainable(self) -> tuple[nn.Parameter, ...]:
        return tuple(p for p in self.parameters() if p.requires_grad)


@contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
    """Inside, nothing computed can send a gradient to the module's parameters; inputs still get theirs."""
    trainable = [p for p in module.parameters() if p.requires_grad]
    for parameter in trainable:
        parameter.requires_grad_(False)
    try:
        with kept_activations(module):
            yield
    finally:
        for parameter in trainable:
            parameter.requires_grad_(True)
