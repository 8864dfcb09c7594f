"""What a run writes down and shows while it trains: metrics, adherence on validation, previews."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from PIL import Image
from torch import Tensor

from jdmctl.objectives.ratio import saturation_advice
from jdmctl.sampling import grid
from jdmctl.training.atomic import writing
from jdmctl.training.curve import draw_curve
from jdmctl.training.records import add_record
from jdmctl.training.tracking import EventFiles
from jdmctl.types import Batch, Codec, Student

_PREVIEW_ROWS = 4


class Measure(Protocol):
    """What says how good the student is, and shows it."""

    def measure(self) -> dict[str, float]:
        """Numbers; `score`, and `score_error` if it has one, choose the best checkpoint, higher is better."""

    def headlines(self, values: Mapping[str, float]) -> dict[str, float]:
        """Those that matter most: told while it trains, and drawn over it."""

    def watched(self, values: Mapping[str, float]) -> dict[str, float]:
        """Those that are drawn over training too, but not told each time; may be none."""

    def warning(self, values: Mapping[str, Any]) -> str:
        """What is wrong with them and what to do, or nothing."""

    def sheet(self) -> Image.Image: ...


class ScoredControl(Protocol):
    """What validation needs of a control."""

    headline: str
    higher_is_better: bool

    def condition(self, image: Tensor) -> Tensor: ...

    def scores(self, image: Tensor, condition: Tensor) -> dict[str, Tensor]: ...


@dataclass(frozen=True)
class Validation:
    """The student's pictures for fixed conditions and noise, scored by the controls' own judges."""

    student: Student
    codec: Codec
    latent_shape: tuple[int, int, int]
    controls: Mapping[str, ScoredControl]
    batches: Sequence[Batch]

    @torch.no_grad()
    def draw(self, batch: Batch) -> Tensor:
        """[B, 3, H, W] in [0, 1]."""
        noise = batch.draws.normal("student_noise", self.latent_shape)
        conditions = {name: condition.to(noise.device) for name, condition in batch.conditions.items()}
        return self.codec.decode(self.student.generate(noise, batch.prompt, conditions)).clamp(0, 1)

    def measure(self) -> dict[str, float]:
        """canny_f1 and the like, means over samples; `score` is larger for better adherence, `score_error` its standard
        error."""
        parts: dict[str, list[Tensor]] = {}
        for batch in self.batches:
            image = self.draw(batch)
            for name, control in self.controls.items():
                for metric, values in control.scores(image, batch.conditions[name].to(image.device)).items():
                    parts.setdefault(f"{name}_{metric}", []).append(values.float().cpu())
        samples = {key: torch.cat(values) for key, values in parts.items()}
        means = {key: values.mean().item() for key, values in samples.items()}
        return means | {"score": self._score(means), "score_error": self._score_error(samples)}

    def headlines(self, values: Mapping[str, float]) -> dict[str, float]:
        """The one number that stands for each control."""
        return {
            f"{name} {control.headline}": values[f"{name}_{control.headline}"]
            for name, control in self.controls.items()
        }

    def watched(self, values: Mapping[str, float]) -> dict[str, float]:
        return {}

    def warning(self, values: Mapping[str, Any]) -> str:
        return ""

    def sheet(self) -> Image.Image:
        """Condition, output, re-extracted condition, their difference, for the first samples."""
        rows: dict[str, list[tuple[str, list[Tensor]]]] = {name: [] for name in self.controls}
        for batch in self.batches:
            if any(len(each) >= _PREVIEW_ROWS for each in rows.values()):
                break
            image = self.draw(batch)
            for name, control in self.controls.items():
                asked, found = batch.conditions[name].cpu(), control.condition(image).cpu()
                cells = zip(asked, image.cpu(), found, (found - asked).abs(), strict=True)
                rows[name] += [(f"{name}: {text}", list(row)) for text, row in zip(batch.texts, cells, strict=True)]
        shown = [row for each in rows.values() for row in each[:_PREVIEW_ROWS]]
        return grid(["condition", "output", "re-extracted", "error"], shown)

    def _score(self, means: Mapping[str, float]) -> float:
        """Mean over controls of +-log(headline): a fraction gained counts the same for each."""
        ranks = [
            _rank(means[f"{name}_{control.headline}"]) * (1 if control.higher_is_better else -1)
            for name, control in self.controls.items()
        ]
        return sum(ranks) / len(ranks)

    def _score_error(self, samples: Mapping[str, Tensor]) -> float:
        """Of the controls' mean: the root of the sum of their squares, over K."""
        errors = [
            _error(samples[f"{name}_{control.headline}"], control.higher_is_better)
            for name, control in self.controls.items()
        ]
        return torch.stack(errors).norm().item() / len(errors)


def _rank(value: float) -> float:
    """The logarithm of what is positive; what is negative lies below all of these, as far apart as it is."""
    return math.log(max(value, 1e-6)) + min(value, 0)


def _error(values: Tensor, higher_is_better: bool) -> Tensor:
    """Standard error of the rank of a mean: to first order std / (mean sqrt(n)), where no value is negative.

    Elsewhere the mean may be near 0, where the logarithm is steep: how far the rank of a mean that is better by one
    standard error is from its own.
    """
    mean, error = values.mean(), values.std(correction=0) / len(values) ** 0.5
    if values.min() >= 0:
        return values.std(correction=0) / mean.clamp_min(1e-6) / len(values) ** 0.5
    better = mean + error if higher_is_better else mean - error
    return torch.tensor(abs(_rank(better.item()) - _rank(mean.item())))


@dataclass(frozen=True)
class RunObserver:
    """Writes metrics.jsonl, curve.png and previews/ in the run folder, and passes records on."""

    folder: Path
    validation: Measure
    show: Callable[[Mapping[str, Any]], None]
    events: EventFiles | None = None  # where numbers and previews go too

    def log(self, record: dict[str, Any]) -> None:
        if record["event"] == "validation":
            drawn = {"adherence": self.validation.headlines(record), "watched": self.validation.watched(record)}
            record = record | drawn
            advice = self.validation.warning(record)
        else:
            advice = saturation_advice(record)
        if advice:
            record = record | {"warning": advice}
        metrics = self.folder / "metrics.jsonl"
        add_record(metrics, record)
        if record["event"] == "validation":
            curve = self.folder / "curve.png"
            with writing(curve):
                draw_curve(metrics, curve)
        if self.events:
            self.events.write(record)
        self.show(record)

    def validate(self) -> dict[str, float]:
        return self.validation.measure()

    def preview(self, name: str) -> None:
        """previews/step-000100.png"""
        path, sheet = self.folder / "previews" / f"{name}.png", self.validation.sheet()
        with writing(path):
            path.parent.mkdir(exist_ok=True)
            sheet.save(path)
        if self.events:
            self.events.show(sheet)
