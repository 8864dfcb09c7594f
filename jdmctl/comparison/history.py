"""What a run folder tells of its own training: time, memory, and what validation measured on the way."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from jdmctl.training.records import read_records


@dataclass(frozen=True)
class History:
    """`curves` holds title -> (seconds from the start of the run, value on validation), in the order of a run's own:
    the first control's or reward's headline stands first."""

    seconds: float  # of training, warm-ups included
    memory_bytes: int  # the most that was held at once, as far as it was recorded
    curves: Mapping[str, tuple[tuple[float, float], ...]]
    updates: Mapping[str, int]  # stage -> how many it has had

    @property
    def curve(self) -> tuple[tuple[float, float], ...]:
        """The first of them."""
        return next(iter(self.curves.values()), ())

    @classmethod
    def of(cls, run: Path) -> History:
        """From metrics.jsonl; later records of the same step, after a resume, replace earlier ones."""
        paces: dict[str, dict[int, float]] = {}
        scores: dict[str, dict[int, dict[str, float]]] = {}
        memory = 0
        for record in read_records(run / "metrics.jsonl"):
            if record["event"] == "step":
                paces.setdefault(record["stage"], {})[record["step"]] = record["seconds"]
                memory = max(memory, record.get("memory_bytes", 0))
            elif record["event"] == "validation":
                found = record["adherence"] | record.get("watched", {})
                scores.setdefault(record["stage"], {})[record["step"]] = found
        began = 0.0
        curves: dict[str, list[tuple[float, float]]] = {}
        for stage, seconds in paces.items():
            clock, total = {0: 0.0}, 0.0
            for step in sorted(seconds):
                total += seconds[step]
                clock[step] = total
            for step in sorted(found := scores.get(stage, {})):
                at = began + max(at for known, at in clock.items() if known <= step)
                for title, value in found[step].items():
                    curves.setdefault(title, []).append((at, value))
            began += total
        updates = {stage: max(seconds) for stage, seconds in paces.items()}
        return cls(began, memory, {title: tuple(points) for title, points in curves.items()}, updates)

    def after(self, seconds: float) -> History:
        """The same as a part of a longer story that began so much earlier."""
        later = {title: tuple((seconds + at, v) for at, v in points) for title, points in self.curves.items()}
        return History(seconds + self.seconds, self.memory_bytes, later, self.updates)

    def seconds_to(self, score: float, higher_is_better: bool) -> float | None:
        """When validation first showed this score or a better one."""
        return next((at for at, found in self.curve if (found >= score) == higher_is_better or found == score), None)
