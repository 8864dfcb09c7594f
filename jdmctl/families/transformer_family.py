"""What families with a transformer share: text by the pipeline's own encoders, branches, flow sampling."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import nn

from jdmctl.diffusion.schedule import NetworkSchedule, RectifiedFlow
from jdmctl.errors import ConditionMismatchError
from jdmctl.families.base import DiffusionDenoiser
from jdmctl.families.branches import require_fit
from jdmctl.families.family import Family
from jdmctl.families.folders import load_component, read_config
from jdmctl.families.transformer import TransformerDenoiser


class TransformerFamily(Family):
    subfolder = "transformer"
    any_aspect = True
    encodes_conditions = True
    # Every linear of a transformer's blocks, by the names that diffusers gives them; none has all.
    lora_targets: ClassVar[tuple[str, ...]] = (
        "to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out",
        "ff.net.0.proj", "ff.net.2", "ff_context.net.0.proj", "ff_context.net.2", "proj_mlp", "proj_out",
    )  # fmt: skip

    denoiser_class: ClassVar[type[TransformerDenoiser]]
    branch_class: ClassVar[Any]
    branch_config: ClassVar[Mapping[str, Any]]  # of a new branch, beside what it has from the backbone; depths at most
    branch_input: ClassVar[str]  # the layer of a branch that a condition enters by, zero in diffusers
    branch_fits: ClassVar[tuple[str, ...]]  # keys of its config that are the backbone's
    branch_lacks: ClassVar[Mapping[str, str]] = {}  # keys that other kinds have, which want another call: what they are

    @property
    def latent_side(self) -> int:
        """Of a picture as large as the transformer's config says, or the VAE's, or 1024 px."""
        in_pixels = self.parts["vae"].config.get("sample_size") or 1024
        return self.student.backbone.config.get("sample_size") or in_pixels // self.pixels_per_latent

    @property
    def side_step_px(self) -> int:
        return self.pixels_per_latent * self.denoiser_class.patch

    @property
    def call_options(self) -> dict[str, Any]:
        """The size too: not every pipeline takes it from its parts."""
        return super().call_options | {"height": self.resolution_px, "width": self.resolution_px}

    @functools.cached_property
    def text_pipeline(self) -> Any:
        """The diffusers pipeline, for its encode_prompt; it holds no backbone."""
        return self.pipeline_class(**self.parts, transformer=None, scheduler=None, **self.pipeline_options)

    @property
    def text_device(self) -> torch.device:
        return self.parts["text_encoder"].device

    def equip(self, denoiser: Any) -> None:
        codec = self.codec
        denoiser.encode_condition = lambda image: codec.encode(image)  # a function: copies of a denoiser share the VAE

    def new_branch(self, denoiser: DiffusionDenoiser) -> nn.Module:
        """A ControlNet that starts as the backbone's first blocks."""
        config = dict(denoiser.backbone.config)
        depths = {key: min(config[key], number) for key, number in self.branch_config.items() if key in config}
        known = inspect.signature(self.branch_class.__init__).parameters
        wanted = {key: value for key, value in (config | dict(self.branch_config) | depths).items() if key in known}
        branch = self.branch_class(**wanted)
        own, start = branch.state_dict(), denoiser.backbone.state_dict()
        fits = {name: start[name] for name, value in own.items() if name in start and start[name].shape == value.shape}
        branch.load_state_dict(fits, strict=False)
        # diffusers zeroes this too; but the outputs are zero already, and behind two zeros in a row no gradient
        # reaches the condition at first
        branch.get_submodule(self.branch_input).reset_parameters()
        return branch

    def load_branch(self, source: str | Path, denoiser: DiffusionDenoiser) -> nn.Module:
        kind = read_config(source, None, "config.json").get("_class_name")
        if kind != self.branch_class.__name__:
            raise ConditionMismatchError(
                f"the control branch at {source} is a {kind}, and the family {self.name} takes a "
                f"{self.branch_class.__name__}",
                hint="give a ControlNet made for the same backbone, or start from the student (init: student)",
            )
        branch = load_component(self.branch_class, source, None)
        require_fit("ControlNet", source, branch.config, denoiser.backbone.config, self.branch_fits)
        for key, kind in self.branch_lacks.items():
            if branch.config[key] not in (None, 0):
                raise ConditionMismatchError(
                    f"the ControlNet at {source} is {kind} ({key} {branch.config[key]}), which wants another call",
                    hint="give a plain ControlNet of one control, or start from the student (init: student)",
                )
        return branch


class FlowFamily(TransformerFamily):
    even_sigmas: ClassVar[bool] = True  # before the shift, as its pipeline steps

    @classmethod
    def make_schedule(cls, config: Mapping[str, Any], backbone: nn.Module) -> tuple[NetworkSchedule, str]:
        return RectifiedFlow.from_diffusers(config), "flow_prediction"

    def __init__(self, *args: Any, **options: Any):
        super().__init__(*args, **options)
        self._fit_shift()

    def draw_at(self, resolution_px: int) -> None:
        super().draw_at(resolution_px)
        self._fit_shift()

    def make_sampler(self, num_steps: int, device: torch.device) -> Any:
        """Euler's method, shifted as the teacher is."""
        last = self.sampler_config.get("shift_terminal") if num_steps > 1 else None
        shift, is_dynamic = self._shift(self.teacher), self._is_dynamic
        scheduler = FlowMatchEulerDiscreteScheduler(shift=shift, shift_terminal=last, use_dynamic_shifting=is_dynamic)
        sigmas = np.linspace(1.0, 1 / num_steps, num_steps).tolist() if self.even_sigmas else None
        scheduler.set_timesteps(num_steps, sigmas=sigmas, device=device, mu=math.log(shift) if is_dynamic else None)
        return scheduler

    def one_step_scheduler(self) -> Any:
        return FlowMatchEulerDiscreteScheduler(shift=self._shift(self.student))

    @property
    def _is_dynamic(self) -> bool:
        return bool(self.sampler_config.get("use_dynamic_shifting"))

    def _fit_shift(self) -> None:
        """Where the teacher's shift depends on how many tokens a picture has, let it be that of the family's square.

        The student's stays: its one call is at the time that it was trained for.
        """
        if self._is_dynamic:
            number = math.prod(side // self.denoiser_class.patch for side in self.latent_shape[1:])
            self.teacher.schedule = RectifiedFlow.from_diffusers(self.sampler_config, number)

    @staticmethod
    def _shift(denoiser: Any) -> float:
        return denoiser.schedule.shift
