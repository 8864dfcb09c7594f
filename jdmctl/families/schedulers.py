"""Diffusers' schedulers for backbones with a table of noise levels (DDPM's kind), made from a scheduler's config."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import diffusers
import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler, LCMScheduler

from jdmctl.diffusion.schedule import DiscreteSchedule
from jdmctl.errors import BadInputError


def discrete_schedule(config: Mapping[str, Any]) -> tuple[DiscreteSchedule, str]:
    """The schedule and the prediction type that a config means.

    Raises:
        BadInputError: it means other noise levels than a table's.
    """
    _require_table(config)
    scheduler = DDIMScheduler.from_config(config)
    return DiscreteSchedule.from_diffusers(scheduler), scheduler.config.prediction_type


def _require_table(config: Mapping[str, Any]) -> None:
    """Of a class without betas, DDIM would take its own defaults for what the config does not say."""
    name = str(config.get("_class_name", ""))
    kind = getattr(diffusers, name, None)
    is_flow = bool(config.get("use_flow_sigmas"))
    if is_flow or (kind and "beta_schedule" not in inspect.signature(kind).parameters):
        raise BadInputError(
            f"scheduler/scheduler_config.json names {name}{' with use_flow_sigmas' * is_flow}, whose noise levels are "
            "no table of betas, as this family's are",
            hint="give a teacher and a student that were trained with such a table; EDM's models (Playground v2.5) and "
            "flow models have none",
        )


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
