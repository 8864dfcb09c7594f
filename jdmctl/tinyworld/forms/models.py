"""The world's other forms before any training: ordinary pipelines of other families around its VAE and its words."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import (
    DDIMScheduler,
    FlowMatchEulerDiscreteScheduler,
    PixArtAlphaPipeline,
    PixArtTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from torch import nn
from transformers import (
    CLIPTextModel,
    CLIPTextModelWithProjection,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

from jdmctl.tinyworld.models import MAX_TOKENS, TEXT_WIDTH, teacher_scheduler

_MOST_WORDS = 2000


@dataclass(frozen=True)
class Form:
    """A family, and what makes a pipeline of it from the world's own teacher and captions."""

    family: str
    pipeline: Callable[[StableDiffusionPipeline, Iterable[str]], Any]
    num_steps: int  # of the teacher
    learning_rate: float
    student_timestep: int | None = None  # None: its last


def sdxl(world: StableDiffusionPipeline, captions: Iterable[str]) -> StableDiffusionXLPipeline:
    """The world's UNet with SDXL's words and sizes, predicting epsilon.

    What SDXL adds is silent at first: the second encoder's columns of keys and values, and what is added to the time.
    """
    config = dict(world.unet.config) | {
        "cross_attention_dim": 2 * TEXT_WIDTH, "addition_embed_type": "text_time", "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 6 * 8 + TEXT_WIDTH,
    }  # fmt: skip
    unet = UNet2DConditionModel.from_config(config)
    weights = unet.state_dict()
    with torch.no_grad():
        for name, value in world.unet.state_dict().items():
            if weights[name].shape != value.shape:
                weights[name].zero_()
            weights[name][tuple(map(slice, value.shape))] = value
        for silent in unet.add_embedding.linear_2.parameters():
            silent.zero_()
    return StableDiffusionXLPipeline(
        vae=world.vae, unet=unet, scheduler=_noise(), force_zeros_for_empty_prompt=False, add_watermarker=False,
        text_encoder=clip(world, CLIPTextModel), tokenizer=world.tokenizer,
        text_encoder_2=clip(world, CLIPTextModelWithProjection), tokenizer_2=world.tokenizer,
    )  # fmt: skip


def pixart(world: StableDiffusionPipeline, captions: Iterable[str]) -> PixArtAlphaPipeline:
    """A transformer of 64 tokens that predicts epsilon, told by a T5."""
    words = t5_tokenizer(captions)
    transformer = PixArtTransformer2DModel(
        sample_size=16, patch_size=2, in_channels=4, out_channels=4, num_layers=8, num_attention_heads=4,
        attention_head_dim=32, cross_attention_dim=128, caption_channels=TEXT_WIDTH,
    )  # fmt: skip
    return PixArtAlphaPipeline(
        vae=world.vae, transformer=transformer, scheduler=_noise(), text_encoder=t5(TEXT_WIDTH, words), tokenizer=words
    )


def sd3(world: StableDiffusionPipeline, captions: Iterable[str]) -> StableDiffusion3Pipeline:
    """A multimodal transformer of 64 tokens on the straight path from noise, told by two CLIPs and a T5."""
    world.vae.register_to_config(shift_factor=0.0)  # its pipeline wants a number
    transformer = SD3Transformer2DModel(
        sample_size=16, patch_size=2, in_channels=4, out_channels=4, num_layers=6, num_attention_heads=4,
        attention_head_dim=32, caption_projection_dim=128, joint_attention_dim=2 * TEXT_WIDTH,
        pooled_projection_dim=2 * TEXT_WIDTH, pos_embed_max_size=16, qk_norm="rms_norm",
    )  # fmt: skip
    first, second = (clip(world, CLIPTextModelWithProjection) for _ in range(2))
    words = t5_tokenizer(captions)
    return StableDiffusion3Pipeline(
        vae=world.vae, transformer=transformer, scheduler=FlowMatchEulerDiscreteScheduler(),
        text_encoder=first, tokenizer=world.tokenizer, text_encoder_2=second, tokenizer_2=world.tokenizer,
        text_encoder_3=t5(2 * TEXT_WIDTH, words), tokenizer_3=words,
    )  # fmt: skip


FORMS = {
    "sdxl": Form("sdxl", sdxl, 1000, 5e-4, student_timestep=399),
    "pixart": Form("pixart_alpha", pixart, 6000, 1e-3, student_timestep=400),
    "sd3": Form("sd3", sd3, 6000, 1e-3),
}


def clip(world: StableDiffusionPipeline, kind: Any) -> Any:
    """The world's own text encoder, and a last layer that does nothing yet: these families read the one before it."""
    config = copy.deepcopy(world.text_encoder.config)
    config.num_hidden_layers += 1
    config.projection_dim = TEXT_WIDTH
    encoder = kind(config)
    body = getattr(encoder, "text_model", encoder)
    body.load_state_dict(body.state_dict() | world.text_encoder.state_dict())
    last = body.encoder.layers[-1]
    for silent in (*last.self_attn.out_proj.parameters(), *last.mlp.fc2.parameters()):
        nn.init.zeros_(silent)
    return encoder


def t5(width: int, words: T5Tokenizer) -> T5EncoderModel:
    return T5EncoderModel(
        T5Config(
            vocab_size=len(words), d_model=width, d_kv=width // 4, d_ff=2 * width, num_layers=2, num_heads=4,
            feed_forward_proj="gated-gelu", dropout_rate=0.0,
        )
    )  # fmt: skip


def t5_tokenizer(captions: Iterable[str]) -> T5Tokenizer:
    """T5's unigrams: the commonest words of the captions, and the single letters of the others."""
    counts = Counter(word for text in captions for word in text.lower().split())
    common = [(f"▁{word}", -1.0) for word, _ in counts.most_common(_MOST_WORDS)]
    letters = sorted(set("".join(counts)) | set(map(chr, range(33, 127))))
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -10.0), *common, *((c, -10.0) for c in letters)]
    return T5Tokenizer(vocab=list(dict(pieces).items()), extra_ids=0, model_max_length=MAX_TOKENS)


def _noise() -> DDIMScheduler:
    """Stable Diffusion's, of epsilon."""
    return DDIMScheduler.from_config(teacher_scheduler().config, prediction_type="epsilon")
