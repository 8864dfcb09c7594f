"""The tables of a comparison's page that tell what training took."""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping, Sequence

from jdmctl.comparison.cells import Cell
from jdmctl.comparison.cost import Cost, updates
from jdmctl.comparison.spent import goal, ordinary, total_flops

_NOTE = (
    "Minutes include warm-ups; minutes and TFLOP include the training of the ordinary ControlNets that a method's "
    "teacher has, where the last column says so. The goal is what --goal says, else what the first run reached on "
    "validation, less 2 %. TFLOP are of all updates that were made, warm-ups among them."
)
_NOTE_OF_NETWORKS = (
    "GFLOP of an update of the main stage, and forward + backward passes, counted while it ran. A pass is of its whole "
    "batch, in however many pieces, and GFLOP are of all of them. They are of matrix products, convolutions and "
    "attention, where a multiplication with its addition is two. A critic's passes are its own, those that it takes of "
    "a UNet's way down among them."
)


def cost_tables(
    cells: Sequence[Cell],
    costs: Mapping[str, Cost],
    headline: str,
    higher_is_better: bool,
    given_goal: float | None = None,
) -> str:
    """What each run took, and how soon it came to what the first one reached; and an update, network by network."""
    called = {cell.label: cell.called for cell in cells}
    of_networks = _of_networks({called[label]: cost for label, cost in costs.items()}) if costs else ""
    to_reach = goal(cells, higher_is_better, given_goal)
    return _of_runs(cells, costs, headline, higher_is_better, to_reach) + of_networks


def _of_runs(
    cells: Sequence[Cell],
    costs: Mapping[str, Cost],
    headline: str,
    higher_is_better: bool,
    to_reach: float | None,
) -> str:
    columns = (
        "run", "state", "minutes", f"minutes to {headline} {'' if to_reach is None else f'{to_reach:.3g}'}",
        "peak memory, GB", "updates", "batch", "GFLOP an update", "TFLOP", "ordinary ControlNet",
    )  # fmt: skip
    lines = []
    for cell in cells:
        cost, training, history = costs.get(cell.label), cell.recipe.training, cell.history()
        reached = None if to_reach is None else history.seconds_to(to_reach, higher_is_better)
        whole = total_flops(cell, cost) if cost else None
        lines.append((
            cell.told, cell.state, f"{history.seconds / 60:.1f}", "" if reached is None else f"{reached / 60:.1f}",
            f"{history.memory_bytes / 1e9:.1f}", updates(cell), training.batch_size,
            f"{cost.flops / 1e9:.0f}" if cost else "", "" if whole is None else f"{whole / 1e12:.3g}", ordinary(cell),
        ))  # fmt: skip
    return _table(columns, lines, _NOTE)


def _of_networks(costs: Mapping[str, Cost]) -> str:
    """A line for each method, a column for each network."""
    names = dict.fromkeys(name for cost in costs.values() for name in (*cost.passes, *cost.parts))
    names = dict.fromkeys(name for name in names if any(_share(cost, name) for cost in costs.values()))
    lines = [(method, *(_share(cost, name) for name in names)) for method, cost in costs.items()]
    return _table(("method", *names), lines, _NOTE_OF_NETWORKS)


def _share(cost: Cost, name: str) -> str:
    """`49 (3 + 2)`, or of what makes no passes `6.9`; nothing of what was idle."""
    there, back = cost.passes.get(name, (0, 0))
    operations = f"{cost.parts.get(name, 0) / 1e9:.3g}"
    if there:
        return f"{operations} ({there} + {back})"
    return operations if cost.parts.get(name) else ""


def _table(columns: Iterable[str], lines: Iterable[Iterable[object]], note: str) -> str:
    head = "".join(f"<th>{html.escape(name)}</th>" for name in columns)
    body = ("<tr>" + "".join(f"<td>{html.escape(str(value))}</td>" for value in line) + "</tr>" for line in lines)
    return f"<table><tr>{head}</tr>{''.join(body)}</table><p><small>{note}</small></p>"
