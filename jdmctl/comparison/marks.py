"""What is measured of a method's pictures: each metric is a function of which scenes are in, to be resampled."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from jdmctl.evaluation.adherence import scores
from jdmctl.evaluation.appearance import mean_color, mean_distance, rms_difference, sharpness
from jdmctl.evaluation.diversity import entropy, seed_distance
from jdmctl.evaluation.fidelity import frechet_distance, kernel_statistic, nearest
from jdmctl.evaluation.manifold import among, recall_statistic
from jdmctl.evaluation.prompts import OPEN, Classes

if TYPE_CHECKING:
    from jdmctl.comparison.scenes import Drawing, Scenes

Statistic = Callable[[Tensor], float]  # of the scenes at given indices
Marks = dict[str, list[Statistic]]  # metric -> one for each seed

_MANY_ATTRIBUTES = 8  # more are told as one number


def marks_of(scenes: Scenes, drawings: Sequence[Drawing]) -> Marks:
    """Every metric of a method, from its drawings, one a seed."""
    marks: Marks = {}
    for drawing in drawings:
        found = {
            **_adherence(scenes, drawing.images),
            **_liking(scenes, drawing.images),
            **_fidelity(scenes, drawing.images),
            **_appearance(scenes, drawing.images),
            **_prompt(scenes, drawing.images),
            **_variety(scenes, drawing),
        }
        for metric, statistic in found.items():
            marks.setdefault(metric, []).append(statistic)
    return marks


def thumbnails(images: Tensor) -> Tensor:
    """[N, 3, 16, 16], in which copies are looked for."""
    return F.adaptive_avg_pool2d(images, 16)


def ratio(above: Statistic, below: Statistic) -> Statistic:
    """nan where there is nothing to divide by."""
    return lambda chosen: above(chosen) / (below(chosen) or math.nan)


def gap_closed(mark: Statistic, floor: Statistic, ceiling: Statistic) -> Statistic:
    """nan where nothing lies between floor and ceiling."""
    return lambda chosen: (mark(chosen) - floor(chosen)) / ((ceiling(chosen) - floor(chosen)) or math.nan)


def _adherence(scenes: Scenes, images: Tensor) -> dict[str, Statistic]:
    return {
        f"{name} {metric}": _mean_of(values.double())
        for name, control in scenes.controls.items()
        for metric, values in scores(
            control, images, scenes.conditions[name], scenes.at_once(64), scenes.device
        ).items()
    }


@torch.no_grad()
def _liking(scenes: Scenes, images: Tensor) -> dict[str, Statistic]:
    """Mean rewards of pictures and their captions."""
    size = scenes.at_once(50)
    batches = [slice(first, first + size) for first in range(0, len(images), size)]
    texts = [scenes.pictures.text(i) for i in range(len(images))]
    found = {}
    for name, reward in scenes.rewards.items():
        parts = [reward(images[part].to(scenes.device), texts[part]).cpu() for part in batches]
        found[name] = _mean_of(torch.cat(parts).double())
    return found


def _fidelity(scenes: Scenes, images: Tensor) -> dict[str, Statistic]:
    """Distances to the reference pictures, and to the student's own pictures without control, where there are some."""
    features = scenes.judge.features(images)
    found = distances(features, scenes.reference)
    if scenes.train is not None:
        found["nearest train"] = _mean_of(nearest(thumbnails(images), scenes.train))
    if scenes.base is not None:
        found["frechet to base"] = _frechet(features, scenes.base)
        found["kid to base"] = kernel_statistic(features, scenes.base)
    return found


def distances(features: Tensor, reference: Tensor) -> dict[str, Statistic]:
    """How a set is to another: of features [N, D] and [M, D]."""
    return {
        "frechet": _frechet(features, reference),
        "kid": kernel_statistic(features, reference),
        "precision": _mean_of(among(features, reference).double()),
        "recall": recall_statistic(features, reference),
    }


