"""Constructors of the world's networks: small random-weight models of ordinary diffusers/transformers classes.

Sizes are chosen for two CPU cores and a package of at most 25 MB; nothing is trained here.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
    DepthAnythingConfig,
    DepthAnythingForDepthEstimation,
    Dinov2Config,
    GLPNConfig,
    GLPNForDepthEstimation,
    ResNetConfig,
    ResNetForImageClassification,
)

MAX_TOKENS = 32
TEXT_WIDTH = 96


def tokenizer(captions: Iterable[str], vocabulary_size: int = 1400) -> CLIPTokenizer:
    """CLIP's byte-level BPE, its merges learnt from `captions`, so that their words are single tokens."""
    bpe = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    bpe.normalizer = normalizers.Lowercase()
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Whitespace(), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    bpe.train_from_iterator(
        captions,
        trainers.BpeTrainer(
            vocab_size=vocabulary_size, initial_alphabet=alphabet, end_of_word_suffix="</w>", show_progress=False
        ),
    )
    merges = [
        " ".join(pair) if isinstance(pair, list) else pair for pair in json.loads(bpe.to_str())["model"]["merges"]
    ]
    learnt = ["".join(pair.split(" ")) for pair in merges]
    tokens = [*alphabet, *(c + "</w>" for c in alphabet), *learnt, "<|startoftext|>", "<|endoftext|>"]
    with tempfile.TemporaryDirectory() as folder:
        vocab, merges_file = Path(folder, "vocab.json"), Path(folder, "merges.txt")
        unique = list(dict.fromkeys(tokens))
        vocab.write_text(json.dumps({token: i for i, token in enumerate(unique)}, ensure_ascii=False))
        merges_file.write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
        return CLIPTokenizer(vocab=str(vocab), merges=str(merges_file), model_max_length=MAX_TOKENS)


def text_encoder(tokens: CLIPTokenizer) -> CLIPTextModel:
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokens),
            hidden_size=TEXT_WIDTH,
            intermediate_size=2 * TEXT_WIDTH,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=MAX_TOKENS,
            bos_token_id=tokens.bos_token_id,
            eos_token_id=tokens.eos_token_id,
            pad_token_id=tokens.pad_token_id,
        )
    )


def vae(latent_channels: int = 4, block_out_channels: tuple[int, ...] = (32, 48, 64)) -> AutoencoderKL:
    """64x64 pixels <-> a 16x16 latent."""
    levels = len(block_out_channels)
    return AutoencoderKL(
        block_out_channels=block_out_channels,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        layers_per_block=1,
        latent_channels=latent_channels,
        norm_num_groups=8,
        sample_size=64,
        mid_block_add_attention=False,
        force_upcast=False,
    )


def unet(latent_channels: int = 4, block_out_channels: tuple[int, ...] = (40, 80, 96)) -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=16,
        in_channels=latent_channels,
        out_channels=latent_channels,
        block_out_channels=block_out_channels,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=4,
        norm_num_groups=8,
    )


def teacher_scheduler() -> DDIMScheduler:
    """Stable Diffusion's noise schedule, v-prediction."""
    return DDIMScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type="v_prediction",
        timestep_spacing="trailing",
    )


def depth_network() -> DepthAnythingForDepthEstimation:
    """The depth network of the loss: a tiny vision transformer with Depth Anything's head."""
    network = DepthAnythingForDepthEstimation(
        DepthAnythingConfig(
            backbone_config=Dinov2Config(
                hidden_size=64,
                num_hidden_layers=4,
                num_attention_heads=4,
                mlp_ratio=2,
                image_size=64,
                patch_size=8,
                out_indices=[1, 2, 3, 4],
                apply_layernorm=True,
                reshape_hidden_states=False,
            ),
            patch_size=8,
            reassemble_hidden_size=64,
            reassemble_factors=[4, 2, 1, 0.5],
            neck_hidden_sizes=[24, 32, 48, 64],
            fusion_hidden_size=24,
            head_in_index=-1,
            head_hidden_size=16,
        )
    )
    torch.nn.init.constant_(network.head.conv3.bias, 0.3)  # its last ReLU is easily born dead
    return network


def heldout_depth_network() -> GLPNForDepthEstimation:
    """The depth network that only scores: a hierarchical transformer with GLPN's decoder, another architecture."""
    return GLPNForDepthEstimation(
        GLPNConfig(
            num_encoder_blocks=4,
            depths=[1, 1, 1, 1],
            sr_ratios=[4, 2, 1, 1],
            hidden_sizes=[24, 32, 48, 64],
            patch_sizes=[7, 3, 3, 3],
            strides=[4, 2, 2, 2],
            num_attention_heads=[1, 2, 2, 4],
            mlp_ratios=[2, 2, 2, 2],
            decoder_hidden_size=32,
            max_depth=1,
            drop_path_rate=0.0,
        )
    )


def classifier(labels: list[str]) -> ResNetForImageClassification:
    """Multi-label classifier, one logit a label such as `color: red`; its pooled features serve Frechet distances."""
    return ResNetForImageClassification(
        ResNetConfig(
            embedding_size=24,
            hidden_sizes=[24, 48, 96],
            depths=[1, 1, 1],
            layer_type="basic",
            num_labels=len(labels),
            id2label=dict(enumerate(labels)),
            label2id={label: i for i, label in enumerate(labels)},
        )
    )
