"""Batches as a pure function of where a run stands, the same for any number of processes."""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from jdmctl.training.buckets import Buckets
from jdmctl.training.draws import SampleDraws, order
from jdmctl.training.teacher_samples import TeacherSamples
from jdmctl.types import Batch, Prompt


class Samples(Protocol):
    """What a control is learnt from: prompts, each with its conditions, and with a picture if known."""

    def __len__(self) -> int: ...

    def text(self, index: int) -> str: ...

    def take(self, indices: Sequence[int]) -> tuple[Tensor | None, dict[str, Tensor]]:
        """Pictures, if known, and conditions by control, all [B, 3, H, W] in [0, 1]."""


@dataclass(frozen=True)
class Batches:
    """Each phase walks through the samples in orders of its own, a new one every epoch.

    Global sample g of a phase is number g % batch_size of its update g // batch_size. What it shows
    and all its noise follow from (seed, phase, g), so it does not matter which process draws it, in
    which piece of an accumulated batch, or before or after a resume.
    """

    samples: Samples
    encode_prompt: Callable[[Sequence[str]], Prompt]
    seed: int
    batch_size: int  # of one update, over all processes and pieces
    num_pieces: int = 1
    prompt_dropout: float = 0.0
    process_index: int = 0
    num_processes: int = 1
    device: torch.device | str = "cpu"
    teacher: TeacherSamples | None = None  # whose samples `teacher_phases` get, for whole prompts
    teacher_phases: Container[str] = ()
    buckets: Buckets | None = None  # of samples that differ in size: every update then has one size

    def __post_init__(self) -> None:
        if self.batch_size % (self.num_pieces * self.num_processes):
            raise ValueError("batch_size must be a multiple of pieces x processes")

    def batch(self, phase: str, update: int, piece: int = 0) -> Batch:
        """This process's share of a piece of one update's batch."""
        size = self.batch_size // (self.num_pieces * self.num_processes)
        share = piece * self.num_processes + self.process_index
        first = update * self.batch_size + share * size
        return self.take(phase, range(first, first + size))

    def take(self, phase: str, numbers: Sequence[int]) -> Batch:
        """The batch of any global samples of a phase."""
        indices = [self.index(phase, number) for number in numbers]
        by_teacher = self.teacher if phase in self.teacher_phases else None
        dropout = 0.0 if by_teacher else self.prompt_dropout
        dropped = SampleDraws(self.seed, phase, numbers).uniform("prompt") < dropout
        texts = [
            "" if drop else self.samples.text(index) for index, drop in zip(indices, dropped.tolist(), strict=True)
        ]
        images, conditions = self.samples.take(indices)
        latent_noise, latents = by_teacher.take(indices) if by_teacher else (None, None)
        return Batch(
            prompt=self.encode_prompt(texts),
            conditions={name: value.to(self.device) for name, value in conditions.items()},
            draws=SampleDraws(self.seed, phase, numbers, self.device),
            texts=tuple(texts),
            images=None if images is None else images.to(self.device),
            latents=latents,
            latent_noise=latent_noise,
            latent_shape=self._latent_shape(phase, numbers),
        )

    def index(self, phase: str, number: int) -> int:
        """Which sample a phase's global sample is."""
        if self.buckets:
            return self.buckets.index(self.seed, phase, number, self.batch_size)
        epoch, place = divmod(number, len(self.samples))
        return order(self.seed, phase, epoch, len(self.samples))[place]

    def _latent_shape(self, phase: str, numbers: Sequence[int]) -> tuple[int, int, int] | None:
        if self.buckets is None:
            return None
        return self.buckets.latent_shape(self.seed, phase, numbers[0], self.batch_size)
