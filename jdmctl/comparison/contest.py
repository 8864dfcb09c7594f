"""Runs, students and folders of pictures beside what they have to beat, on the same held-out pictures."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from jdmctl.build import build_controls, build_family, build_trained, resolve_options
from jdmctl.build_quality import build_judging_rewards
from jdmctl.comparison.cells import PLUGGED
from jdmctl.comparison.heldout import Asked, HeldOut, captioned, chosen, names, partners
from jdmctl.comparison.marks import Marks
from jdmctl.comparison.scenes import NO_CONTROL, ROUND_TRIP, TRUE, Drawing, Scenes
from jdmctl.comparison.sheet import sheet
from jdmctl.controls.base import load_control
from jdmctl.errors import BadInputError
from jdmctl.evaluation.bootstrap import mean
from jdmctl.evaluation.results import ITSELF, Row
from jdmctl.families.identify import family_of
from jdmctl.families.names import family_class
from jdmctl.recipe import Recipe
from jdmctl.recipe_files import differences, load_recipe
from jdmctl.recipe_sections import Model
from jdmctl.tinyworld.make import REPORT_FILE
from jdmctl.tinyworld.source import Pictures
from jdmctl.tinyworld.stages.autoencoder import psnr
from jdmctl.tinyworld.world import is_of_world, world_folder, world_name

TEACHER_STEPS = 25
_IN_STEPS = f"ControlNet {TEACHER_STEPS} steps"
BASELINES = (ITSELF, TRUE, ROUND_TRIP, NO_CONTROL, PLUGGED, _IN_STEPS)
Say = Callable[[str], None]


@dataclass(frozen=True)
class Entrant:
    """Runs that are one method: several seeds of a recipe, or several controls used together."""

    recipe: Recipe
    runs: tuple[Path, ...]
    seeds: tuple[int, ...]
    branches: tuple[dict[str, Path], ...]  # of each seed: control -> folder
    recipes: tuple[Recipe, ...]
    label: str = ""  # what to call it in rows; by default its method

    @classmethod
    def of(cls, runs: Sequence[Path], compose: bool, label: str = "") -> Entrant:
        """Raises BadInputError if the runs do not fit together."""
        recipes = [load_recipe(run) for run in runs]
        asked = [tuple(control.name for control in recipe.controls) for recipe in recipes]
        if not compose and len(set(asked)) > 1:
            raise BadInputError(
                "these runs have different controls: " + " and ".join("+".join(names) for names in sorted(set(asked))),
                hint="score them one command each, or add --compose; together, give runs that differ in their seed "
                "alone",
            )
        _require_alike(runs, recipes, compose)
        if not compose:
            _require_seeds(runs, recipes)
        changed = [run for run, recipe in zip(runs, recipes, strict=True) if recipe.student_folder]
        if compose and changed:
            raise BadInputError(f"{changed[0]} changed its student, so it cannot be composed", "score it alone")
        branches = [
            {name: run / folder for name, folder in recipe.branch_folders.items()}
            for run, recipe in zip(runs, recipes, strict=True)
        ]
        for run, own in zip(runs, branches, strict=True):
            if not all(folder.is_dir() for folder in (*own.values(), run / recipes[0].student_folder)):
                raise BadInputError(
                    f"the run in {run} has not finished",
                    hint=f"go on with it: jdmctl {recipes[0].command} {run} --resume",
                )
        seeds = [recipe.seed for recipe in recipes]
        if compose:
            for controls in set(asked):
                same = [place for place, own in enumerate(asked) if own == controls]
                _require_alike([runs[place] for place in same], [recipes[place] for place in same], compose=False)
            seeds, branches = _composed(seeds, branches)
        return cls(recipes[0], tuple(runs), tuple(seeds), tuple(branches), tuple(recipes), label)

    @property
    def method(self) -> str:
        """Its label, or the method with what its recipe has that is not the usual."""
        objective = self.recipe.objective
        unusual = {
            "composed": len(self.branches) < len(self.runs),
            objective.divergence: objective.divergence != "reverse-kl",
            "with GAN": objective.gan_weight > 0,
            "from prompts only": self.recipe.data.source == "prompts",
        }
        return self.label or " ".join([self.recipe.method, *(words for words, is_so in unusual.items() if is_so)])

    def family(self, number: int, device: str) -> Any:
        """Of one seed."""
        return build_trained(self.recipe, self.runs[number], self.branches[number], device)


def _composed(seeds: Sequence[int], branches: Sequence[Mapping[str, Path]]) -> tuple[list[int], list[dict[str, Path]]]:
    """All runs' branches together, or, where there are several of a control, those of each seed.

    Raises BadInputError for runs of one seed that share a control, or seeds that have different ones.
    """
    controls = list(itertools.chain(*branches))
    several = len(set(controls)) < len(controls)
    together: dict[int, dict[str, Path]] = {}
    for seed, own in zip(seeds, branches, strict=True):
        group = together.setdefault(seed if several else seeds[0], {})
        if own.keys() & group.keys():
            raise BadInputError(
                f"two of these runs have the control {min(own.keys() & group.keys())} and the seed {seed}",
                hint="compose runs of different controls; those of each seed go together",
            )
        group.update(own)
    if len({frozenset(group) for group in together.values()}) > 1:
        has = "; ".join(f"of seed {seed} {'+'.join(group)}" for seed, group in together.items())
        raise BadInputError(f"not every seed has all controls: {has}", hint="give the runs of each seed")
    return list(together), list(together.values())


def _require_alike(runs: Sequence[Path], recipes: Sequence[Recipe], compose: bool) -> None:
    """Raises BadInputError unless runs are of one recipe, whatever they are called; if composed, on one student."""
    first = recipes[0]
    for run, recipe in zip(runs, recipes, strict=True):
        called = recipe.model_copy(update={"seed": first.seed, "name": first.name})
        drawn = first.model_copy(update={"model": recipe.model})
        if differ := differences(first, drawn if compose else called):
            raise BadInputError(
                f"{runs[0]} and {run} are no runs {'on one student' if compose else 'of one recipe'}: "
                + "; ".join([*differ[:4], *([f"and {len(differ) - 4} more"] if len(differ) > 4 else [])]),
                hint="score them one command each",
            )


def _require_seeds(runs: Sequence[Path], recipes: Sequence[Recipe]) -> None:
    """Raises BadInputError if a seed is there twice."""
    for (one, its), (other, others) in itertools.combinations(zip(runs, recipes, strict=True), 2):
        if its.seed == others.seed:
            raise BadInputError(
                f"{one} and {other} have the same seed, {its.seed}",
                hint="give each run once; the same recipe is trained with another seed by --seed",
            )


def score_runs(
    entrant: Entrant, asked: Asked, with_baselines: bool, command: str, say: Say, with_sheet: bool = False
) -> tuple[list[Row], Image.Image | None]:
    """Rows of runs, and of the baselines on the seed of the first; and a sheet of the first answers.

    Raises:
        BadInputError: the runs are not on the world in use, and no other pictures are given.
    """
    if asked.data is None and not is_of_world(entrant.recipe.model.teacher):
        raise BadInputError(
            f"{entrant.runs[0]} is not a run on the embedded world", hint="give held-out pictures: --data FOLDER"
        )
    scenes = _open(entrant, asked)
    drawings = []
    for number, seed in enumerate(entrant.seeds):
        say(f"drawing {scenes.num} pictures of {entrant.method}, seed {seed}")
        drawings.append(scenes.draw(entrant.family(number, scenes.device), seed))  # one at a time is held
    marks = scenes.marks(drawings)
    rows = scenes.rows(entrant.method, 1, marks, entrant.seeds, command)
    if with_baselines:
        rows += scenes.ideal(command)
        baselines = {}
        for name, passes, drawing in _baselines(scenes, entrant, say):
            baselines[name] = scenes.marks([drawing])
            rows += scenes.rows(name, passes, baselines[name], entrant.seeds[:1], command)
        rows += scenes.rows(entrant.method, 1, scenes.compared(marks, baselines), entrant.seeds, command)
    return rows, sheet(scenes, {entrant.method: drawings[0].images}) if with_sheet else None


def _open(entrant: Entrant, asked: Asked) -> Scenes:
    device = asked.device
    controls = {name: control for recipe in entrant.recipes for name, control in build_controls(recipe, device).items()}
    base = build_base(entrant.recipe, device)
    scenes = asked.open(base.resolution_px).scenes(controls).with_base(base)
    scenes = scenes.with_rewards(build_judging_rewards(entrant.recipe))
    return scenes if asked.data else replace(scenes, world=world_name(entrant.recipe.model.teacher))


def build_base(recipe: Recipe, device: str = "cpu") -> Any:
    """The student as it was before a run; for one that was distilled anew, the embedded world's or its teacher."""
    model = recipe.model
    if not model.student and model.teacher == "tiny":  # its own student, which knows its own time
        model = Model(family=model.family, teacher="tiny", student="tiny")
    return build_family(model, device)


