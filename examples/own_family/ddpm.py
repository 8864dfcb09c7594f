"""Somebody's own diffusion model: a small class-conditional DDPM in pixels, an nn.Module and its weights.

It knows neither diffusers nor jdmctl. Run it to write a folder of random weights to try things with:

    python ddpm.py FOLDER
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import interpolate, silu

CLASSES = ("nothing", "cone", "cube", "sphere")
NUM_LEVELS, BETAS = 200, (0.0005, 0.05)  # of noise; beta rises linearly (Ho et al. 2020, arXiv:2006.11239)


class Encoder(nn.Module):
    """Pictures [B, 3, H, W], noise levels [B] in 0 ... 199 and labels [B] to features [B, 2 width, H/2, W/2]."""

    def __init__(self, width: int):
        super().__init__()
        self.time = nn.Embedding(NUM_LEVELS, 2 * width)
        self.label = nn.Embedding(len(CLASSES), 2 * width)
        self.conv1 = nn.Conv2d(3, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, 2 * width, 3, stride=2, padding=1)
        self.conv3 = nn.Conv2d(2 * width, 2 * width, 3, padding=1)

    def forward(self, x_t: Tensor, level: Tensor, label: Tensor) -> Tensor:
        told = self.time(level) + self.label(label)
        hidden = self.conv2(silu(self.conv1(x_t))) + told[..., None, None]
        return hidden + self.conv3(silu(hidden))


class Decoder(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.conv1 = nn.Conv2d(2 * width, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width + 3, 3, 3, padding=1)

    def forward(self, features: Tensor, x_t: Tensor) -> Tensor:
        hidden = interpolate(silu(self.conv1(silu(features))), scale_factor=2.0)
        return self.conv2(torch.cat([hidden, x_t], dim=1))


class DDPM(nn.Module):
    """Predicts the noise in x_t [B, 3, H, W], a picture in [-1, 1] with noise."""

    def __init__(self, width: int = 16, size: int = 16):
        super().__init__()
        self.width, self.size = width, size
        self.encoder, self.decoder = Encoder(width), Decoder(width)

    def forward(self, x_t: Tensor, level: Tensor, label: Tensor) -> Tensor:
        return self.decoder(self.encoder(x_t, level, label), x_t)

    def save(self, folder: str | Path) -> None:
        Path(folder).mkdir(parents=True, exist_ok=True)
        config = {"model": "small-ddpm", "width": self.width, "size": self.size}
        Path(folder, "config.json").write_text(json.dumps(config))
        save_file({name: value.contiguous() for name, value in self.state_dict().items()}, f"{folder}/ddpm.safetensors")

    @classmethod
    def load(cls, folder: str | Path) -> DDPM:
        config = json.loads(Path(folder, "config.json").read_text())
        model = cls(config["width"], config["size"])
        model.load_state_dict(load_file(Path(folder, "ddpm.safetensors")))
        return model


if __name__ == "__main__":
    torch.manual_seed(0)
    DDPM().save(sys.argv[1])
