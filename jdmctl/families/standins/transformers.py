"""Tiny random pipelines of the families whose backbone is a transformer."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderDC,
    AutoencoderKL,
    AutoencoderKLQwenImage,
    DDIMScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    PixArtTransformer2DModel,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
    SanaPipeline,
    SanaSprintPipeline,
    SanaTransformer2DModel,
    SCMScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    ZImagePipeline,
    ZImageTransformer2DModel,
)
from transformers import (
    CLIPTextModel,
    CLIPTextModelWithProjection,
    Gemma2Config,
    Gemma2Model,
    GemmaTokenizer,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen3Config,
    Qwen3Model,
)

from jdmctl.families.standins.words import (
    LETTERS,
    byte_tokenizer,
    clip_config,
    letter_tokenizer,
    qwen_tokenizer,
    tiny_t5,
)


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


def random_pixart(pipeline_class: Any, scratch: Path, sample_size: int = 8) -> Any:
    """64 px, latents [4, 8, 8], epsilon with a learned variance beside it."""
    transformer = PixArtTransformer2DModel(
        sample_size=sample_size, num_layers=3, patch_size=2, attention_head_dim=8, num_attention_heads=3, in_channels=4,
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


SANA = dict(
    in_channels=4, out_channels=4, num_layers=3, num_attention_heads=2, attention_head_dim=8, sample_size=16,
    num_cross_attention_heads=2, cross_attention_head_dim=8, cross_attention_dim=16, caption_channels=16,
)  # fmt: skip


def random_sana(scratch: Path) -> SanaPipeline:
    """64 px, latents [4, 16, 16]."""
    vae = AutoencoderDC(
        latent_channels=4, attention_head_dim=4, encoder_block_types=("ResBlock", "ResBlock", "EfficientViTBlock"),
        decoder_block_types=("ResBlock", "ResBlock", "EfficientViTBlock"), encoder_block_out_channels=(8, 8, 16),
        decoder_block_out_channels=(8, 8, 16), encoder_layers_per_block=(1, 1, 1), decoder_layers_per_block=(1, 1, 1),
        encoder_qkv_multiscales=((), (), (5,)), decoder_qkv_multiscales=((), (), (5,)), scaling_factor=0.41407,
    )  # fmt: skip
    specials = ("<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "▁")
    tokenizer = GemmaTokenizer(vocab={token: i for i, token in enumerate((*specials, *LETTERS))}, merges=[])
    gemma = Gemma2Config(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, head_dim=8,
    )  # fmt: skip
    return SanaPipeline(
        transformer=SanaTransformer2DModel(**SANA), scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0), vae=vae,
        text_encoder=Gemma2Model(gemma), tokenizer=tokenizer,
    )  # fmt: skip


def sprint(pipeline: SanaPipeline) -> SanaSprintPipeline:
    """A SANA-Sprint of other weights with the same text encoder and VAE."""
    transformer = SanaTransformer2DModel(**SANA, guidance_embeds=True, qk_norm="rms_norm_across_heads")
    return SanaSprintPipeline(**pipeline.components | {"transformer": transformer, "scheduler": SCMScheduler()})


def random_qwen_image(scratch: Path) -> QwenImagePipeline:
    """64 px, latents [4, 16, 16] in tokens of 16 numbers, shift 3 at any size as Lightning has it."""
    vae = AutoencoderKLQwenImage(
        base_dim=8, z_dim=4, dim_mult=[1, 2, 2], num_res_blocks=1, temperal_downsample=[False, True],
        latents_mean=[0.1, -0.1, 0.2, 0.0], latents_std=[1.5, 0.5, 1.0, 2.0],
    )  # fmt: skip
    vae.register_to_config(sample_size=64)
    with torch.no_grad():
        vae.quant_conv.bias[4:] = -30
        vae.quant_conv.weight[4:] = 0
    transformer = QwenImageTransformer2DModel(
        in_channels=16, out_channels=4, num_layers=2, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=16, axes_dims_rope=(4, 4, 8),
    )  # fmt: skip
    tokenizer = qwen_tokenizer()
    small: dict[str, Any] = {"hidden_size": 16, "intermediate_size": 16}
    text = small | {"num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2}
    text |= {"vocab_size": 300, "rope_scaling": {"mrope_section": [1, 1, 2], "rope_type": "default"}}
    vision = small | {"depth": 1, "num_heads": 2, "out_hidden_size": 16}
    encoder = Qwen2_5_VLForConditionalGeneration(
        Qwen2_5_VLConfig(text_config=text, vision_config=vision, vision_start_token_id=290, vision_end_token_id=291,
                         vision_token_id=292, image_token_id=293, video_token_id=294)
    )  # fmt: skip
    scheduler = FlowMatchEulerDiscreteScheduler(
        use_dynamic_shifting=True, base_shift=math.log(3), max_shift=math.log(3)
    )
    return QwenImagePipeline(
        transformer=transformer, scheduler=scheduler, vae=vae, text_encoder=encoder, tokenizer=tokenizer
    )


def random_z_image(scratch: Path) -> ZImagePipeline:
    """64 px, latents [4, 16, 16], shift 3."""
    transformer = ZImageTransformer2DModel(
        in_channels=4, dim=32, n_layers=2, n_refiner_layers=1, n_heads=2, n_kv_heads=2, cap_feat_dim=16,
        axes_dims=[8, 4, 4], axes_lens=[128, 32, 32],
    )  # fmt: skip
    tokenizer = qwen_tokenizer()
    tokenizer.chat_template = "{% for message in messages %}<|im_start|>{{ message.content }}<|im_end|>{% endfor %}"
    qwen = Qwen3Config(
        vocab_size=300, hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, head_dim=8,
    )  # fmt: skip
    return ZImagePipeline(
        transformer=transformer, scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0), vae=sure_vae(),
        text_encoder=Qwen3Model(qwen), tokenizer=tokenizer,
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
