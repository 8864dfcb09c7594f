"""Every measure of a method's pictures at once, and comparisons between methods scene by scene."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from jdmctl.evaluation.adherence import Scorer, scores
from jdmctl.evaluation.bootstrap import Estimate, bootstrap
from jdmctl.evaluation.diversity import open_entropy, seed_distance
from jdmctl.evaluation.fidelity import frechet_distance, kernel_distance
from jdmctl.evaluation.prompts import OPEN, Classes
from jdmctl.types import Controls

Statistic = Callable[[Tensor], float]  # of which of the N scenes are in, long [n]
Marks = Mapping[str, Statistic]  # metric -> statistic


@dataclass(frozen=True)
class Exam:
    """What every method is asked to draw, and what judges it.

    `classify` and `features` are those of a network that nothing was trained with; `reference`
    holds features [M, D] of true pictures, of other scenes than the conditions are taken from.
    """

    conditions: Controls  # [N, 3, H, W] each
    scorers: Mapping[str, Scorer]  # one for each condition
    features: Callable[[Tensor], Tensor]  # images [N, 3, H, W] in [0, 1] -> [N, D]
    reference: Tensor
    classify: Callable[[Tensor], Classes] | None = None
    stated: Classes | None = None  # what the captions state, OPEN where they do not

    def mark(self, images: Tensor) -> dict[str, Statistic]:
        """Marks of images [S, N, 3, H, W]: S seeds of the same N scenes. Means are over seeds too.

        `canny f1` ...: each score of each control; `frechet`, `kernel distance` to the reference;
        `seed distance` if S > 1; `color accuracy` ... and `open entropy`, the mean over attributes,
        if there is a classifier.
        """
        marks: dict[str, Statistic] = {}
        for name, condition in self.conditions.items():
            each = [scores(self.scorers[name], part, condition) for part in images]
            for metric in each[0]:
                by_scene = torch.stack([seed[metric] for seed in each]).double().mean(0)
                marks[f"{name} {metric}"] = partial(_mean, by_scene)
        features = torch.stack([self.features(part) for part in images])  # [S, N, D]
        marks["frechet"] = partial(_distance, frechet_distance, features, self.reference)
        marks["kernel distance"] = partial(_distance, kernel_distance, features, self.reference)
        if len(images) > 1:
            marks["seed distance"] = partial(_mean, seed_distance(features))
        if self.classify is not None and self.stated is not None:
            marks |= _content([self.classify(part) for part in images], self.stated)
        return marks


def _content(shown: list[Classes], stated: Classes) -> dict[str, Statistic]:
    marks: dict[str, Statistic] = {}
    for name, classes in stated.items():
        correct = torch.stack([seed[name] == classes for seed in shown]).double().mean(0)
        marks[f"{name} accuracy"] = partial(_mean, correct.where(classes != OPEN, torch.nan))
    marks["open entropy"] = partial(_entropy, shown, stated)
    return marks


def _mean(values: Tensor, chosen: Tensor) -> float:
    return values[chosen].nanmean().item()


def _distance(
    distance: Callable[[Tensor, Tensor], float], features: Tensor, reference: Tensor, chosen: Tensor
) -> float:
    return sum(distance(seed[chosen], reference) for seed in features) / len(features)


def _entropy(shown: list[Classes], stated: Classes, chosen: Tensor) -> float:
    gaps = {name: classes[chosen] for name, classes in stated.items()}
    values: list[float] = []
    for seed in shown:
        values += open_entropy({name: seed[name][chosen] for name in stated}, gaps).values()
    return sum(values) / len(values)


def compare(
    function: Callable[..., float], *methods: Marks, n: int, resamples: int = 200, seed: int = 0
) -> dict[str, Estimate]:
    """Metric -> `function` of the methods' marks over the same n scenes, with its interval.

    The scenes are resampled together: what makes one hard for every method cancels. Metrics that
    not all methods have are left out.

    >>> compare(lambda ours, theirs: ours / theirs, ours, theirs, n=500)
    """
    shared = [metric for metric in methods[0] if all(metric in marks for marks in methods)]

    def statistic(metric: str, chosen: Tensor) -> float:
        return function(*(marks[metric](chosen) for marks in methods))

    return {
        metric: bootstrap(partial(statistic, metric), n, centered=True, resamples=resamples, seed=seed)
        for metric in shared
    }
