"""Scores every finished cell of a comparison on the same held-out pictures, by the same judges."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor

from jdmctl.build import build_controls, build_family
from jdmctl.comparison.cells import Cell
from jdmctl.errors import BadInputError
from jdmctl.evaluation.results import Row
from jdmctl.tinyworld.contest import make_scenes, with_branches
from jdmctl.tinyworld.score import NO_CONTROL, ROUND_TRIP, TRUE, Marks, Scenes

PLUGGED = "ControlNet plugged in"


@dataclass(frozen=True)
class Drawn:
    """The pictures of one method: [N, 3, H, W] in [0, 1], once for each seed."""

    method: str
    passes: int  # of the backbone, for one picture
    seeds: tuple[int, ...]
    images: tuple[Tensor, ...]


def score(
    cells: Sequence[Cell], split: str, num: int, teacher_steps: Sequence[int], command: str, say: Callable[[str], None]
) -> tuple[Scenes, list[Drawn], list[Row]]:
    """The scenes, every method's pictures, and rows: each metric, and the ratios to what was there before JDM.

    Raises:
        BadInputError: the recipe is not one on the world in use.
    """
    recipe = cells[0].recipe
    if recipe.model.student != "tiny":
        raise BadInputError("compare needs a recipe on the embedded world", hint="its model.student must be tiny")
    scenes = make_scenes(build_controls(recipe, "cpu"), split, num)
    drawn: list[Drawn] = []
    rows: list[Row] = []
    marks: dict[str, Marks] = {}
    for one in _draw(scenes, cells, teacher_steps):
        say(f"scored: {one.method}, {one.passes} passes")
        drawn.append(one)
        marks[one.method] = scenes.marks(one.images)
        rows += scenes.rows(one.method, one.passes, marks[one.method], one.seeds, command)
    own = {cell.method for cell in cells}
    baselines = {name: found for name, found in marks.items() if name not in own}
    for one in drawn:
        if one.method in own:
            rows += scenes.rows(
                one.method, one.passes, scenes.compared(marks[one.method], baselines), one.seeds, command
            )
    return scenes, drawn, rows


def _draw(scenes: Scenes, cells: Sequence[Cell], teacher_steps: Sequence[int]) -> Iterator[Drawn]:
    """True pictures and their round trip (the ideal), no control, ordinary ControlNets, and each other method."""
    recipe = cells[0].recipe
    family = build_family(recipe.model, "cpu")
    yield Drawn(TRUE, 0, (0,), (scenes.true_images(),))
    yield Drawn(ROUND_TRIP, 0, (0,), (scenes.round_trip(family),))
    yield Drawn(NO_CONTROL, 1, (recipe.seed,), (scenes.draw(family, recipe.seed, controlled=False),))
    by_method: dict[str, list[Cell]] = {}
    for cell in cells:
        if cell.is_done:
            by_method.setdefault(cell.method, []).append(cell)
    for method, done in by_method.items():
        seeds = tuple(cell.seed for cell in done)
        one_step = tuple(scenes.draw(with_branches(cell.recipe, cell.branches()), cell.seed) for cell in done)
        yield Drawn(PLUGGED if method == "dsm" else method, 1, seeds, one_step)
        for num_steps in teacher_steps if method == "dsm" else ():
            scale = recipe.objective.guidance_scale
            images = tuple(_multistep(scenes, cell, num_steps, scale) for cell in done)
            passes = num_steps * (1 if scale == 1 else 2)
            yield Drawn(f"ControlNet {num_steps} steps", passes, seeds, images)


def _multistep(scenes: Scenes, cell: Cell, num_steps: int, scale: float) -> Tensor:
    family = build_family(cell.recipe.model, "cpu")
    for name, folder in cell.branches().items():
        family.add_control_branch(name, folder, denoiser=family.teacher).eval().requires_grad_(False)
    return scenes.draw(family, cell.seed, num_steps, scale)
