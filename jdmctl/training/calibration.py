"""When the fake score is ready and how heavy each control weighs: the rules between warm-up and training."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from jdmctl.errors import JdmError
from jdmctl.types import EnergyWeights

REBALANCE_STEPS = 10


def is_level(losses: Sequence[float], window: int = 20, tolerance: float = 0.02) -> bool:
    """Whether a loss has stopped falling: the mean of the last `window` values is not below that of the
    `window` before by more than `tolerance` (a fraction)."""
    if len(losses) < 2 * window:
        return False
    last = sum(losses[-window:]) / window
    before = sum(losses[-2 * window : -window]) / window
    return last >= (1 - tolerance) * before


def calibrated_weights(norms: Mapping[str, float], ratios: Mapping[str, float]) -> dict[str, float]:
    """lambda_k = ratio_k * |grad fidelity| / |grad E_k|: a control's weight in the unit of a recipe.

    `norms` are mean per-sample gradient norms at the student's output with every lambda = 1.
    Raises JdmError if an energy has no gradient to weigh, or none that is finite.
    """
    for name, ratio in ratios.items():
        if ratio and not 0 < norms[name] < math.inf:
            of_zero = "a control's conditions may be blank, a reward's threshold be reached; a ratio of 0 leaves it out"
            raise JdmError(
                f"the energy of {name} has no gradient at the student's pictures (its norm is {norms[name]})",
                hint=of_zero if norms[name] == 0 else f"look at what {name} says of ordinary pictures",
            )
    return {name: ratio * norms["fidelity"] / norms[name] if ratio else 0.0 for name, ratio in ratios.items()}


def rebalanced_weights(
    current: Mapping[str, float], target: Mapping[str, float], stride: float = 0.2
) -> dict[str, float]:
    """A geometric step of `stride` of the way from the present weights to freshly calibrated ones."""
    return {k: current[k] ** (1 - stride) * target[k] ** stride for k in target}


@dataclass
class Balance:
    """The lambdas of a run: calibrated once and then frozen, each ramped up from 0 if it says so.

    With `is_continuous` they are measured again and moved every few steps. That heuristic keeps the
    ratio of gradient norms while both gradients change, and so minimises no fixed objective.
    """

    weights: EnergyWeights  # what the step reads
    ratios: Mapping[str, float]
    ramp_steps: Mapping[str, int]
    measure: Callable[[int], Mapping[str, float]]  # step -> gradient norms
    is_continuous: bool = False
    lambdas: dict[str, float] = field(default_factory=dict)

    def calibrate(self) -> None:
        self.lambdas = calibrated_weights(self.measure(0), self.ratios)

    def before_step(self, step: int) -> None:
        if self.is_continuous and step and step % REBALANCE_STEPS == 0:
            norms = self.measure(step)
            told = {name: ratio for name, ratio in self.ratios.items() if norms[name] != 0}  # else all is good enough
            self.lambdas |= rebalanced_weights(self.lambdas, calibrated_weights(norms, told))
        for name, value in self.lambdas.items():
            ramp = self.ramp_steps[name]
            self.weights[name] = value * min(1.0, (step + 1) / ramp) if ramp else value

    def state_dict(self) -> dict[str, Any]:
        return {"lambdas": self.lambdas, "ratios": dict(self.ratios)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Raises JdmError for other terms than were calibrated; another ratio of one moves its lambda with it."""
        lambdas, before = dict(state["lambdas"]), state.get("ratios", self.ratios)
        new = {name for name, ratio in self.ratios.items() if ratio and not before.get(name)}
        if lambdas and (new or before.keys() != self.ratios.keys()):
            raise JdmError(
                f"the run was calibrated for {', '.join(before)}, and is to go on with {', '.join(self.ratios)}"
                + (f"; of no weight was {', '.join(sorted(new))}" if before.keys() == self.ratios.keys() else ""),
                hint="begin again with another --output: what a resumed run weighs is measured at its start",
            )
        self.lambdas = {k: value * self.ratios[k] / before[k] if before[k] else 0.0 for k, value in lambdas.items()}
