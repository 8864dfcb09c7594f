"""A tiny random pipeline of each family, of the very classes that real ones have; the table of the contract test."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    EulerAncestralDiscreteScheduler,
    LCMScheduler,
    StableDiffusionControlNetPipeline,
    StableDiffusionXLControlNetPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from tiny_sd import byte_tokenizer, random_pipeline
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

ONE_STEP = {"num_inference_steps": 1, "guidance_scale": 1.0, "output_type": "pt"}
GUIDED = {"num_inference_steps": 3, "guidance_scale": 2.0}


@dataclass(frozen=True)
class Tiny:
    """A family's entry: `pipeline` makes a random teacher's pipeline; it may write a tokenizer into the folder given.

    `student_scheduler` takes the teacher's scheduler and gives that of a one-step student, with which the family's own
    pipeline, called with `one_step`, draws what `generate` and the codec draw. `guided` are the pipeline's arguments
    for the teacher's multi-step sampling at guidance 2 in 3 steps.
    """

    family: str
    pipeline: Callable[[Path], Any]
    control_pipeline: Any  # None where diffusers has none
    student_scheduler: Callable[[Any], Any]
    condition_argument: str = "image"
    control: Mapping[str, Any] = field(default_factory=dict)  # further arguments of `control_pipeline`
    one_step: Mapping[str, Any] = field(default_factory=lambda: ONE_STEP)
    guided: Mapping[str, Any] = field(default_factory=lambda: GUIDED)

    as_student: Callable[[Any], Any] = lambda pipeline: pipeline  # where students have another backbone
    student: Mapping[str, Any] = field(default_factory=dict)  # where it is not called at the last timestep
    latents: Callable[[Any], Any] = lambda noise: noise  # what the pipeline takes for noise
    pixels: Callable[[Any], Any] = lambda condition: condition  # what it takes for a condition in [0, 1]

    def __str__(self) -> str:
        return self.family

    def write(self, folder: Path) -> None:
        """teacher/ and student/, whose backbone differs a little from the teacher's."""
        torch.manual_seed(0)
        pipeline = self.pipeline(folder / "tokenizer-source")
        pipeline.save_pretrained(folder / "teacher")
        pipeline = self.as_student(pipeline)
        backbone = pipeline.components.get("unet") or pipeline.components["transformer"]
        with torch.no_grad():
            for parameter in backbone.parameters():
                parameter.add_(0.01 * torch.randn_like(parameter))
        pipeline.scheduler = self.student_scheduler(pipeline.scheduler)
        pipeline.save_pretrained(folder / "student")


def random_sdxl(scratch: Path) -> StableDiffusionXLPipeline:
    """64 px, latents [4, 16, 16], epsilon-prediction, two text encoders of 16 and 24 numbers, pooled 12."""
    tokenizer = byte_tokenizer(scratch)
    unet = UNet2DConditionModel(
        sample_size=16, block_out_channels=(16, 32), layers_per_block=1, norm_num_groups=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=(2, 4), transformer_layers_per_block=(1, 2), use_linear_projection=True,
        addition_embed_type="text_time", addition_time_embed_dim=8, projection_class_embeddings_input_dim=6 * 8 + 12,
        cross_attention_dim=16 + 24,
    )  # fmt: skip
    scheduler = DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", timestep_spacing="trailing",
        clip_sample=False, set_alpha_to_one=False, steps_offset=1,
    )  # fmt: skip
    return StableDiffusionXLPipeline(
        vae=tiny_vae(), text_encoder=CLIPTextModel(clip_config(tokenizer, 16)),
        text_encoder_2=CLIPTextModelWithProjection(clip_config(tokenizer, 24, projection_dim=12)),
        tokenizer=tokenizer, tokenizer_2=tokenizer, unet=unet, scheduler=scheduler, add_watermarker=False,
    )  # fmt: skip


def tiny_vae() -> AutoencoderKL:
    """64 px to latents [4, 16, 16]."""
    return AutoencoderKL(
        block_out_channels=[8, 8, 16], down_block_types=["DownEncoderBlock2D"] * 3,
        up_block_types=["UpDecoderBlock2D"] * 3, layers_per_block=1, latent_channels=4, norm_num_groups=4,
        sample_size=64, mid_block_add_attention=False, scaling_factor=0.13025,
    )  # fmt: skip


def clip_config(tokenizer: Any, width: int, **options: Any) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=width, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=32, bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id, **options,
    )  # fmt: skip


def lcm(scheduler: Any) -> LCMScheduler:
    """One step at timestep 999."""
    return LCMScheduler.from_config(scheduler.config)


def turbo(scheduler: Any) -> EulerAncestralDiscreteScheduler:
    """SDXL-Turbo's: one step at timestep 999 from noise times sigma."""
    return EulerAncestralDiscreteScheduler.from_config(scheduler.config, timestep_spacing="trailing")


FAMILIES = [
    Tiny("stable_diffusion", random_pipeline, StableDiffusionControlNetPipeline, lcm),
    Tiny("sdxl", random_sdxl, StableDiffusionXLControlNetPipeline, turbo),
]
