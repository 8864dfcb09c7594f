"""Small trainable heads on what a frozen denoiser sees."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from jdmctl.families.base import DiffusionDenoiser
from jdmctl.types import Controls, Prompt


class RatioCritic(nn.Module):
    """Logits that learn log p_t(x_t) / q_t(x_t) from the features of a teacher or fake score.

    The denoiser lends its features and is no part of this module: `parameters()` are the heads alone, one for each
    feature map. Each reads its map, is told the time and the prompt, and has one opinion, the mean over places; the
    logit is the mean over heads, in float32 (Xu et al. 2025, f-distill, arXiv:2502.15681; Yin et al. 2024, DMD2,
    arXiv:2405.14867, have such a head on the middle of the UNet). All start at 0: the ratio begins as 1, and every
    divergence as reverse KL.

    `controls` names the conditions that it sees, shrunk to each map's size: all of them for the conditional form,
    p(x) / q(x | c), none for the marginal one, whose ratio p(x) / q(x) is blind.
    """

    def __init__(self, denoiser: DiffusionDenoiser, controls: Sequence[str] = (), width: int = 64):
        super().__init__()
        self._lender = (denoiser,)  # in a tuple, so that its weights are not this module's
        self.controls = tuple(controls)
        told = 2 * NUM_FREQUENCIES + denoiser.summary_width
        extra = 3 * len(self.controls)
        self.heads = nn.ModuleList(_Head(channels + extra, told, width) for channels in denoiser.feature_channels)

    def forward(self, x_t: Tensor, t: Tensor, prompt: Prompt, controls: Controls | None = None) -> Tensor:
        """Logits [B] of x_t [B, C, h, w] at times t [B]; KeyError if a condition that it sees is missing.

        Where x_t wants a gradient it gets one through the frozen features: their activations are kept.
        """
        (denoiser,) = self._lender
        with torch.set_grad_enabled(torch.is_grad_enabled() and x_t.requires_grad):
            features = denoiser.features(x_t, t, prompt)
        told = torch.cat([waves(t), denoiser.summary(prompt).to(t)], dim=1)
        conditions = [(controls or {})[name] for name in self.controls]
        logits = []
        for head, feature in zip(self.heads, features, strict=True):
            shrunk = [interpolate(c, feature.shape[-2:], mode="area").to(feature.dtype) for c in conditions]
            logits.append(head(torch.cat([feature, *shrunk], dim=1), told).float())
        return torch.stack(logits).mean(0)


class _Head(nn.Module):
    def __init__(self, channels: int, told: int, width: int):
        super().__init__()
        self.read = nn.Conv2d(channels, width, 1)
        self.tell = nn.Linear(told, width)
        self.look = nn.Conv2d(width, width, 3, padding=1)
        self.judge = nn.Conv2d(width, 1, 1)
        nn.init.zeros_(self.judge.weight)
        nn.init.zeros_(self.judge.bias)  # type: ignore[arg-type]

    def forward(self, feature: Tensor, told: Tensor) -> Tensor:
        hidden = self.read(feature) + self.tell(told)[..., None, None]
        hidden = self.look(nn.functional.silu(hidden))
        return self.judge(nn.functional.silu(hidden)).flatten(1).mean(1)  # [B]


NUM_FREQUENCIES = 4


def waves(t: Tensor) -> Tensor:
    """t [B] in [0, 1] as sines and cosines of pi t, 2 pi t, 4 pi t, ...: [B, 2 NUM_FREQUENCIES]."""
    angles = t[:, None] * math.pi * 2 ** torch.arange(NUM_FREQUENCIES, device=t.device)
    return torch.cat([angles.sin(), angles.cos()], dim=1)
