"""The pictures that are compared: a run's, its student's without control, and ordinary ControlNets'."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from jdmctl.sampling import draw, draw_multistep
from jdmctl.types import Controls

TRUE, ROUND_TRIP, ALONE = "true pictures", "round trip", "student"
PLUGGED, MULTISTEP = "ControlNet in the student", "ControlNet on the teacher"
_SEED_STRIDE = 1_000_000


@dataclass(frozen=True)
class Contender:
    name: str
    passes: int  # backbone passes for one picture
    images: Tensor  # [S, N, 3, H, W]


@dataclass(frozen=True)
class Arena:
    """N scenes, and S seeds with which every method draws them, each scene from noise of its own."""

    family: Any
    texts: Sequence[str]
    images: Tensor  # the scenes' true pictures [N, 3, H, W]
    conditions: Controls  # [N, 3, H, W] each
    seeds: Sequence[int]

    def references(self) -> Iterator[Contender]:
        """The true pictures, what the codec makes of them, and the student without control."""
        yield Contender(TRUE, 0, self.images[None])
        codec, device = self.family.codec, next(self.family.student.parameters()).device
        with torch.no_grad():
            parts = [codec.decode(codec.encode(part.to(device))).cpu() for part in self.images.split(64)]
        yield Contender(ROUND_TRIP, 0, torch.cat(parts).clamp(0, 1)[None])
        yield Contender(ALONE, 1, self._student({}))

    def student(self, name: str) -> Contender:
        """The student with the branches that it has."""
        return Contender(name, 1, self._student(self.conditions))

    def controlnets(
        self, folders: Mapping[str, str | Path], num_steps: int, guidance_scale: float
    ) -> Iterator[Contender]:
        """Ordinary ControlNets, one for each condition: in the student, and on the teacher in `num_steps`."""
        branches = self.family.student.branches
        own = dict(branches.items())
        try:
            for name, folder in folders.items():
                self.family.add_control_branch(name, folder).eval()
            yield self.student(PLUGGED)
        finally:
            branches.update(own)
        for name, folder in folders.items():
            self.family.add_control_branch(name, folder, denoiser=self.family.teacher).eval()
        drawn = [
            draw_multistep(self.family, self.texts, seeds, num_steps, guidance_scale, self.conditions)
            for seeds in self._noise_seeds()
        ]
        self.family.teacher.branches.clear()
        passes = num_steps * (1 if guidance_scale == 1 else 2)
        yield Contender(MULTISTEP, passes, torch.stack(drawn))

    def _student(self, conditions: Controls) -> Tensor:
        return torch.stack([draw(self.family, self.texts, seeds, conditions) for seeds in self._noise_seeds()])

    def _noise_seeds(self) -> list[list[int]]:
        return [[seed * _SEED_STRIDE + i for i in range(len(self.texts))] for seed in self.seeds]
