"""What the cells of a comparison will still take, from counted operations and the pace of what has run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from jdmctl.comparison.cells import Cell
from jdmctl.comparison.cost import Cost, countable_cost, training_flops
from jdmctl.comparison.history import History


@dataclass(frozen=True)
class Estimate:
    cost: Cost | None  # of an update; None: given, or cannot be counted yet
    flops: float | None  # of all updates, warm-ups among them
    seconds_so_far: float
    seconds_left: float | None  # None: nothing has run yet that would give a pace


def estimate(cells: Sequence[Cell]) -> dict[str, Estimate]:
    """Each cell's cost, by name; a cell is as fast, in operations, as the mean of those that are done."""
    costs = {cell.name: None if cell.is_given else countable_cost(cell) for cell in cells}
    flops = {cell.name: 0.0 if cell.is_given else training_flops(cell, costs[cell.name]) for cell in cells}
    seconds = {cell.name: History.of(cell.folder).seconds for cell in cells}
    done = [(counted, seconds[cell.name]) for cell in cells if cell.is_done and (counted := flops[cell.name])]
    pace = sum(spent for _, spent in done) / sum(counted for counted, _ in done) if done else None
    found: dict[str, Estimate] = {}
    for cell in cells:
        counted, spent = flops[cell.name], seconds[cell.name]
        left = 0.0 if cell.is_done else None
        if left is None and counted and pace:
            left = max(0.0, counted * pace - spent)
        found[cell.name] = Estimate(costs[cell.name], counted, spent, left)
    return found
