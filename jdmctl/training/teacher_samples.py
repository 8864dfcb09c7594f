"""The multi-step teacher's own samples for training prompts: a critic's positives, a new student's first goal."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from jdmctl.training.draws import SampleDraws, order

_KEPT_BYTES = 2**32  # of latents, in the computer's own memory; beyond that they are drawn again


@dataclass(frozen=True)
class TeacherSamples:
    """Pairs of a noise and what the teacher makes of it, one for each prompt, drawn when first wanted and kept.

    `sample` takes noise [B, C, h, w] and texts to clean latents. What a network makes of a noise can differ in the last
    bit with the rest of its batch, and a resumed run must see what it would have seen: so a sample is always drawn in
    the same company, `at_once` of those that follow one another `in_turn`. Where that is the order in which they are
    first wanted, and so many are wanted at once, no more are drawn than are asked for.
    """

    sample: Callable[[Tensor, Sequence[str]], Tensor]
    text: Callable[[int], str]
    in_turn: Sequence[int]  # each prompt once
    at_once: int
    latent_shape: tuple[int, int, int]
    seed: int
    device: torch.device | str = "cpu"
    _kept: dict[int, Tensor] = field(default_factory=dict)  # prompt -> latent [C, h, w], on the CPU

    def take(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Noise and latents [B, C, h, w] of these prompts."""
        found = {index: self._kept[index] for index in indices if index in self._kept}
        for index in indices:
            if index not in found:
                found |= self._drawn_with(index)
        latents = torch.stack([found[index] for index in indices])
        return self._noise(indices), latents.to(self.device)

    @torch.no_grad()
    def _drawn_with(self, index: int) -> dict[int, Tensor]:
        """Its latent and those of its company, kept while there is room."""
        first = self._places[index] // self.at_once * self.at_once
        indices = self.in_turn[first : first + self.at_once]
        latents = self.sample(self._noise(indices), [self.text(each) for each in indices]).float().cpu()
        drawn = dict(zip(indices, latents, strict=True))
        for each, latent in drawn.items():
            if len(self._kept) < _KEPT_BYTES // latent.nbytes:
                self._kept[each] = latent
        return drawn

    def _noise(self, indices: Sequence[int]) -> Tensor:
        """[B, C, h, w], each by its number alone."""
        return SampleDraws(self.seed, "teacher", indices, self.device).normal("noise", self.latent_shape)

    @functools.cached_property
    def _places(self) -> dict[int, int]:
        return {index: place for place, index in enumerate(self.in_turn)}


def first_wanted(seed: int, size: int, walks: Mapping[str, int]) -> list[int]:
    """Which of `size` samples are wanted when, by phases that walk one after the other: each through how many of them.

    The last one goes through all.
    """
    walked = (index for phase, number in walks.items() for index in order(seed, phase, 0, size)[:number])
    return list(dict.fromkeys(walked))
