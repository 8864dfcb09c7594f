"""How good a student without controls is while it trains: the distance of its pictures to true ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from jdmctl.evaluation.fidelity import frechet_distance, kernel_distance
from jdmctl.evaluation.manifold import among, recall_statistic
from jdmctl.sampling import grid
from jdmctl.types import Batch, Codec, Student

_PREVIEW_ROWS = 6


@dataclass(frozen=True)
class Quality:
    """Frechet distance, precision and recall of pictures from the same noise and prompts each time."""

    student: Student
    codec: Codec
    latent_shape: tuple[int, int, int]
    batches: Sequence[Batch]
    features: Callable[[Tensor], Tensor]  # images [N, 3, H, W] in [0, 1] -> [N, D]
    reference: Tensor  # [M, D]
    goals: Tensor | None = None  # [n, 3, H, W]: what the teacher draws for the first prompts

    @torch.no_grad()
    def draw(self, batch: Batch, noise_name: str = "student_noise") -> Tensor:
        """[B, 3, H, W] in [0, 1]."""
        noise = batch.draws.normal(noise_name, self.latent_shape)
        conditions = {name: condition.to(noise.device) for name, condition in batch.conditions.items()}
        return self.codec.decode(self.student.generate(noise, batch.prompt, conditions)).clamp(0, 1)

    def first(self) -> tuple[list[str], Tensor]:
        """Prompts and pictures of the first samples, for somebody to look at."""
        texts: list[str] = []
        parts = []
        for batch in self.batches:
            if len(texts) < _PREVIEW_ROWS:
                texts += batch.texts
                parts.append(self.draw(batch).cpu())
        return texts[:_PREVIEW_ROWS], torch.cat(parts)[:_PREVIEW_ROWS]

    def measure(self) -> dict[str, float]:
        """frechet, kid, precision, recall; the score is -kid, which small numbers do not bias towards less variety."""
        found = self.compare(self.features(torch.cat([self.draw(batch).cpu() for batch in self.batches])))
        return found | {"score": -found["kid"]}

    def compare(self, features: Tensor) -> dict[str, float]:
        """frechet, kid, precision and recall of pictures with features [N, D]."""
        return {
            "frechet": frechet_distance(features, self.reference),
            "kid": kernel_distance(features, self.reference),
            "precision": among(features, self.reference).double().mean().item(),
            "recall": recall_statistic(features, self.reference)(torch.arange(len(features))),
        }

    def headlines(self, values: Mapping[str, float]) -> dict[str, float]:
        return {name: values[name] for name in ("kid", "frechet", "recall")}

    def watched(self, values: Mapping[str, float]) -> dict[str, float]:
        return {"precision": values["precision"]}

    def warning(self, values: Mapping[str, Any]) -> str:
        return ""

    def sheet(self) -> Image.Image:
        """What the student draws, beside what the teacher does from other noise."""
        texts, images = self.first()
        goals = [] if self.goals is None else [self.goals.cpu()]
        rows = [(text, list(cells)) for text, *cells in zip(texts, images, *goals, strict=True)]
        return grid(["student", *("teacher" for _ in goals)], rows)
