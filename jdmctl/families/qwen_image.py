"""Qwen-Image (Wu et al. 2025, arXiv:2508.02324), its Lightning students too."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from diffusers import (
    AutoencoderKLQwenImage,
    QwenImageControlNetModel,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
)
from torch import Tensor
from transformers import Qwen2_5_VLForConditionalGeneration, Qwen2Tokenizer

from jdmctl.families.codec import FrameCodec
from jdmctl.families.transformer import TransformerDenoiser, pack, unpack
from jdmctl.families.transformer_family import FlowFamily
from jdmctl.types import Codec, Controls, Prompt


class QwenImageDenoiser(TransformerDenoiser):
    text_mask = "encoder_hidden_states_mask"

    def network(self, x_t: Tensor, timestep: Tensor, prompt: Prompt, controls: Controls) -> Tensor:
        rows, columns = (side // 2 for side in x_t.shape[-2:])
        told = dict(
            hidden_states=pack(x_t), timestep=timestep / 1000, img_shapes=[[(1, rows, columns)]] * len(x_t),
            return_dict=False, **prompt,
        )  # fmt: skip

        def branch_adds(branch: QwenImageControlNetModel, condition: Tensor, scale: float) -> Sequence[Tensor]:
            return branch(controlnet_cond=pack(condition), conditioning_scale=scale, **told)

        output = self.backbone(controlnet_block_samples=self.added(controls, branch_adds), **told)[0]
        return unpack(output, like=x_t)


class QwenImage(FlowFamily):
    name = "qwen_image"
    pipelines = ("QwenImagePipeline", "QwenImageControlNetPipeline")
    pipeline_class = QwenImagePipeline
    backbone_class = QwenImageTransformer2DModel
    denoiser_class = QwenImageDenoiser
    part_classes = {
        "vae": AutoencoderKLQwenImage,
        "tokenizer": Qwen2Tokenizer,
        "text_encoder": Qwen2_5_VLForConditionalGeneration,
    }
    layout = torch.preserve_format
    lora_targets = (
        *FlowFamily.lora_targets, "img_mlp.net.0.proj", "img_mlp.net.2", "txt_mlp.net.0.proj", "txt_mlp.net.2",
    )  # fmt: skip
    must_agree = ("in_channels", "joint_attention_dim", "patch_size")
    branch_class = QwenImageControlNetModel
    branch_config = {"num_layers": 5}  # diffusers' own number
    branch_input = "controlnet_x_embedder"
    branch_fits = (
        "in_channels", "num_attention_heads", "attention_head_dim", "joint_attention_dim", "axes_dims_rope",
    )  # fmt: skip
    branch_lacks = {"extra_condition_channels": "one for inpainting"}

    @property
    def latent_channels(self) -> int:
        return self.student.backbone.config.in_channels // 4

    @property
    def pixels_per_latent(self) -> int:
        return 2 ** len(self.parts["vae"].config.temperal_downsample)

    def make_codec(self) -> Codec:
        return FrameCodec(self.parts["vae"])

    @property
    def call_options(self) -> dict[str, Any]:
        """Its guidance goes by another name; the usual one is for networks that are told a scale."""
        size = {name: value for name, value in super().call_options.items() if name != "guidance_scale"}
        return {"true_cfg_scale": 1.0} | size

    @staticmethod
    def guide(output: Tensor, free: Tensor, scale: float) -> Tensor:
        """Guidance that keeps each token's length, as QwenImagePipeline has it."""
        tokens, guided = pack(output), pack(free + scale * (output - free))
        return unpack(guided * tokens.norm(dim=-1, keepdim=True) / guided.norm(dim=-1, keepdim=True), like=output)

    @torch.no_grad()
    def encode_prompt(self, texts: Sequence[str]) -> dict[str, Tensor]:
        words, mask = self.text_pipeline.encode_prompt(list(texts), device=self.text_device)
        if mask is None:  # nothing is padding
            mask = torch.ones(words.shape[:2], dtype=torch.long, device=words.device)
        return {"encoder_hidden_states": words, "encoder_hidden_states_mask": mask}
