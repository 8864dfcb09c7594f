"""Denoising score matching of control branches: how an ordinary ControlNet is trained."""

from dataclasses import dataclass

import torch
from torch import nn

from jdmctl.diffusion.schedule import Schedule, diffuse
from jdmctl.diffusion.timesteps import UniformTimesteps
from jdmctl.objectives.denoising import denoising_loss
from jdmctl.types import Batch, Codec, Denoiser, Losses, Phase


@dataclass(frozen=True)
class DSMStep:
    """Denoise true pictures given their conditions (Zhang et al. 2023, ControlNet, arXiv:2302.05543).

    As a warm-up it gives branches that already read the condition when JDM begins. `denoiser` is the
    frozen teacher with the branches plugged in; only they are trained.
    """

    denoiser: Denoiser
    codec: Codec
    schedule: Schedule
    timesteps: UniformTimesteps
    controls: tuple[str, ...]  # the branches that are trained; others stay out
    parameters: tuple[nn.Parameter, ...]  # theirs

    @property
    def phases(self) -> tuple[Phase, ...]:
        return (Phase("dsm", self.loss, self.parameters),)

    def loss(self, batch: Batch) -> Losses:
        """Needs the pictures behind the conditions."""
        if batch.images is None:
            raise ValueError("denoising score matching needs pictures")
        with torch.no_grad():
            x0 = self.codec.encode(batch.images)  # [B, C, h, w]
        t = self.timesteps(batch.draws.uniform("dsm_time"))
        x_t = diffuse(self.schedule, x0, batch.draws.normal("dsm_noise", tuple(x0.shape[1:])), t)
        conditions = {name: batch.conditions[name] for name in self.controls}
        prediction = self.denoiser(x_t, t, batch.prompt, conditions)
        alpha, sigma = self.schedule.alpha(t), self.schedule.sigma(t)
        total = denoising_loss(prediction, x0, alpha, sigma).mean()
        return Losses(total, {"dsm_loss": total.detach()})
