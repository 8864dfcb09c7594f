"""When the fake score is ready, and how heavy each control weighs: the two rules between warm-up and training."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

FIDELITY = "fidelity"


def is_level(losses: Sequence[float], window: int = 20, tolerance: float = 0.02) -> bool:
    """Whether a loss has stopped falling: the mean of the last `window` values is not below that of the `window`
    before by more than `tolerance` (a fraction)."""
    if len(losses) < 2 * window:
        return False
    last = sum(losses[-window:]) / window
    before = sum(losses[-2 * window : -window]) / window
    return last >= (1 - tolerance) * before


def mean_norms(measurements: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """The mean of each named gradient norm over several batches."""
    rows = list(measurements)
    return {name: sum(row[name] for row in rows) / len(rows) for name in rows[0]}


def calibrated_weights(norms: Mapping[str, float], ratios: Mapping[str, float]) -> dict[str, float]:
    """lambda_k = ratio_k * |grad fidelity| / |grad E_k|: the unit in which a recipe states a control's weight.

    `norms` are mean per-sample gradient norms at the student's output with every lambda = 1. A control whose
    gradient vanishes cannot be given any share of the gradient: ZeroDivisionError names it.
    """
    weights = {}
    for name, ratio in ratios.items():
        if ratio and not norms[name] > 0:
            raise ZeroDivisionError(name)
        weights[name] = ratio * norms[FIDELITY] / norms[name] if ratio else 0.0
    return weights


def rebalanced_weights(
    current: Mapping[str, float], target: Mapping[str, float], step_towards: float = 0.2
) -> dict[str, float]:
    """A geometric step from the present weights towards freshly calibrated ones.

    The heuristic behind `balance: continuous`. It keeps the ratio of norms while both gradients change, and by doing
    so minimises no fixed objective; the default freezes the weights after one calibration.
    """
    return {
        name: current[name] ** (1 - step_towards) * target[name] ** step_towards if current[name] else value
        for name, value in target.items()
    }
