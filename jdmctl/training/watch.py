"""Alarms: what tells that a student no longer earns its rewards but has begun to fool them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

_FALL = 0.25  # of a held-out reward, in spreads over pictures at the start
_FRECHET, _DIVERSITY, _LOOKS, _ACCURACY = 1.5, 0.7, 1.5, 0.1
_LEAST = {"sharpness": 1e-4, "saturation": 0.02}  # of grey or flat pictures twice as little is nothing
_PENALTY = 1e3  # an alarmed checkpoint is better than another alarmed one only

_ADVICE = "lower rewards.NAME.ratio, set its threshold, show it crops, or add a second reward"


@dataclass
class Watch:
    """Every validation of a stage with rewards so far, and what is wrong with the last one.

    A reward that goes on rising proves nothing. Alarms are raised by what was never trained on, all against the
    student as the stage began: a held-out reward that falls by 0.25 of its spread from its best while trained ones
    rise; Frechet distance 1.5 times as large; pictures of one prompt 0.7 times as far apart; sharpness or saturation
    changed 1.5 times; stated attributes shown 0.1 less often; any of these not finite, at the start too.
    """

    trained: tuple[str, ...]
    heldout: tuple[str, ...]
    history: list[dict[str, float]] = field(default_factory=list)
    spreads: dict[str, float] = field(default_factory=dict)  # reward -> its standard deviation at the start

    def restart(self) -> None:
        """What comes next is looked at for the first time."""
        self.history, self.spreads = [], {}

    def look(self, values: Mapping[str, float], spreads: Mapping[str, float]) -> dict[str, float]:
        """`values` with `alarm`, for how many looks in a row the same thing has been wrong, and `score`, which says
        which checkpoint is best: held-out rewards (without any, the trained) in spreads, alarms first."""
        self.spreads = self.spreads or dict(spreads)
        self.history.append(dict(values))
        before = self.history[-2] if len(self.history) > 1 else {}
        in_a_row = {f"{name} alarm": before.get(f"{name} alarm", 0) + 1 for name in self.problems()}
        self.history[-1] |= in_a_row
        alarm = max(in_a_row.values(), default=0)
        score = values.get("adherence_score", 0.0) + self._gain(self.heldout or self.trained)
        return {**values, "alarm": alarm, "score": score - _PENALTY * (alarm > 0)}

    def problems(self) -> dict[str, str]:
        """What is wrong with the last look, by what is measured: a sentence for each."""
        start, now = self.history[0], self.history[-1]
        found = {name: sentence for name in self.heldout if (sentence := self._fooled(name))}
        if now["frechet"] > _FRECHET * start["frechet"]:
            found["frechet"] = f"the distance to true pictures grew from {start['frechet']:.3g} to {now['frechet']:.3g}"
        if now["diversity"] < _DIVERSITY * start["diversity"]:
            found["diversity"] = (
                f"pictures of one prompt grew alike: their distance fell from {start['diversity']:.3g} "
                f"to {now['diversity']:.3g}"
            )
        for look, least in _LEAST.items():
            if not 1 / _LOOKS < max(now[look], least) / max(start[look], least) < _LOOKS:
                found[look] = f"{look} went from {start[look]:.3g} to {now[look]:.3g}"
        if now.get("accuracy", 0.0) < start.get("accuracy", 0.0) - _ACCURACY:
            found["accuracy"] = (
                f"what prompts state is shown less often: {now['accuracy']:.2f}, was {start['accuracy']:.2f}"
            )
        for name in (*self.heldout, "frechet", "diversity", *_LEAST, "accuracy"):
            if not math.isfinite(now.get(name, 0.0)):
                found[name] = f"{name} is {now[name]}"
        return found

    def advice(self) -> str:
        """What is wrong and what to do, or nothing."""
        problems = self.problems()
        return f"{'; '.join(problems.values())}. {_ADVICE.replace('NAME', '|'.join(self.trained))}" if problems else ""

    def _gain(self, names: Sequence[str]) -> float:
        """Mean rise since the start, in spreads."""
        start, now = self.history[0], self.history[-1]
        return sum((now[name] - start[name]) / max(self.spreads[name], 1e-6) for name in names) / len(names)

    def _fooled(self, name: str) -> str:
        best = max(self.history, key=lambda values: values[name])
        now = self.history[-1]
        rising = [other for other in self.trained if now[other] > best[other]]
        if not rising or best[name] - now[name] <= _FALL * self.spreads[name]:
            return ""
        told = ", ".join(f"{other} rose from {best[other]:.3g} to {now[other]:.3g}" for other in rising)
        return f"{told} while {name}, which is not trained on, fell from {best[name]:.3g} to {now[name]:.3g}"

    def state_dict(self) -> dict[str, Any]:
        return {"history": self.history, "spreads": self.spreads}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.history, self.spreads = list(state["history"]), dict(state["spreads"])
