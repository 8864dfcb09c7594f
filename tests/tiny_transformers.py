"""Tiny random pipelines of the families whose backbone is a transformer; see tiny_pipelines."""

from __future__ import annotations

import string
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxControlNetPipeline,
    FluxPipeline,
    FluxTransformer2DModel,
    PixArtAlphaPipeline,
    PixArtSigmaPipeline,
    PixArtTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3ControlNetPipeline,
    StableDiffusion3Pipeline,
)
from tiny_pipelines import GUIDED, ONE_STEP, Tiny, clip_config, lcm
from tiny_sd import byte_tokenizer
from transformers import CLIPTextModel, CLIPTextModelWithProjection, T5Config, T5EncoderModel, T5Tokenizer

from jdmctl.families.transformer import pack

LETTERS = [letter for letter in string.printable if not letter.isspace()]


def random_sd3(scratch: Path) -> StableDiffusion3Pipeline:
    """64 px, latents [4, 16, 16], shift 3; CLIPs of 16 and 12 numbers, T5 of 32."""
    tokenizer = byte_tokenizer(scratch)
    transformer = SD3Transformer2DModel(
        sample_size=16, patch_size=2, in_channels=4, out_channels=4, num_layers=3, attention_head_dim=8,
        num_attention_heads=4, joint_attention_dim=32, caption_projection_dim=32, pooled_projection_dim=16 + 12,
        pos_embed_max_size=16, qk_norm="rms_norm", dual_attention_layers=(0,),
    )  # fmt: skip
    return StableDiffusion3Pipeline(
        transformer=transformer, scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0), vae=sure_vae(),
        text_encoder=CLIPTextModelWithProjection(clip_config(tokenizer, 16, projection_dim=16)), tokenizer=tokenizer,
        text_encoder_2=CLIPTextModelWithProjection(clip_config(tokenizer, 12, projection_dim=12)),
        tokenizer_2=tokenizer, text_encoder_3=tiny_t5(), tokenizer_3=letter_tokenizer(),
    )  # fmt: skip


def random_pixart(pipeline_class: Any, scratch: Path) -> Any:
    """64 px, latents [4, 8, 8], epsilon with a learned variance beside it."""
    transformer = PixArtTransformer2DModel(
        sample_size=8, num_layers=3, patch_size=2, attention_head_dim=8, num_attention_heads=3, in_channels=4,
        out_channels=8, cross_attention_dim=24, caption_channels=32,
    )  # fmt: skip
    scheduler = DDIMScheduler(
        beta_start=0.0001, beta_end=0.012, timestep_spacing="trailing", clip_sample=False, set_alpha_to_one=False,
        steps_offset=1,
    )  # fmt: skip
    return pipeline_class(
        transformer=transformer, scheduler=scheduler, vae=sure_vae(halvings=3, shift=None), text_encoder=tiny_t5(),
        tokenizer=letter_tokenizer(),
    )  # fmt: skip


def random_flux(scratch: Path) -> FluxPipeline:
    """64 px, latents [4, 16, 16] in tokens of 16 numbers."""
    tokenizer = byte_tokenizer(scratch)
    transformer = FluxTransformer2DModel(
        in_channels=16, num_layers=2, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=32, pooled_projection_dim=16, axes_dims_rope=(4, 4, 8),
    )  # fmt: skip
    return FluxPipeline(
        transformer=transformer, scheduler=FlowMatchEulerDiscreteScheduler(), vae=sure_vae(),
        text_encoder=CLIPTextModel(clip_config(tokenizer, 16)), tokenizer=tokenizer, text_encoder_2=tiny_t5(),
        tokenizer_2=letter_tokenizer(),
    )  # fmt: skip


def sure_vae(halvings: int = 2, channels: int = 4, shift: float | None = 0.06) -> AutoencoderKL:
    """Halves a side so often, shifted and all but without variance: pipelines draw a control's latent."""
    vae = AutoencoderKL(
        block_out_channels=[8] * halvings + [16], down_block_types=["DownEncoderBlock2D"] * (halvings + 1),
        up_block_types=["UpDecoderBlock2D"] * (halvings + 1), layers_per_block=1, latent_channels=channels,
        norm_num_groups=4, sample_size=64, mid_block_add_attention=False, scaling_factor=1.5, shift_factor=shift,
    )  # fmt: skip
    with torch.no_grad():
        vae.quant_conv.bias[channels:] = -30
        vae.quant_conv.weight[channels:] = 0
    return vae


def tiny_t5() -> T5EncoderModel:
    return T5EncoderModel(T5Config(vocab_size=100, d_model=32, d_kv=8, d_ff=32, num_layers=1, num_heads=4))


def letter_tokenizer() -> T5Tokenizer:
    """T5's, of single letters."""
    vocabulary = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0), *((c, -3.0) for c in LETTERS)]
    return T5Tokenizer(vocab=vocabulary, extra_ids=0)


def same(scheduler: Any) -> Any:
    return scheduler


def signed(condition: torch.Tensor) -> torch.Tensor:
    """Tensors pass these pipelines as they are, so they must be in [-1, 1]."""
    return 2 * condition - 1


UNBINNED = {"use_resolution_binning": False}
SIZE = {"height": 64, "width": 64}
SCHNELL = SIZE | {"max_sequence_length": 256}
TRUE_GUIDED = {"num_inference_steps": 3, "true_cfg_scale": 2.0, "negative_prompt": ["", ""]}
TRANSFORMERS = [
    *(
        Tiny(
            name,
            partial(random_pixart, pipeline),
            None,
            lcm,
            student={"student_timestep": 400},
            one_step=ONE_STEP | {"timesteps": [400]} | UNBINNED,
            guided=GUIDED | UNBINNED,
        )  # fmt: skip
        for name, pipeline in (("pixart_alpha", PixArtAlphaPipeline), ("pixart_sigma", PixArtSigmaPipeline))
    ),
    Tiny(
        "flux",
        random_flux,
        FluxControlNetPipeline,
        same,
        "control_image",
        latents=pack,
        pixels=signed,
        one_step=ONE_STEP | SIZE,
        guided=TRUE_GUIDED | SIZE,
    ),  # fmt: skip
    Tiny("sd3", random_sd3, StableDiffusion3ControlNetPipeline, same, "control_image", pixels=signed),
]
