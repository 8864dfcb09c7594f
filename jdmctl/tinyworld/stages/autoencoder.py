"""The world's VAE, trained on crops: a convolutional codec needs no whole pictures, and crops cost a quarter."""

from __future__ import annotations

import torch
from diffusers import AutoencoderKL
from torch import Tensor
from torch.nn import functional as F

from jdmctl.tinyworld import models
from jdmctl.tinyworld.fit import FitSettings
from jdmctl.tinyworld.source import Pictures
from jdmctl.tinyworld.workshop import Workshop, autocast
from jdmctl.training.atomic import whole_folder

_KL_WEIGHT = 1e-5
_CHROMA = torch.tensor([[1 / 3, 1 / 3, 1 / 3], [1, -1, 0], [0.5, 0.5, -1]])  # luma and two colour differences


def reconstruction_loss(vae: AutoencoderKL, images: Tensor, noise: Tensor) -> Tensor:
    """L1 + L2 on luma and colour differences, and a light KL; `images` in [0, 1].

    In plain RGB a grey picture of the right brightness is already close, and small VAEs then lose their colours.
    """
    target = images * 2 - 1
    posterior = vae.encode(target).latent_dist
    decoded = vae.decode(posterior.mean.float() + posterior.std.float() * noise).sample.float()
    error = torch.einsum("kc,bchw->bkhw", _CHROMA, decoded - target)
    kl = posterior.kl().float().mean()
    return error.abs().mean() + 4 * error.square().mean() + _KL_WEIGHT * kl


def crops(pictures: Pictures, size_px: int, batch: int, generator: torch.Generator) -> Tensor:
    """[batch, 3, size_px, size_px] random crops, half of them mirrored, in [0, 1]."""
    room = pictures.images.shape[-1] - size_px + 1
    index = torch.randint(len(pictures), (batch,), generator=generator)
    corner = torch.randint(room, (batch, 2), generator=generator).tolist()
    cut = [pictures.images[i, :, y : y + size_px, x : x + size_px] for i, (y, x) in zip(index, corner, strict=True)]
    stacked = torch.stack(cut).float() / 255
    return stacked.flip(-1) if torch.rand(1, generator=generator) < 0.5 else stacked


def psnr(vae: AutoencoderKL, images: Tensor) -> Tensor:
    """[B] peak signal-to-noise ratio in dB of a round trip through the VAE's mean latent; `images` in [0, 1]."""
    with torch.no_grad():
        decoded = vae.decode(vae.encode(images * 2 - 1).latent_dist.mode()).sample
    error = F.mse_loss((decoded / 2 + 0.5).clamp(0, 1), images, reduction="none").flatten(1).mean(1)
    return -10 * error.log10()


def build(shop: Workshop) -> None:
    """`vae/`: reconstructs test pictures at the reported PSNR; its latents are scaled to unit variance."""
    torch.manual_seed(shop.seed)
    vae = models.vae().to(memory_format=torch.channels_last)
    train = shop.pictures("train")

    def loss(generator: torch.Generator) -> Tensor:
        images = crops(train, 32, 32, generator).to(memory_format=torch.channels_last)
        noise = torch.randn(len(images), vae.config.latent_channels, 8, 8, generator=generator)
        with autocast():
            return reconstruction_loss(vae, images, noise)

    shop.train("vae", vae, loss, FitSettings(shop.steps(4000), 2e-3, ema_decay=0.99, seed=shop.seed))
    vae.eval()
    with torch.no_grad():
        latents = vae.encode(train.image(slice(0, 256)) * 2 - 1).latent_dist.mode()
    vae.register_to_config(scaling_factor=float(1 / latents.std()))
    shop.report["vae psnr"] = float(psnr(vae, shop.pictures("val").image(slice(0, 256))).mean())
    shop.say(f"vae: {shop.report['vae psnr']:.2f} dB on val")
    with whole_folder(shop.output / "vae") as partial:
        vae.save_pretrained(partial)


def encode(vae: AutoencoderKL, images: Tensor, batch: int = 256) -> Tensor:
    """Scaled mean latents [N, C, h, w] of uint8 images [N, 3, H, W]."""
    with torch.no_grad():
        parts = [vae.encode(part.float() / 127.5 - 1).latent_dist.mode() for part in images.split(batch)]
    return torch.cat(parts) * vae.config.scaling_factor


def decode(vae: AutoencoderKL, latents: Tensor, batch: int = 256) -> Tensor:
    """uint8 images [N, 3, H, W] of scaled latents."""
    with torch.no_grad():
        parts = [vae.decode(part / vae.config.scaling_factor).sample for part in latents.split(batch)]
    return ((torch.cat(parts) / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8)
