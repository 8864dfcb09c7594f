"""What every family shares: a foreign network becomes `denoiser(x_t, t, prompt, controls) -> x0` here, once."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from jdmctl.diffusion.prediction import to_x0
from jdmctl.diffusion.schedule import DiscreteSchedule, expand
from jdmctl.types import Controls, Prompt


class DiffusionDenoiser(nn.Module):
    """Teacher, student and fake score alike: a backbone with control branches that answers with x0.

    A family subclasses it with `network`, the raw call. x0 is computed in float32, since 1/alpha is about 15 at
    Stable Diffusion's last timestep.
    """

    backbone: Any  # a family's own kind of network

    def __init__(self, backbone: nn.Module, schedule: DiscreteSchedule, prediction: str, student_time: float = 1.0):
        super().__init__()
        self.backbone = backbone
        self.schedule = schedule
        self.prediction = prediction
        self.student_time = student_time
        self.branches = nn.ModuleDict()
        self.control_scales: dict[str, float] = {}

    def network(self, x_t: Tensor, timestep: Tensor, prompt: Prompt, controls: Controls) -> Tensor:
        """The backbone's raw output [B, C, h, w] at integer timesteps [B]."""
        raise NotImplementedError

    def forward(self, x_t: Tensor, t: Tensor, prompt: Prompt, controls: Controls | None = None) -> Tensor:
        """x0 [B, C, h, w] in float32 from x_t [B, C, h, w] at times t [B] in [0, 1] (0 = clean)."""
        output = self.network(x_t, self.schedule.timestep(t), prompt, controls or {})
        alpha, sigma = expand(self.schedule.alpha(t), x_t), expand(self.schedule.sigma(t), x_t)
        return to_x0(self.prediction, output.float(), x_t.float(), alpha, sigma)

    def generate(self, noise: Tensor, prompt: Prompt, controls: Controls | None = None) -> Tensor:
        """The student's one call: noise [B, C, h, w] ~ N(0, I) at its own fixed time to x0."""
        t = torch.full((len(noise),), self.student_time, device=noise.device)
        return self(noise, t, prompt, controls)

    def trainable(self) -> tuple[nn.Parameter, ...]:
        return tuple(p for p in self.parameters() if p.requires_grad)
