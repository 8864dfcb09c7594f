"""Several controls as one number: geometric means of ratios to a baseline, scenes resampled together."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch

from jdmctl.comparison.marks import Marks, Statistic
from jdmctl.comparison.scenes import Scenes, estimate
from jdmctl.evaluation.results import Row

CONSISTENCY = "consistency"  # the distance that each control is scored by in the papers: l1 of the condition


def mean_rows(
    scenes: Sequence[Scenes], compared: Sequence[Mapping[str, Marks]], seeds: Mapping[str, Sequence[int]], command: str
) -> list[Row]:
    """A row for each method and ratio that all controls have; `compared` holds method -> ratios, a control each.

    Different controls have different metrics of adherence; their l1 distances, which all have, are named consistency.
    """
    rows = []
    name = "mean of " + ", ".join("+".join(one.controls) for one in scenes)
    num = min(one.num for one in scenes)
    for method in [method for method in compared[0] if all(method in marks for marks in compared)]:
        ratios = [_renamed(marks[method], one.controls) for marks, one in zip(compared, scenes, strict=True)]
        for metric in [metric for metric in ratios[0] if all(metric in found for found in ratios)]:
            number = min(len(found[metric]) for found in ratios)
            each = [_geometric_mean([found[metric][seed] for found in ratios]) for seed in range(number)]
            value, low, high = estimate(metric, each, num)
            if math.isfinite(low + value + high):
                rows.append(
                    Row(scenes[0].world, name, method, 1, metric, value, low, high, list(seeds[method][:number]), num,
                        command, scenes[0].setup)
                )  # fmt: skip
    return rows


def _renamed(marks: Marks, controls: Mapping[str, object]) -> Marks:
    found: Marks = {}
    for metric, each in marks.items():
        for name in controls:
            metric = metric.replace(f"{name} l1 / ", f"{CONSISTENCY} / ")
        found[metric] = each
    return found


def _geometric_mean(statistics: Sequence[Statistic]) -> Statistic:
    def statistic(chosen: torch.Tensor) -> float:
        values = [each(chosen) for each in statistics]
        if min(values) <= 0 or not all(map(math.isfinite, values)):
            return math.nan
        return math.exp(sum(map(math.log, values)) / len(values))

    return statistic
