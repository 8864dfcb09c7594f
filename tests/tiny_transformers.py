"""Tiny random pipelines of the families whose backbone is a transformer; see tiny_pipelines."""

from __future__ import annotations

import math
import string
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderDC,
    AutoencoderKL,
    AutoencoderKLQwenImage,
    DDIMScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxControlNetPipeline,
    FluxPipeline,
    FluxTransformer2DModel,
    PixArtAlphaPipeline,
    PixArtSigmaPipeline,
    PixArtTransformer2DModel,
    QwenImageControlNetPipeline,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
    SanaPipeline,
    SanaSprintPipeline,
    SanaTransformer2DModel,
    SCMScheduler,
    SD3Transformer2DModel,
    StableDiffusion3ControlNetPipeline,
    StableDiffusion3Pipeline,
    ZImageControlNetPipeline,
    ZImagePipeline,
    ZImageTransformer2DModel,
)
from tiny_pipelines import GUIDED, ONE_STEP, Tiny, clip_config, lcm
from tiny_sd import byte_tokenizer
from tokenizers.pre_tokenizers import ByteLevel
from transformers import (
    CLIPTextModel,
    CLIPTextModelWithProjection,
    Gemma2Config,
    Gemma2Model,
    GemmaTokenizer,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Tokenizer,
    Qwen3Config,
    Qwen3Model,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

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
    small = {"hidden_size": 16, "intermediate_size": 16}
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


def qwen_tokenizer() -> Qwen2Tokenizer:
    """Qwen's, of single bytes."""
    tokens = (*sorted(ByteLevel.alphabet()), "<|endoftext|>", "<|im_start|>", "<|im_end|>")
    return Qwen2Tokenizer(vocab={token: i for i, token in enumerate(tokens)}, merges=[])


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
DISTILLED = {"num_inference_steps": 1, "output_type": "pt"}
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
        one_step=ONE_STEP | SCHNELL,
        guided=TRUE_GUIDED | SCHNELL,
    ),  # fmt: skip
    Tiny(
        "qwen_image",
        random_qwen_image,
        QwenImageControlNetPipeline,
        same,
        "control_image",
        latents=pack,
        pixels=signed,
        one_step=DISTILLED | SIZE,
        guided=TRUE_GUIDED | SIZE,
    ),  # fmt: skip
    Tiny(
        "sana",
        random_sana,
        None,
        same,
        as_student=sprint,
        guided=GUIDED | UNBINNED | SIZE,
        one_step={"num_inference_steps": 1, "intermediate_timesteps": None, "output_type": "pt"} | UNBINNED | SIZE,
    ),  # fmt: skip
    Tiny("sd3", random_sd3, StableDiffusion3ControlNetPipeline, same, "control_image", pixels=signed),
    Tiny(
        "z_image",
        random_z_image,
        ZImageControlNetPipeline,
        same,
        "control_image",
        pixels=signed,
        control={"controlnet_conditioning_scale": 1.0},
        one_step=ONE_STEP | SIZE | {"guidance_scale": 0.0},
        guided=GUIDED | SIZE | {"guidance_scale": 1.0},  # which this pipeline counts from 0
    ),  # fmt: skip
]