def _appearance(scenes: Scenes, images: Tensor) -> dict[str, Statistic]:
    """Beside the true pictures of the same scenes: sharpness as a ratio, colour as a distance in L*a*b*."""
    true = scenes.true_images()
    colors = mean_color(images) - mean_color(true)  # [N, 3]
    return {
        "sharpness": ratio(_mean_of(sharpness(images)), _mean_of(sharpness(true))),
        "color shift": lambda chosen: colors[chosen].mean(0).norm().item(),
    }


def _prompt(scenes: Scenes, images: Tensor) -> dict[str, Statistic]:
    """Share of pictures that show what their caption states, by attribute; or a score of picture and caption."""
    shown = scenes.judge.shown(images)
    correct = {
        f"{attribute} accuracy": torch.where(asked != OPEN, (shown[attribute] == asked).double(), torch.nan)
        for attribute, asked in scenes.stated().items()
        if (asked != OPEN).any()
    }
    if len(correct) > _MANY_ATTRIBUTES:
        correct = {"prompt accuracy": torch.stack(list(correct.values())).nanmean(0)}
    values = scenes.judge.prompt_scores(images, [scenes.pictures.text(i) for i in range(scenes.num)])
    if values is not None:
        correct["prompt score"] = values
    return {metric: _mean_of(each) for metric, each in correct.items()}


def _variety(scenes: Scenes, drawing: Drawing) -> dict[str, Statistic]:
    """What stays free: attributes that captions leave open, and how far apart two seeds of one request are.

    The distance of seeds is in units of that between two reference pictures. `drift` is what control training did to
    pictures without control: their difference to the base student's from the same noise.
    """
    found: dict[str, Statistic] = {}
    shown, true = scenes.judge.shown(drawing.images), scenes.judge.classes(scenes.pictures.truth[: scenes.num])
    if ratios := open_entropy_ratios(shown, scenes.stated(), true):
        found["open entropy"] = mean_of_known(list(ratios.values()))
        if len(ratios) <= _MANY_ATTRIBUTES:
            found |= {f"open {attribute} entropy": ratio for attribute, ratio in ratios.items()}
    if drawing.again is not None:
        two = torch.stack([drawing.images[: len(drawing.again)], drawing.again])  # [2, n, 3, H, W]
        apart = seed_distance(scenes.judge.features(two.flatten(0, 1)).unflatten(0, two.shape[:2]))
        found["seed distance"] = _mean_of_some(apart / mean_distance(scenes.reference[:500]))
    if drawing.uncontrolled is not None and scenes.uncontrolled is not None:
        found["drift"] = _mean_of_some(rms_difference(drawing.uncontrolled, scenes.uncontrolled))
    return found


def _frechet(features: Tensor, reference: Tensor) -> Statistic:
    return lambda chosen: frechet_distance(features[chosen], reference)


def _mean_of(values: Tensor) -> Statistic:
    return lambda chosen: values[chosen].nanmean().item()


def _mean_of_some(values: Tensor) -> Statistic:
    """Of the first scenes alone."""
    return lambda chosen: values[chosen[chosen < len(values)]].mean().item()


def mean_of_known(each: Sequence[Statistic]) -> Statistic:
    """Of those that are not nan."""

    def statistic(chosen: Tensor) -> float:
        known = [value for value in (one(chosen) for one in each) if not math.isnan(value)]
        return sum(known) / len(known) if known else math.nan

    return statistic


def open_entropy_ratios(shown: Classes, stated: Classes, true: Classes) -> dict[str, Statistic]:
    """Attribute -> its entropy where captions leave it open, over that of the true scenes; nan where these do not vary.

    Attributes that the true scenes hardly vary where captions leave them open are left out.
    """

    def ratio_of(name: str, is_open: Tensor) -> Statistic:
        def statistic(chosen: Tensor) -> float:
            where = chosen[is_open[chosen]]
            most = entropy(true[name][where])
            return entropy(shown[name][where]) / most if most else math.nan

        return statistic

    gaps = {name: asked == OPEN for name, asked in stated.items()}
    return {
        name: ratio_of(name, is_open)
        for name, is_open in gaps.items()
        if is_open.sum() > 1 and entropy(true[name][is_open]) > 0.1
    }
