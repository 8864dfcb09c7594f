"""What a run folder tells of its own training: time, memory, and how adherence grew."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class History:
    """`curve` holds (seconds from the start of the run, first control's headline score on validation)."""

    seconds: float  # of training, warm-ups included
    memory_bytes: int  # the most that was held at once, as far as it was recorded
    curve: tuple[tuple[float, float], ...]

    @classmethod
    def of(cls, run: Path) -> History:
        """From metrics.jsonl; later records of the same step, after a resume, replace earlier ones."""
        paces: dict[str, dict[int, float]] = {}
        scores: dict[str, dict[int, float]] = {}
        memory = 0
        for line in _lines(run / "metrics.jsonl"):
            record = json.loads(line)
            if record["event"] == "step":
                paces.setdefault(record["stage"], {})[record["step"]] = record["seconds"]
                memory = max(memory, record.get("memory_bytes", 0))
            elif record["event"] == "validation":
                scores.setdefault(record["stage"], {})[record["step"]] = next(iter(record["adherence"].values()))
        began, curve = 0.0, []
        for stage, seconds in paces.items():
            clock, total = {0: 0.0}, 0.0
            for step in sorted(seconds):
                total += seconds[step]
                clock[step] = total
            for step, score in sorted(scores.get(stage, {}).items()):
                curve.append((began + max(at for known, at in clock.items() if known <= step), score))
            began += total
        return cls(began, memory, tuple(curve))

    def seconds_to(self, score: float, higher_is_better: bool) -> float | None:
        """When validation first showed this score or a better one."""
        return next((at for at, found in self.curve if (found >= score) == higher_is_better or found == score), None)


def _lines(file: Path) -> list[str]:
    return file.read_text(encoding="utf-8").splitlines() if file.exists() else []
