"""What a student with rewards is measured by while it trains: whether people's liking is earned or cheated."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from jdmctl.evaluation.appearance import saturation, sharpness
from jdmctl.evaluation.diversity import seed_distance
from jdmctl.sampling import grid
from jdmctl.training.energies import DifferentiableReward
from jdmctl.training.observer import Validation
from jdmctl.training.quality import Quality
from jdmctl.training.watch import Watch
from jdmctl.types import Batch


@dataclass(frozen=True)
class Approval:
    """Rewards trained on and held out, beside everything that a cheated reward spoils."""

    quality: Quality
    rewards: Mapping[str, DifferentiableReward]  # trained and held out, by the name in `watch`
    watch: Watch
    before: Tensor  # [n, 3, H, W]: `quality.first` by the student before training
    accuracy: Callable[[Tensor], float] | None = None  # pictures -> share of stated attributes that they show
    adherence: Validation | None = None  # of a student with controls

    def measure(self) -> dict[str, float]:
        """Means over samples of each reward, frechet, kid, recall, diversity (distance in features between two pictures
        of one prompt), sharpness, saturation, accuracy and the controls' metrics; score and alarm of `Watch`."""
        parts, seconds = [], []
        likings: dict[str, list[Tensor]] = {name: [] for name in self.rewards}
        for batch in self.quality.batches:
            drawn = self.quality.draw(batch)
            for name, reward in self.rewards.items():
                likings[name].append(self._liked(reward, drawn, batch))
            parts.append(drawn.cpu())
            seconds.append(self.quality.draw(batch, "second_noise").cpu())
        images, again = torch.cat(parts), torch.cat(seconds)
        liked = {name: torch.cat(each) for name, each in likings.items()}
        two = [self.quality.features(each) for each in (images, again)]
        values = {name: each.mean().item() for name, each in liked.items()}
        values |= self.quality.compare(two[0])
        values |= {
            "diversity": seed_distance(torch.stack(two)).mean().item(),
            "sharpness": sharpness(images).mean().item(),
            "saturation": saturation(images).mean().item(),
        }
        if self.accuracy:
            values["accuracy"] = self.accuracy(images)
        if self.adherence:
            found = self.adherence.measure()
            values |= found | {"adherence_score": found["score"], "score_error": 0.0}  # of rewards: highest alone
        return self.watch.look(values, {name: each.std().item() for name, each in liked.items()})

    def headlines(self, values: Mapping[str, float]) -> dict[str, float]:
        wanted = (*self.rewards, "frechet", "diversity", "accuracy")
        controls = self.adherence.headlines(values) if self.adherence else {}
        return {name: values[name] for name in wanted if name in values} | controls

    def watched(self, values: Mapping[str, float]) -> dict[str, float]:
        return {name: values[name] for name in ("kid", "recall", "sharpness", "saturation")}

    def warning(self, values: Mapping[str, Any]) -> str:
        return self.watch.advice() if values.get("alarm") else ""

    def sheet(self) -> Image.Image:
        """What the student drew before, and draws now from the same noise."""
        texts, images = self.quality.first()
        rows = [(text, [old, new]) for text, old, new in zip(texts, self.before, images, strict=True)]
        return grid(["before", "now"], rows)

    @torch.no_grad()
    def _liked(self, reward: DifferentiableReward, images: Tensor, batch: Batch) -> Tensor:
        return reward(images, batch.texts).float().cpu()
