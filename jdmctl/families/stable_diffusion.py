"""Stable Diffusion 1.x / 2.x and everything saved as a `StableDiffusionPipeline` folder, the tiny world included."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from jdmctl.families.prompts import tokenize
from jdmctl.families.unet import UNetDenoiser
from jdmctl.families.unet_family import UNetFamily


class StableDiffusion(UNetFamily):
    name = "stable_diffusion"
    pipelines = ("StableDiffusionPipeline", "StableDiffusionControlNetPipeline")
    pipeline_class = StableDiffusionPipeline
    pipeline_options = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    denoiser_class = UNetDenoiser
    tiny_decoder = "madebyollin/taesd"
    part_classes = {"vae": AutoencoderKL, "tokenizer": CLIPTokenizer, "text_encoder": CLIPTextModel}

    @torch.no_grad()
    def encode_prompt(self, texts: Sequence[str]) -> Tensor:
        """[B, L, D] text embeddings."""
        encoder = self.parts["text_encoder"]
        return encoder(tokenize(self.parts["tokenizer"], texts).to(encoder.device))[0]
