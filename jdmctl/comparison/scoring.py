"""Scores every finished cell of a comparison on the same held-out pictures, by the same judges."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from jdmctl.build import build_controls, build_family, build_trained
from jdmctl.build_quality import build_judging_rewards
from jdmctl.comparison.cells import Cell
from jdmctl.comparison.heldout import Asked
from jdmctl.comparison.scenes import NO_CONTROL, ROUND_TRIP, TRUE, Drawing, Marks, Scenes
from jdmctl.comparison.searches import BEST_OF, REFINED, MorePasses, searches
from jdmctl.errors import BadInputError
from jdmctl.evaluation.results import ITSELF, Row
from jdmctl.recipe import Recipe
from jdmctl.tinyworld.world import is_of_world


@dataclass(frozen=True)
class Drawn:
    """What one method drew, once for each seed."""

    method: str
    passes: int  # of the backbone, for one picture
    seeds: tuple[int, ...]
    drawings: tuple[Drawing, ...]
    minutes: float | None = None  # of training, mean over seeds, with that of an ordinary ControlNet; None: not counted


@dataclass(frozen=True)
class Scored:
    """The scenes, every method's pictures, and rows: each metric, and the ratios to what was there before JDM."""

    scenes: Scenes
    drawn: list[Drawn]
    rows: list[Row]
    compared: dict[str, Marks]  # method -> ratios


def score(cells: Sequence[Cell], asked: Asked, more: MorePasses, command: str, say: Callable[[str], None]) -> Scored:
    """Draw and measure.

    Raises:
        BadInputError: the teacher is not that of the world in use, and no other pictures are given.
    """
    recipe = cells[0].recipe
    if asked.data is None and not is_of_world(recipe.model.teacher):
        raise BadInputError(
            "compare needs a recipe on the embedded world, or held-out pictures",
            hint="give --data FOLDER with captioned pictures that no cell was trained on",
        )
    scenes = _open(recipe, asked)
    drawn: list[Drawn] = []
    rows = scenes.ideal(command)
    marks: dict[str, Marks] = {}
    for one in _draw(scenes, cells, more):
        say(f"scored: {one.method}, {one.passes} passes")
        drawn.append(one)
        marks[one.method] = scenes.marks(one.drawings)
        rows += scenes.rows(one.method, one.passes, marks[one.method], one.seeds, command)
    own = {cell.label for cell in cells}
    baselines = {name: found for name, found in marks.items() if name not in own}
    compared = {one.method: scenes.compared(marks[one.method], baselines) for one in drawn if one.method in own}
    for one in drawn:
        if one.method in own:
            rows += scenes.rows(one.method, one.passes, compared[one.method], one.seeds, command)
    return Scored(scenes, drawn, rows, compared)


def methods(cells: Sequence[Cell], more: MorePasses) -> set[str]:
    """All that rows of these cells may be of."""
    ordinary = {cell.label for cell in cells if cell.recipe.method == "dsm"}
    searched = {*map(BEST_OF.format, more.best_of), *map(REFINED.format, more.refine_steps)}
    in_steps = {_in_steps(label, num_steps) for label in ordinary for num_steps in more.teacher_steps}
    return {ITSELF, TRUE, ROUND_TRIP, NO_CONTROL, *searched, *in_steps, *(cell.called for cell in cells)}


def _in_steps(label: str, num_steps: int) -> str:
    return f"ControlNet{label.removeprefix('dsm')} {num_steps} steps"


def _open(recipe: Recipe, asked: Asked) -> Scenes:
    base = build_family(recipe.model, asked.device)
    scenes = asked.open(base.resolution_px).scenes(build_controls(recipe, asked.device)).with_base(base)
    return scenes.with_rewards(build_judging_rewards(recipe))


def _draw(scenes: Scenes, cells: Sequence[Cell], more: MorePasses) -> Iterator[Drawn]:
    """True pictures and their round trip (the ideal), no control, ordinary ControlNets, and each other method.

    One family at a time: a GPU need not hold more.
    """
    yield from _untrained(scenes, cells[0].recipe, more)
    by_label: dict[str, list[Cell]] = {}
    for cell in cells:
        if cell.is_done:
            by_label.setdefault(cell.label, []).append(cell)
    for label, done in by_label.items():
        is_ordinary = done[0].recipe.method == "dsm"
        seeds = tuple(cell.recipe.seed for cell in done)
        one_step = tuple(_one_step(scenes, cell) for cell in done)
        minutes = None if done[0].is_given else sum(cell.history().seconds for cell in done) / 60 / len(done)
        yield Drawn(done[0].called, 1, seeds, one_step, minutes)
        for num_steps in more.teacher_steps if is_ordinary else ():
            scale = done[0].recipe.objective.guidance_scale
            images = tuple(_multistep(scenes, cell, num_steps, scale) for cell in done)
            passes = num_steps * (1 if scale == 1 else 2)
            yield Drawn(_in_steps(label, num_steps), passes, seeds, images, minutes)


def _untrained(scenes: Scenes, recipe: Recipe, more: MorePasses) -> Iterator[Drawn]:
    family = build_family(recipe.model, scenes.device)
    yield Drawn(TRUE, 0, (0,), (Drawing(scenes.true_images()),))
    yield Drawn(ROUND_TRIP, 0, (0,), (scenes.round_trip(family),))
    yield Drawn(NO_CONTROL, 1, (recipe.seed,), (scenes.draw(family, recipe.seed, controlled=False),))
    for name, passes, drawing in searches(scenes, family, recipe, more):
        yield Drawn(name, passes, (recipe.seed,), (drawing,))


def _one_step(scenes: Scenes, cell: Cell) -> Drawing:
    family = build_trained(cell.recipe, cell.folder, cell.branches(), scenes.device)
    return scenes.draw(family, cell.recipe.seed)


def _multistep(scenes: Scenes, cell: Cell, num_steps: int, scale: float) -> Drawing:
    family = build_family(cell.recipe.model, scenes.device)
    for name, folder in cell.branches().items():
        family.add_control_branch(name, folder, denoiser=family.teacher).eval().requires_grad_(False)
    return scenes.draw(family, cell.recipe.seed, num_steps, scale)
