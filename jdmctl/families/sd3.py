"""Stable Diffusion 3 and 3.5 (Esser et al. 2024, arXiv:2403.03206), their turbos too."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from diffusers import AutoencoderKL, SD3ControlNetModel, SD3Transformer2DModel, StableDiffusion3Pipeline
from torch import Tensor
from transformers import CLIPTextModelWithProjection, CLIPTokenizer, T5EncoderModel, T5Tokenizer

from jdmctl.families.codec import LatentCodec
from jdmctl.families.transformer import TransformerDenoiser
from jdmctl.families.transformer_family import FlowFamily
from jdmctl.types import Controls, Prompt


class SD3Denoiser(TransformerDenoiser):
    condition_shift: float = 0.0  # between an encoded condition and one without the VAE's shift

    def network(self, x_t: Tensor, timestep: Tensor, prompt: Prompt, controls: Controls) -> Tensor:
        def branch_adds(branch: SD3ControlNetModel, condition: Tensor, scale: float) -> Sequence[Tensor]:
            told = dict(prompt)
            if branch.config.force_zeros_for_pooled_projection:  # as InstantX trains its ControlNets
                told["pooled_projections"] = torch.zeros_like(told["pooled_projections"])
                condition = condition + self.condition_shift
            return branch(
                x_t, controlnet_cond=condition, conditioning_scale=scale, timestep=timestep, return_dict=False, **told
            )[0]

        return self.backbone(
            x_t, timestep=timestep, block_controlnet_hidden_states=self.added(controls, branch_adds),
            return_dict=False, **prompt,
        )[0]  # fmt: skip


class SD3(FlowFamily):
    codec: LatentCodec

    name = "sd3"
    pipelines = ("StableDiffusion3Pipeline", "StableDiffusion3ControlNetPipeline")
    pipeline_class = StableDiffusion3Pipeline
    backbone_class = SD3Transformer2DModel
    denoiser_class = SD3Denoiser
    tiny_decoder = "madebyollin/taesd3"
    part_classes = {
        "vae": AutoencoderKL,
        "tokenizer": CLIPTokenizer,
        "tokenizer_2": CLIPTokenizer,
        "tokenizer_3": T5Tokenizer,
        "text_encoder": CLIPTextModelWithProjection,
        "text_encoder_2": CLIPTextModelWithProjection,
        "text_encoder_3": T5EncoderModel,
    }
    even_sigmas = False
    authors_keys = ("joint_blocks.",)
    must_agree = ("in_channels", "joint_attention_dim", "pooled_projection_dim", "patch_size")
    branch_class = SD3ControlNetModel
    branch_config = {"num_layers": 12, "extra_conditioning_channels": 0, "force_zeros_for_pooled_projection": False}
    branch_input = "pos_embed_input.proj"
    branch_fits = (
        "in_channels", "num_attention_heads", "attention_head_dim", "joint_attention_dim", "pooled_projection_dim",
        "patch_size",
    )  # fmt: skip
    branch_lacks = {"extra_conditioning_channels": "one for inpainting"}

    @property
    def max_words(self) -> int:
        """Tokens of T5: 256, as its pipeline has it, or fewer where its tokenizer says so."""
        return min(256, self.parts["tokenizer_3"].model_max_length)

    @property
    def call_options(self) -> dict[str, Any]:
        return super().call_options | {"max_sequence_length": self.max_words}

    @torch.no_grad()
    def encode_prompt(self, texts: Sequence[str]) -> dict[str, Tensor]:
        words, _, pooled, _ = self.text_pipeline.encode_prompt(
            list(texts), None, None, device=self.text_device, do_classifier_free_guidance=False,
            max_sequence_length=self.max_words,
        )  # fmt: skip
        return {"encoder_hidden_states": words, "pooled_projections": pooled}

    def equip(self, denoiser: Any) -> None:
        super().equip(denoiser)
        own = self.parts["vae"].config  # a run's codec may be another
        denoiser.condition_shift = (own.get("shift_factor") or 0.0) * own.scaling_factor
