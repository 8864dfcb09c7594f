"""What families with a UNet2DConditionModel share: the backbone, control branches beside it, LoRA targets."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    ControlNetModel,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    UNet2DConditionModel,
)
from torch import Tensor, nn

from jdmctl.errors import BadInputError
from jdmctl.families.base import DiffusionDenoiser
from jdmctl.families.family import Family
from jdmctl.families.low_precision import train_in_float32
from jdmctl.families.prompts import cut_off
from jdmctl.families.unet_branches import ControlNetLora, load_branch, new_adapter

# Schedulers in whose terms x = x0 + sigma noise; the others start from N(0, 1)
_EXPLODING = {kind.__name__: kind for kind in (EulerDiscreteScheduler, EulerAncestralDiscreteScheduler)}


class UNetFamily(Family):
    backbone_class = UNet2DConditionModel
    subfolder = "unet"
    any_aspect = True
    must_agree = ("in_channels", "cross_attention_dim", "addition_embed_type")
    # Every linear and convolution of a UNet's blocks; attention alone is too little to follow a moving student.
    lora_targets = (
        "to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2", "proj_in", "proj_out",
        "conv1", "conv2", "conv_shortcut", "time_emb_proj", "conv_in", "conv_out",
    )  # fmt: skip

    @classmethod
    def require_same(cls, wanted: Any, found: Any, name: str, other: str) -> None:
        if found.config["time_cond_proj_dim"]:
            raise BadInputError(
                f"the UNet of {name} takes a guidance scale as input (time_cond_proj_dim), which is not supported",
                hint="for a Latent Consistency Model, give its LoRA as the student",
            )
        super().require_same(wanted, found, name, other)

    @classmethod
    def lora_layers(cls, weights: Mapping[str, Tensor], backbone: Any) -> tuple[Mapping[str, Tensor], Any]:
        return cls.pipeline_class.lora_state_dict(dict(weights), unet_config=backbone.config)

    def cut_off(self, text: str) -> str:
        return cut_off(self.parts["tokenizer"], text)

    def draw_at(self, resolution_px: int) -> None:
        super().draw_at(resolution_px)
        self.student.backbone.register_to_config(sample_size=self.latent_shape[1])  # so that a saved student says it

    @classmethod
    def noise_scale(cls, config: Mapping[str, Any]) -> float:
        """sigma of the last timestep where a pipeline's own scheduler gives its network that much noise: Turbo's."""
        if config["_class_name"] not in _EXPLODING:
            return 1.0
        scheduler = _EXPLODING[config["_class_name"]].from_config(config)
        scheduler.set_timesteps(1)
        noise = torch.as_tensor(scheduler.init_noise_sigma, dtype=torch.float64)
        return float(scheduler.scale_model_input(noise, scheduler.timesteps[0]))

    def new_branch(self, denoiser: DiffusionDenoiser) -> nn.Module:
        """A ControlNet: a copy of the UNet's encoder."""
        return self._controlnet(ControlNetModel, denoiser)

    def light_branch(self, denoiser: DiffusionDenoiser, kind: str, rank: int) -> nn.Module:
        if kind == "controlnet_lora":
            branch = self._controlnet(ControlNetLora, denoiser)
            branch.borrow(denoiser.backbone, self.lora_targets, rank)
            return branch
        if kind == "t2i_adapter":
            return new_adapter(denoiser.backbone, self.pixels_per_latent)
        return super().light_branch(denoiser, kind, rank)

    def train_branch(self, branch: nn.Module) -> None:
        if isinstance(branch, ControlNetLora):
            branch.open()
            train_in_float32(branch)
        else:
            super().train_branch(branch)

    def save_control_branch(self, name: str, folder: str | Path) -> None:
        """Write the student's branch as an ordinary diffusers `ControlNetModel` or `T2IAdapter` folder."""
        branch: Any = self.student.branches[name]
        branch = branch.merged() if isinstance(branch, ControlNetLora) else branch
        branch.save_pretrained(folder, safe_serialization=True)

    def load_branch(self, source: str | Path, denoiser: DiffusionDenoiser) -> nn.Module:
        return load_branch(source, denoiser.backbone, self.pixels_per_latent)

    def _controlnet(self, kind: Any, denoiser: DiffusionDenoiser) -> Any:
        branch = kind.from_unet(denoiser.backbone, conditioning_embedding_out_channels=self._embedding_channels())
        # diffusers zeroes this too; but the outputs are zero already, and behind two zeros in a row no gradient
        # reaches the condition at first
        branch.controlnet_cond_embedding.conv_out.reset_parameters()
        return branch

    def _embedding_channels(self) -> tuple[int, ...]:
        """ControlNet's widths, as many as bring a condition down to the latent's size: one halving after the first."""
        return (16, 32, 96, 256)[: self.pixels_per_latent.bit_length()]
