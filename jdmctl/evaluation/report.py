"""From marks to rows: every metric of every method, and the ratios by which methods are told apart."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from jdmctl.evaluation.bootstrap import Estimate
from jdmctl.evaluation.contenders import ALONE, MULTISTEP, PLUGGED, ROUND_TRIP, TRUE
from jdmctl.evaluation.marks import Marks, compare
from jdmctl.evaluation.results import Row


@dataclass(frozen=True)
class Report:
    """What all rows of one evaluation have in common."""

    world: str
    control: str
    seeds: Sequence[int]
    n: int  # scenes
    command: str

    def rows(self, method: str, passes: int, found: Mapping[str, Estimate]) -> list[Row]:
        """A row for each metric of a method."""
        return [
            Row(
                world=self.world,
                control=self.control,
                method=method,
                passes=passes,
                metric=metric,
                value=estimate.value,
                low=estimate.low,
                high=estimate.high,
                seeds=list(self.seeds),
                n=estimate.n,
                command=self.command,
            )
            for metric, estimate in found.items()
        ]

    def values(self, method: str, passes: int, marks: Marks) -> list[Row]:
        return self.rows(method, passes, compare(float, marks, n=self.n))

    def comparisons(self, method: str, marks: Mapping[str, Marks], headlines: Sequence[str]) -> list[Row]:
        """`metric / other`, the ratio of a method's value to another's on the same scenes, for the
        headline scores, the Frechet distance and, to the true pictures, the entropy; `gap closed`,
        how much of the way from the student alone to the codec's round trip of the true pictures a
        headline score has come.
        """
        found: dict[str, Estimate] = {}
        for other in (ALONE, PLUGGED, MULTISTEP, TRUE):
            if other in marks:
                metrics = ["open entropy"] if other == TRUE else [*headlines, "frechet"]
                ratios = compare(operator.truediv, _only(marks[method], metrics), marks[other], n=self.n)
                found |= {f"{metric} / {other}": value for metric, value in ratios.items()}
        ours = _only(marks[method], headlines)
        closed = compare(_gap_closed, ours, marks[ALONE], marks[ROUND_TRIP], n=self.n)
        found |= {f"{metric} gap closed": value for metric, value in closed.items()}
        return self.rows(method, 1, found)


def _gap_closed(value: float, without: float, best: float) -> float:
    return (value - without) / (best - without)


def _only(marks: Marks, metrics: Sequence[str]) -> Marks:
    return {metric: marks[metric] for metric in metrics if metric in marks}
