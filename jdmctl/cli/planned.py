"""What a comparison consists of and will take, shown before it begins."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from jdmctl.cli.output import Output

if TYPE_CHECKING:
    from jdmctl.comparison.cells import Cell
    from jdmctl.comparison.estimate import Estimate
    from jdmctl.comparison.report import Arena


def show(arenas: list[Arena], out: Output) -> None:
    """What there is, and what the rest will take: counted operations at the speed of the cells that are done."""
    from jdmctl.comparison.estimate import estimate

    out.note("counting what each method's updates cost")
    planned = []
    for arena in arenas:
        costs = estimate(arena.cells)
        planned += [(arena.recipe, cell, costs[cell.name]) for cell in arena.cells]
    rows = [(_record if out.mode == "json" else _line)(*one) for one in planned]
    out.table(rows, list(rows[0]))


def _record(recipe: str, cell: Cell, found: Estimate) -> dict[str, Any]:
    """A planned cell in plain numbers; null is what nobody knows yet."""
    return {
        "event": "plan",
        "recipe": recipe,
        "cell": cell.name,
        "state": cell.state,
        "updates": cell.recipe.training.num_steps,
        "flops": found.flops,
        "seconds_so_far": found.seconds_so_far,
        "seconds_to_go": found.seconds_left,
        "flops_of_an_update": found.cost and found.cost.parts,
    }


def _line(recipe: str, cell: Cell, found: Estimate) -> dict[str, str]:
    """The same in words."""
    from jdmctl.comparison.spent import shares

    return {
        "recipe": recipe,
        "cell": cell.name,
        "state": cell.state,
        "updates": str(cell.recipe.training.num_steps),
        "TFLOP": "" if found.flops is None else f"{found.flops / 1e12:.0f}",
        "minutes so far": f"{found.seconds_so_far / 60:.1f}",
        "minutes to go": "?" if found.seconds_left is None else f"{found.seconds_left / 60:.0f}",
        "GFLOP of an update": shares(found.cost) if found.cost else "",
    }