def score_pipeline(folder: Path, asked: Asked, method: str, command: str, say: Say) -> list[Row]:
    """Rows of a one-step pipeline without control."""
    family = family_class(family_of(folder)).load(folder, folder, asked.device)
    scenes = asked.open(family.resolution_px).scenes({})
    say(f"drawing {scenes.num} pictures with {folder}")
    return scenes.rows(method, 1, scenes.marks([scenes.draw(family, 0)]), [0], command)


def score_pictures(
    folder: Path, asked: Asked, controls: Mapping[str, Mapping[str, Any]], method: str, command: str
) -> list[Row]:
    """Rows of pictures that are there already: as answers to those of `asked.data`, or as a set beside the reference.

    `controls` are names with options. Where every other picture of the data is the reference, they may answer all or
    those that are left; distances are always of what answers these.

    Raises:
        BadInputError: they are not as many as the pictures that they are to answer.
    """
    drawn = captioned(folder)
    size = drawn.images.shape[-1]
    made = {name: load_control(name, **resolve_options(controls[name])).to(asked.device) for name in controls}

    def rows_of(heldout: HeldOut, drawn: Pictures) -> list[Row]:
        scenes = heldout.scenes(made)
        marks = scenes.marks([Drawing(drawn.image(slice(0, scenes.num)))])
        return scenes.rows(method, 0, marks, [0], command)

    if asked.data is None:
        return rows_of(replace(asked, data=asked.reference).open(size).described_by(drawn), drawn)
    heldout, asked_for = asked.open(size), names(asked.data)
    all_of_it = heldout.halved if len(drawn) == len(asked_for) else None
    if heldout.halved is not None and all_of_it is None:
        asked_for = asked_for[::2]
    if len(drawn) != len(asked_for):
        raise BadInputError(
            f"{folder} has {len(drawn)} pictures to answer {len(asked_for)} of {asked.data}",
            hint="give the folder that they were made after, and --reference for the distances",
        )
    drawn = chosen(drawn, torch.tensor(partners(names(folder), asked_for)))
    if all_of_it is None:
        return rows_of(heldout, drawn)
    each = rows_of(replace(heldout, pictures=all_of_it), drawn)
    of_sets = rows_of(heldout, chosen(drawn, slice(0, None, 2)))
    return [row for row in each if not row.is_of_set] + [row for row in of_sets if row.is_of_set]


