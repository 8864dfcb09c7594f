"""What methods cost, beside what they reach: network by network, in all, and as rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from jdmctl.comparison.cells import Cell
from jdmctl.comparison.cost import Cost, countable_cost, main_flops, training_flops
from jdmctl.comparison.scenes import Scenes
from jdmctl.evaluation.results import Row, setup
from jdmctl.recipe import AWARE_TEACHERS


def shares(cost: Cost) -> str:
    """`fake score 49, student 26` GFLOP of an update, the greatest first; what is below a hundredth is left out."""
    greatest = sorted(cost.parts.items(), key=lambda part: -part[1])
    return ", ".join(f"{name} {flops / 1e9:.3g}" for name, flops in greatest if flops > cost.flops / 100)


def goal(cells: Sequence[Cell], higher_is_better: bool, given: float | None = None) -> float | None:
    """What is given, or what the first run that was validated reached, less 2 %; None: there is none yet."""
    if given is not None:
        return given
    curves = (cell.history().curve for cell in cells)
    scores = [score for _, score in next(filter(None, curves), ())]
    if not scores:
        return None
    best = max(scores) if higher_is_better else min(scores)
    return best - 0.02 * abs(best) if higher_is_better else best + 0.02 * abs(best)


def total_flops(
    cell: Cell, cost: Cost, of: Callable[[Cell, Cost | None], float | None] = training_flops
) -> float | None:
    """Of all updates, and of those that trained its teacher's ControlNets; None: not countable."""
    found = [of(cell, cost), *(of(one, countable_cost(one)) for one in cell.needed())]
    known = [flops for flops in found if flops is not None]
    return sum(known) if len(known) == len(found) else None


def ordinary(cell: Cell) -> str:
    """In words, whether what a cell costs holds the training of the ordinary ControlNets that it uses."""
    if cell.is_given:
        return "given: its training is not counted"
    words = []
    if cell.recipe.method in AWARE_TEACHERS:
        trained = {one.folder for one in cell.needed()}
        runs = [Path(control.teacher_branch).parent for control in cell.recipe.controls]
        words += [f"its teacher's is {run.name}'s, counted" for run in runs if run in trained]
        words += ["its teacher's is given, not counted" for run in runs if run not in trained]
    if any(control.init not in ("student", "dsm") for control in cell.recipe.controls):
        words.append("its branch begins at a given one, not counted")
    return "; ".join(dict.fromkeys(words))


def cost_rows(
    cells: Sequence[Cell],
    costs: Mapping[str, Cost],
    scenes: Scenes,
    headline: str,
    command: str,
    given_goal: float | None = None,
) -> list[Row]:
    """Rows of each method that was trained, under the name that its pictures have: mean over seeds, and their range.

    What training took is with that of its teacher's ControlNets where runs trained them. How much of it is theirs has
    rows of its own; a method whose ControlNet was given has none.
    """
    higher, rows = scenes.is_better_higher, []
    to_reach = goal(cells, higher, given_goal)
    for label, cost in costs.items():
        done = [cell for cell in cells if cell.label == label and cell.is_done]
        clocked = _clocked(done)
        if to_reach is not None:
            clocked[f"minutes to {headline} {to_reach:.3g}"] = _minutes_to(to_reach, done, higher)
        for how, measured in (("one update, counted while it ran", _counted(done, cost)), ("runs' clocks", clocked)):
            rows += [
                Row(scenes.world, "+".join(scenes.controls), done[0].called, 1, metric, *_range(values),
                    [cell.recipe.seed for cell in done[: len(values)]], len(values), command, setup(how))
                for metric, values in measured.items() if values
            ]  # fmt: skip
    return rows


def in_short(rows: Sequence[Row]) -> list[Row]:
    """Without those of single networks."""
    return [row for row in rows if " of " not in row.metric or not row.metric.endswith(" an update")]


def _counted(done: Sequence[Cell], cost: Cost) -> dict[str, list[float]]:
    """Metric -> value of the first seed's update, and values of all that each had, one a seed; or none."""
    found = {"GFLOP an update": [cost.flops / 1e9]}
    found |= {f"GFLOP of {name} an update": [flops / 1e9] for name, flops in cost.parts.items()}
    for name, (there, back) in cost.passes.items():
        if there:
            found |= {f"passes of {name} an update": [there], f"backward passes of {name} an update": [back]}
    for stages, of in (("training", training_flops), ("main stage", main_flops)):
        both = [(total_flops(cell, cost, of), of(cell, cost)) for cell in done]
        known = [(whole / 1e12, own / 1e12) for whole, own in both if whole and own]
        found[f"{stages} TFLOP"] = [whole for whole, _ in known]
        found[f"{stages} TFLOP of its ControlNet"] = [whole - own for whole, own in known if done[0].needed()]
    return found


def _clocked(done: Sequence[Cell]) -> dict[str, list[float]]:
    """Metric -> values, one a seed, or none."""
    histories = [cell.history() for cell in done]
    earlier = [sum(one.history().seconds for one in cell.needed()) / 60 for cell in done]
    memory = [history.memory_bytes / 1e9 for history in histories]
    return {
        "training minutes": [history.seconds / 60 for history in histories],
        "training minutes of its ControlNet": earlier if done[0].needed() else [],
        "peak memory GB": memory if all(memory) else [],
    }


def _minutes_to(score: float, done: Sequence[Cell], higher_is_better: bool) -> list[float]:
    """One a seed; none if a seed did not come to that score."""
    found = [cell.history().seconds_to(score, higher_is_better) for cell in done]
    reached = [seconds / 60 for seconds in found if seconds is not None]
    return reached if len(reached) == len(done) else []


def _range(values: Sequence[float]) -> tuple[float, float, float]:
    mean = sum(values) / len(values)
    return mean, min(mean, *values), max(mean, *values)
