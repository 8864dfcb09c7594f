"""The multi-step teacher's own samples for training prompts: a critic's positives, a new student's first goal."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from jdmctl.training.draws import SampleDraws

_CHUNK = 16  # drawn together always, so that a sample does not depend on who asks for it


@dataclass(frozen=True)
class TeacherSamples:
    """Pairs of a noise and what the teacher makes of it, one for each prompt, drawn when first wanted and kept.

    `sample` takes noise [B, C, h, w] and texts to clean latents.
    """

    sample: Callable[[Tensor, Sequence[str]], Tensor]
    text: Callable[[int], str]
    size: int
    latent_shape: tuple[int, int, int]
    seed: int
    device: torch.device | str = "cpu"
    _kept: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)  # chunk -> noise, latents; on the CPU

    def take(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Noise and latents [B, C, h, w] of these prompts."""
        rows = [[part[index % _CHUNK] for part in self._chunk(index // _CHUNK)] for index in indices]
        noise, latents = zip(*rows, strict=True)
        return torch.stack(noise).to(self.device), torch.stack(latents).to(self.device)

    @torch.no_grad()
    def _chunk(self, number: int) -> tuple[Tensor, Tensor]:
        if number not in self._kept:
            indices = range(number * _CHUNK, min(self.size, (number + 1) * _CHUNK))
            noise = SampleDraws(self.seed, "teacher", indices, self.device).normal("noise", self.latent_shape)
            latents = self.sample(noise, [self.text(index) for index in indices])
            self._kept[number] = noise.cpu(), latents.float().cpu()
        return self._kept[number]