def world_rows(asked: Asked, students: Sequence[str], seeds: Sequence[int], command: str, say: Say) -> list[Row]:
    """Rows of the world's generators, each with noise of several seeds, and of the students as shares of the teacher.

    The multi-step teacher draws at its guidance; students are what recipes call them (tiny/student), or folders.
    """
    families = {name: build_family(Model(teacher="tiny", student=name), "cpu") for name in students}
    family = next(iter(families.values()))
    scenes = asked.open(family.resolution_px).scenes({}).with_base(family)
    scale = world_report()["teacher guidance"]
    marks: dict[str, Marks] = {}

    def rows_of(method: str, passes: int, drawings: Sequence[Drawing], beside: dict[str, Marks]) -> list[Row]:
        marks[method] = scenes.marks(drawings)
        compared = scenes.compared(marks[method], beside)
        return scenes.rows(method, passes, marks[method] | compared, seeds[: len(drawings)], command)

    rows = scenes.ideal(command) + rows_of(TRUE, 0, [Drawing(scenes.true_images())], {})
    rows += rows_of(ROUND_TRIP, 0, [scenes.round_trip(family)], {})
    say(f"drawing {scenes.num} pictures with the teacher, {len(seeds)} times")
    passes = TEACHER_STEPS * (1 if scale == 1 else 2)
    rows += rows_of("teacher", passes, [scenes.draw(family, seed, TEACHER_STEPS, scale) for seed in seeds], {})
    for name, one in families.items():
        say(f"drawing with {name}")
        drawings = [scenes.draw(one, seed) for seed in seeds]
        rows += rows_of(name.removeprefix("tiny/"), 1, drawings, {"teacher": marks["teacher"]})
    found = mean(torch.cat([psnr(family.codec.vae, part) for part in scenes.true_images().split(50)]))
    rows.append(
        Row(scenes.world, "", ROUND_TRIP, 0, "psnr", found.value, found.low, found.high, [0], found.n, command,
            scenes.setup)
    )  # fmt: skip
    return rows


def world_report() -> dict[str, float]:
    """What the world's building chose and measured on val."""
    return json.loads((world_folder() / REPORT_FILE).read_text())


def _baselines(scenes: Scenes, entrant: Entrant, say: Say) -> Iterator[tuple[str, int, Drawing]]:
    """(method, backbone passes per picture, drawing): the best possible, no control, and ordinary ControlNets."""
    recipe, model, seed = entrant.recipe, entrant.recipe.model, entrant.seeds[0]
    family = build_base(recipe, scenes.device)
    yield TRUE, 0, Drawing(scenes.true_images())
    yield ROUND_TRIP, 0, scenes.round_trip(family)
    say("drawing the student without control")
    yield NO_CONTROL, 1, scenes.draw(family, seed, controlled=False)
    shipped = {name: world_folder() / f"controlnet_{name}" for name in scenes.controls}
    if not shipped or not model.student or model.teacher != "tiny" or not all(map(Path.exists, shipped.values())):
        return
    say("drawing the student with an ordinary ControlNet plugged in")
    yield PLUGGED, 1, scenes.draw(build_trained(recipe, None, shipped, scenes.device), seed)
    scale = world_report()[f"controlnet_{next(iter(shipped))} guidance"]
    for name, folder in shipped.items():
        family.add_control_branch(name, folder, denoiser=family.teacher).eval().requires_grad_(False)
    say(f"drawing the teacher with that ControlNet, {TEACHER_STEPS} steps, guidance {scale}")
    drawing = scenes.draw(family, seed, TEACHER_STEPS, scale)
    yield _IN_STEPS, TEACHER_STEPS * (1 if scale == 1 else 2), drawing
