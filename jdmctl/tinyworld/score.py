"""Scores on a world's held-out scenes: runs of add-control beside what they have to beat, as rows of a table."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from jdmctl.controls.base import Control
from jdmctl.evaluation.adherence import scores
from jdmctl.evaluation.bootstrap import bootstrap
from jdmctl.evaluation.diversity import entropy
from jdmctl.evaluation.fidelity import frechet_distance, kernel_statistic, nearest
from jdmctl.evaluation.prompts import OPEN, Classes
from jdmctl.evaluation.results import Row
from jdmctl.families.stable_diffusion import StableDiffusion
from jdmctl.tinyworld.judge import Judge
from jdmctl.tinyworld.source import Pictures
from jdmctl.training.draws import SampleDraws

Statistic = Callable[[Tensor], float]  # of the scenes at given indices
Marks = dict[str, list[Statistic]]  # metric -> one for each seed

TRUE, ROUND_TRIP, NO_CONTROL = "true pictures", "VAE round trip", "student without control"
_RESAMPLES = 300
_BATCH = 50
_MANY_ATTRIBUTES = 8  # more are told as one number


@dataclass(frozen=True)
class Scenes:
    """What every method is asked for: captions and conditions of held-out scenes, and who judges the answers.

    The reference pictures of the Frechet and kernel distances are other scenes.
    """

    world: str
    pictures: Pictures
    num: int
    controls: dict[str, Control]
    conditions: dict[str, Tensor]  # [N, 3, H, W] in [0, 1]
    judge: Judge
    reference: Tensor  # float64 [M, D] features
    train: Tensor  # [T, 3, 16, 16], to look for copies in

    @classmethod
    def make(
        cls,
        world: str,
        pictures: Pictures,
        num: int,
        controls: dict[str, Control],
        judge: Judge,
        reference: Pictures,
        train: Pictures,
    ) -> Scenes:
        num = min(num, len(pictures))
        conditions = {
            name: torch.cat([control.condition(pictures.image(part)) for part in torch.arange(num).split(_BATCH)])
            for name, control in controls.items()
        }
        features = judge.features(reference.image(slice(None)))
        thumbnails = torch.cat([_thumbnail(train.image(part)) for part in torch.arange(len(train)).split(500)])
        return cls(world, pictures, num, controls, conditions, judge, features, thumbnails)

    def true_images(self) -> Tensor:
        return self.pictures.image(slice(0, self.num))

    @torch.no_grad()
    def round_trip(self, family: StableDiffusion) -> Tensor:
        """The true pictures through the VAE: what no latent model can do better than."""
        parts = self.true_images().split(_BATCH)
        return torch.cat([family.codec.decode(family.codec.encode(part)).clamp(0, 1) for part in parts])

    @torch.no_grad()
    def draw(
        self,
        family: StableDiffusion,
        seed: int,
        num_steps: int = 1,
        guidance_scale: float = 1.0,
        controlled: bool = True,
    ) -> Tensor:
        """Images [N, 3, H, W] in [0, 1]: of the student in one step, or of the teacher in several."""
        images = []
        for part in torch.arange(self.num).split(_BATCH):
            prompt = family.encode_prompt([self.pictures.text(i) for i in part.tolist()])
            noise = SampleDraws(seed, "score", part.tolist()).normal("student_noise", family.latent_shape)
            controls = {name: maps[part] for name, maps in self.conditions.items()} if controlled else {}
            if num_steps == 1:
                latent = family.student.generate(noise, prompt, controls)
            else:
                latent = family.multistep(noise, prompt, num_steps, guidance_scale, controls)
            images.append(family.codec.decode(latent).clamp(0, 1))
        return torch.cat(images)

    def marks(self, images: Sequence[Tensor]) -> Marks:
        """Every metric of a method whose seeds drew `images`."""
        marks: Marks = {}
        for drawn in images:
            for metric, statistic in self._statistics(drawn).items():
                marks.setdefault(metric, []).append(statistic)
        return marks

    def rows(self, method: str, passes: int, marks: Marks, seeds: Sequence[int], command: str) -> list[Row]:
        """A value is the mean over seeds; its interval is the 95 % bootstrap over scenes, widened to hold each seed."""
        name, rows = "+".join(self.controls), []
        for metric, each in marks.items():
            value, low, high = self._estimate(each, centered=metric in ("frechet", "kid"))
            rows.append(Row(self.world, name, method, passes, metric, value, low, high, list(seeds), self.num, command))
        return rows

    def compared(self, marks: Marks, baselines: dict[str, Marks]) -> Marks:
        """Ratios of adherence and Frechet distance to other methods', on the same scenes.

        Also how much of the way from no control to the VAE's round trip of the true pictures a score has come.
        """
        found: Marks = {}
        headlines = [f"{name} {control.headline}" for name, control in self.controls.items()]
        for metric in headlines:
            floor, ceiling = (baselines[name][metric][0] for name in (NO_CONTROL, ROUND_TRIP))
            found[f"{metric} gap closed"] = [_gap_closed(mark, floor, ceiling) for mark in marks[metric]]
        for method, others in baselines.items():
            if method not in (TRUE, ROUND_TRIP):
                for metric in [*headlines, "frechet"]:
                    found[f"{metric} / {method}"] = [_ratio(mark, others[metric][0]) for mark in marks[metric]]
        return found

    def _estimate(self, each: Sequence[Statistic], centered: bool) -> tuple[float, float, float]:
        def mean_over_seeds(chosen: Tensor) -> float:
            return sum(statistic(chosen) for statistic in each) / len(each)

        found = bootstrap(mean_over_seeds, self.num, centered=centered, resamples=_RESAMPLES)
        by_seed = [statistic(torch.arange(self.num)) for statistic in each]
        return found.value, min(found.low, *by_seed), max(found.high, *by_seed)

    def _statistics(self, images: Tensor) -> dict[str, Statistic]:
        found: dict[str, Statistic] = {}
        for name, control in self.controls.items():
            for metric, values in scores(control, images, self.conditions[name]).items():
                found[f"{name} {metric}"] = _mean_of(values.double())
        features = self.judge.features(images)
        found["frechet"] = lambda chosen: frechet_distance(features[chosen], self.reference)
        found["kid"] = kernel_statistic(features, self.reference)
        found["nearest train"] = _mean_of(nearest(_thumbnail(images), self.train))
        shown, true = self.judge.shown(images), self.judge.classes(self.pictures.truth[: self.num])
        stated = self.judge.classes(self.pictures.stated[: self.num, 0])
        correct = {
            f"{attribute} accuracy": torch.where(asked != OPEN, (shown[attribute] == asked).double(), torch.nan)
            for attribute, asked in stated.items()
            if (asked != OPEN).any()
        }
        if len(correct) > _MANY_ATTRIBUTES:
            correct = {"prompt accuracy": torch.stack(list(correct.values())).nanmean(0)}
        found |= {metric: _mean_of(values) for metric, values in correct.items()}
        if statistic := _open_entropy(shown, stated, true):
            found["open entropy"] = statistic
        return found


def _mean_of(values: Tensor) -> Statistic:
    return lambda chosen: values[chosen].nanmean().item()


def _ratio(above: Statistic, below: Statistic) -> Statistic:
    return lambda chosen: above(chosen) / below(chosen)


def _gap_closed(mark: Statistic, floor: Statistic, ceiling: Statistic) -> Statistic:
    return lambda chosen: (mark(chosen) - floor(chosen)) / (ceiling(chosen) - floor(chosen))


def _thumbnail(images: Tensor) -> Tensor:
    return F.adaptive_avg_pool2d(images, 16)


def _open_entropy(shown: Classes, stated: Classes, true: Classes) -> Statistic | None:
    """Entropy of the attributes that captions leave open, over that of the true scenes; mean over attributes.

    Attributes that the true scenes hardly vary where captions leave them open are left out; None if no other is there.
    """
    is_open = {name: asked == OPEN for name, asked in stated.items()}
    varied = [name for name, where in is_open.items() if where.sum() > 1 and entropy(true[name][where]) > 0.1]

    def statistic(chosen: Tensor) -> float:
        ratios = []
        for name in varied:
            where = chosen[is_open[name][chosen]]
            if most := entropy(true[name][where]):
                ratios.append(entropy(shown[name][where]) / most)
        return sum(ratios) / len(ratios)

    return statistic if varied else None
