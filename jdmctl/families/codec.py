"""Between pixels and latents."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from jdmctl.errors import BadInputError
from jdmctl.types import Codec


class LatentCodec:
    """A VAE with its scaling factor, and shift if any: images [B, 3, H, W] in [0, 1] <-> latents [B, C, h, w]."""

    def __init__(self, vae: Any):
        """Raises BadInputError for a VAE whose channels have means and deviations of their own."""
        if vae.config.get("latents_mean") or vae.config.get("latents_std"):
            raise BadInputError(
                "vae/config.json has latents_mean and latents_std, which this family does not apply",
                hint="give a teacher whose VAE has a scaling_factor alone",
            )
        self.vae = vae.requires_grad_(False).eval()
        self.scale, self.shift = vae.config.scaling_factor, vae.config.get("shift_factor") or 0.0

    def encode(self, image: Tensor) -> Tensor:
        return (self.vae.encode(image * 2 - 1).latent_dist.mode().float() - self.shift) * self.scale

    def decode(self, latent: Tensor) -> Tensor:
        return self.vae.decode(latent / self.scale + self.shift, return_dict=False)[0].float() / 2 + 0.5


class AutoencoderCodec(LatentCodec):
    """An AutoencoderDC, whose latents are no distribution (Chen et al. 2024, arXiv:2410.10733)."""

    def encode(self, image: Tensor) -> Tensor:
        return self.vae.encode(image * 2 - 1).latent.float() * self.scale


class QuickCodec:
    """Another codec, whose latents a small autoencoder decodes (TAESD, github.com/madebyollin/taesd): less memory, and
    small details that differ. It is told latents as the backbone has them."""

    def __init__(self, codec: Codec, tiny: Any):
        self.encode = codec.encode
        self.vae = tiny
        self.decode = LatentCodec(tiny).decode


class CachedCodec:
    """Another codec, whose latents come from elsewhere: `encode` takes images [B, 3, H, W] and may be on the CPU."""

    def __init__(self, codec: Any, encode: Callable[[Tensor], Tensor]):
        self.vae, self.decode, self._encode = getattr(codec, "vae", None), codec.decode, encode

    def encode(self, image: Tensor) -> Tensor:
        return self._encode(image).to(image.device)


class FrameCodec:
    """A video VAE on single frames, with a mean and a standard deviation for each channel (AutoencoderKLQwenImage)."""

    def __init__(self, vae: Any):
        self.vae = vae.requires_grad_(False).eval()
        self.mean = torch.tensor(vae.config.latents_mean).view(1, -1, 1, 1)
        self.std = torch.tensor(vae.config.latents_std).view(1, -1, 1, 1)

    def encode(self, image: Tensor) -> Tensor:
        latent = self.vae.encode(image[:, :, None] * 2 - 1).latent_dist.mode()[:, :, 0].float()
        return (latent - self.mean.to(latent)) / self.std.to(latent)

    def decode(self, latent: Tensor) -> Tensor:
        frames = (latent * self.std.to(latent) + self.mean.to(latent))[:, :, None]
        return self.vae.decode(frames, return_dict=False)[0][:, :, 0].float() / 2 + 0.5
