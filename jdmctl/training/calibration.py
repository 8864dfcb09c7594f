"""When the fake score is ready and how heavy each control weighs: the rules between warm-up and training."""

from __future__ import annotations

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
    Raises JdmError if an energy has no gradient to weigh.
    """
    for name, ratio in ratios.items():
        if ratio and not norms[name] > 0:
            raise JdmError(
                f"the energy of {name} has no gradient at the student's pictures (its norm is {norms[name]})",
                hint="check the conditions: are they blank? set the control's ratio to 0 to leave it out",
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
            target = calibrated_weights(self.measure(step), self.ratios)
            self.lambdas = rebalanced_weights(self.lambdas, target)
        for name, value in self.lambdas.items():
            ramp = self.ramp_steps[name]
            self.weights[name] = value * min(1.0, (step + 1) / ramp) if ramp else value

    def state_dict(self) -> dict[str, Any]:
        return {"lambdas": self.lambdas}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.lambdas = dict(state["lambdas"])
