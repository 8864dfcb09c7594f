"""One recipe's comparison: its cells scored, and what is written of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from jdmctl.comparison.cells import Cell
from jdmctl.comparison.cost import Cost, cell_cost
from jdmctl.comparison.heldout import Asked
from jdmctl.comparison.page import page
from jdmctl.comparison.scoring import Scored, score
from jdmctl.comparison.searches import MorePasses
from jdmctl.comparison.spent import cost_rows
from jdmctl.evaluation.results import Row, write
from jdmctl.training.atomic import write_text


@dataclass(frozen=True)
class Arena:
    """The cells of one recipe, in one folder."""

    recipe: str
    folder: Path
    cells: tuple[Cell, ...]
    goal: float | None = None  # of the headline, that minutes are counted to; None: what the first run reached

    @property
    def missing(self) -> list[str]:
        return [cell.name for cell in self.cells if not cell.is_done]


@dataclass(frozen=True)
class Report:
    scored: Scored
    costs: dict[str, Cost]  # by method
    spent: list[Row]  # of costs
    file: Path


def report(arena: Arena, asked: Asked, more: MorePasses, command: str, say: Callable[[str], None]) -> Report:
    """Score what is there, and write compare.json and report.html into the folder."""
    scored = score(arena.cells, asked, more, command, say)
    first = [cell for cell in arena.cells if cell.is_done and cell.number == 0 and not cell.is_given]
    costs = {cell.label: cell_cost(cell) for cell in first}
    spent = cost_rows(arena.cells, costs, scored.scenes, scored.scenes.headline, command, arena.goal)
    write(arena.folder / "compare.json", [*scored.rows, *spent])
    file = arena.folder / "report.html"
    title = f"{arena.recipe}: ways to teach a one-step student"
    write_text(file, page(title, arena.cells, costs, scored.scenes, scored.drawn, scored.rows, arena.goal))
    return Report(scored, costs, spent, file)
