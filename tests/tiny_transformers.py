"""Tiny random pipelines of the families whose backbone is a transformer; see tiny_pipelines."""

from __future__ import annotations

import string
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3ControlNetPipeline,
    StableDiffusion3Pipeline,
)
from tiny_pipelines import Tiny, clip_config
from tiny_sd import byte_tokenizer
from transformers import CLIPTextModelWithProjection, T5Config, T5EncoderModel, T5Tokenizer

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


def sure_vae(halvings: int = 2, channels: int = 4) -> AutoencoderKL:
    """64 px to latents [channels, 16, 16], shifted and all but without variance: pipelines draw a control's latent."""
    vae = AutoencoderKL(
        block_out_channels=[8] * halvings + [16], down_block_types=["DownEncoderBlock2D"] * (halvings + 1),
        up_block_types=["UpDecoderBlock2D"] * (halvings + 1), layers_per_block=1, latent_channels=channels,
        norm_num_groups=4, sample_size=64, mid_block_add_attention=False, scaling_factor=1.5, shift_factor=0.06,
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


TRANSFORMERS = [
    Tiny("sd3", random_sd3, StableDiffusion3ControlNetPipeline, same, "control_image", pixels=signed),
]
