"""Stable Diffusion XL and everything saved as a `StableDiffusionXLPipeline` folder (Turbo, DMD2, Hyper, Lightning)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, StableDiffusionXLPipeline
from torch import Tensor
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from jdmctl.families.folders import read_config
from jdmctl.families.prompts import tokenize
from jdmctl.families.unet import UNetDenoiser
from jdmctl.families.unet_family import UNetFamily
from jdmctl.types import Prompt

_ZEROS = "force_zeros_for_empty_prompt"


class SDXLDenoiser(UNetDenoiser):
    pixels_per_latent: int

    def words(self, prompt: Prompt, x_t: Tensor) -> dict[str, Any]:
        """Beside the text, `time_ids` [B, 6]: original height and width, the crop's top and left, target height and
        width, in pixels (Podell et al. 2023, arXiv:2307.01952, sec. 2.2), for pictures that were neither resized nor
        cropped.
        """
        height, width = (side * self.pixels_per_latent for side in x_t.shape[-2:])
        told = [height, width, 0, 0, height, width]
        time_ids = torch.tensor([told], device=x_t.device, dtype=prompt["embeds"].dtype).expand(len(x_t), 6)
        added = {"text_embeds": prompt["pooled"], "time_ids": time_ids}
        return {"encoder_hidden_states": prompt["embeds"], "added_cond_kwargs": added}

    def summary(self, prompt: Prompt) -> Tensor:
        return prompt["pooled"]

    @property
    def summary_width(self) -> int:
        config = self.backbone.config
        return config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim


class StableDiffusionXL(UNetFamily):
    name = "sdxl"
    pipelines = ("StableDiffusionXLPipeline", "StableDiffusionXLControlNetPipeline")
    pipeline_class = StableDiffusionXLPipeline
    denoiser_class = SDXLDenoiser
    tiny_decoder = "madebyollin/taesdxl"
    part_classes = {
        "vae": AutoencoderKL,
        "text_encoder": CLIPTextModel,
        "text_encoder_2": CLIPTextModelWithProjection,
        "tokenizer": CLIPTokenizer,
        "tokenizer_2": CLIPTokenizer,
    }

    def equip(self, denoiser: Any) -> None:
        denoiser.pixels_per_latent = self.pixels_per_latent

    @classmethod
    def load_parts(cls, folder: str | Path) -> dict[str, Any]:
        says = read_config(folder, None, "model_index.json").get(_ZEROS, True)  # diffusers' own default
        return super().load_parts(folder) | {_ZEROS: says}

    @torch.no_grad()
    def encode_prompt(self, texts: Sequence[str]) -> dict[str, Tensor]:
        """embeds [B, L, D] of both text encoders side by side, each from the layer before its last; pooled [B, P] of
        the second.
        """
        embeds = []
        for suffix in ("", "_2"):
            encoder = self.parts[f"text_encoder{suffix}"]
            tokens = tokenize(self.parts[f"tokenizer{suffix}"], texts).to(encoder.device)
            output = encoder(tokens, output_hidden_states=True)
            embeds.append(output.hidden_states[-2])
        return {"embeds": torch.cat(embeds, -1), "pooled": output.text_embeds}

    def empty_prompt(self, size: int) -> Prompt:
        """Zeros where the teacher's pipeline takes zeros, as SDXL's own does."""
        empty = super().empty_prompt(size)
        return {name: torch.zeros_like(value) for name, value in empty.items()} if self.parts[_ZEROS] else empty
