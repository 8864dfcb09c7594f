"""Diffusers' schedulers for backbones with a table of noise levels (DDPM's kind), made from a scheduler's config."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler, LCMScheduler

from jdmctl.diffusion.schedule import DiscreteSchedule


def discrete_schedule(config: Mapping[str, Any]) -> tuple[DiscreteSchedule, str]:
    """The schedule and the prediction type that a config means."""
    scheduler = DDIMScheduler.from_config(config)
    return DiscreteSchedule.from_diffusers(scheduler), scheduler.config.prediction_type


def ddim(config: Mapping[str, Any], num_steps: int, device: torch.device) -> DDIMScheduler:
    """Deterministic sampling at trailing timesteps.

    Schedulers that do not clip x0 say nothing of it, which DDIM would take for yes.
    """
    scheduler = DDIMScheduler.from_config({"clip_sample": False, **config}, timestep_spacing="trailing")
    scheduler.set_timesteps(num_steps, device=device)
    return scheduler


def one_step(config: Mapping[str, Any], prediction: str, noise_scale: float) -> Any:
    """What draws x0 in one step at the last timestep, from noise that is scaled as it was in training."""
    found = DDIMScheduler.from_config(config).config
    keep = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas")
    schedule = {name: found[name] for name in (*keep, "rescale_betas_zero_snr")}
    schedule |= {"prediction_type": prediction, "steps_offset": 1}
    if noise_scale != 1:
        return EulerDiscreteScheduler(**schedule, timestep_spacing="trailing")
    return LCMScheduler(**schedule, clip_sample=False)
