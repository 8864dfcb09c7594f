"""Between pixels and latents."""

from __future__ import annotations

from typing import Any

from torch import Tensor


class LatentCodec:
    """A VAE with its scaling factor: images [B, 3, H, W] in [0, 1] <-> latents [B, C, h, w]."""

    def __init__(self, vae: Any):
        self.vae = vae.requires_grad_(False).eval()

    def encode(self, image: Tensor) -> Tensor:
        return self.vae.encode(image * 2 - 1).latent_dist.mode().float() * self.vae.config.scaling_factor

    def decode(self, latent: Tensor) -> Tensor:
        return self.vae.decode(latent / self.vae.config.scaling_factor, return_dict=False)[0].float() / 2 + 0.5
