"""FLUX.1 (Black Forest Labs 2024): schnell, and dev as a teacher."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from diffusers import AutoencoderKL, FluxControlNetModel, FluxPipeline, FluxTransformer2DModel
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer, T5EncoderModel, T5Tokenizer

from jdmctl.families.transformer import TransformerDenoiser, pack, unpack
from jdmctl.families.transformer_family import FlowFamily
from jdmctl.types import Controls, Prompt

_GUIDANCE = 3.5  # FluxPipeline's default, told to a network that has guidance distilled into it (dev)


class FluxDenoiser(TransformerDenoiser):
    @property
    def blocks(self) -> Sequence[torch.nn.Module]:
        return [*self.backbone.transformer_blocks, *self.backbone.single_transformer_blocks]

    def network(self, x_t: Tensor, timestep: Tensor, prompt: Prompt, controls: Controls) -> Tensor:
        rows, columns = torch.meshgrid(
            *(torch.arange(side // 2, device=x_t.device, dtype=x_t.dtype) for side in x_t.shape[-2:]), indexing="ij"
        )
        told = dict(
            hidden_states=pack(x_t), timestep=timestep / 1000, return_dict=False, **prompt,
            img_ids=torch.stack([torch.zeros_like(rows), rows, columns], -1).flatten(0, 1),
            txt_ids=torch.zeros(prompt["encoder_hidden_states"].shape[1], 3, device=x_t.device, dtype=x_t.dtype),
        )  # fmt: skip
        numbers = []  # how many of what a branch adds are for double blocks

        def guidance(network: FluxTransformer2DModel | FluxControlNetModel) -> Tensor | None:
            is_told = network.config.guidance_embeds
            return torch.full((len(x_t),), _GUIDANCE, device=x_t.device) if is_told else None

        def branch_adds(branch: FluxControlNetModel, condition: Tensor, scale: float) -> Sequence[Tensor]:
            double, single = branch(
                controlnet_cond=pack(condition), conditioning_scale=scale, guidance=guidance(branch), **told
            )
            numbers.append(len(double or ()))
            return [*(double or ()), *(single or ())]

        added, number = self.added(controls, branch_adds) or [], max(numbers, default=0)
        output = self.backbone(
            controlnet_block_samples=added[:number] or None, controlnet_single_block_samples=added[number:] or None,
            guidance=guidance(self.backbone), **told,
        )[0]  # fmt: skip
        return unpack(output, like=x_t)


class Flux(FlowFamily):
    name = "flux"
    pipelines = ("FluxPipeline", "FluxControlNetPipeline")
    pipeline_class = FluxPipeline
    backbone_class = FluxTransformer2DModel
    denoiser_class = FluxDenoiser
    tiny_decoder = "madebyollin/taef1"
    part_classes = {
        "vae": AutoencoderKL,
        "tokenizer": CLIPTokenizer,
        "tokenizer_2": T5Tokenizer,
        "text_encoder": CLIPTextModel,
        "text_encoder_2": T5EncoderModel,
    }
    authors_keys = ("double_blocks.",)
    must_agree = ("in_channels", "joint_attention_dim", "pooled_projection_dim")
    branch_class = FluxControlNetModel
    branch_config = {"num_layers": 4, "num_single_layers": 4}
    branch_input = "controlnet_x_embedder"
    branch_fits = (
        "in_channels", "num_attention_heads", "attention_head_dim", "joint_attention_dim", "pooled_projection_dim",
        "axes_dims_rope",
    )  # fmt: skip
    branch_lacks = {"num_mode": "a union of several controls", "conditioning_embedding_channels": "XLabs's"}

    @property
    def latent_channels(self) -> int:
        return self.student.backbone.config.in_channels // 4

    @property
    def max_words(self) -> int:
        """256 tokens for schnell, 512 for dev, as their authors' code has it (github.com/black-forest-labs/flux)."""
        return 512 if self.student.backbone.config.guidance_embeds else 256

    @property
    def call_options(self) -> dict[str, Any]:
        told = {"guidance_scale": _GUIDANCE} if self.student.backbone.config.guidance_embeds else {}
        return super().call_options | {"max_sequence_length": self.max_words} | told

    @classmethod
    def checkpoint_config(cls, names: Sequence[str]) -> Mapping[str, Any]:
        """dev is told a guidance, schnell is not, and each may be the other's teacher."""
        return {"guidance_embeds": any("guidance_in." in name for name in names)}

    @classmethod
    def lora_layers(cls, weights: Mapping[str, Tensor], backbone: Any) -> tuple[Mapping[str, Tensor], Any]:
        return cls.pipeline_class.lora_state_dict(dict(weights), return_alphas=True)

    @torch.no_grad()
    def encode_prompt(self, texts: Sequence[str]) -> dict[str, Tensor]:
        words, pooled, _ = self.text_pipeline.encode_prompt(
            list(texts), None, device=self.text_device, max_sequence_length=self.max_words
        )
        return {"encoder_hidden_states": words, "pooled_projections": pooled}
