"""Runs of add-control beside what they have to beat, on the same held-out scenes, with the same judges."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from jdmctl.build import build_controls, build_family
from jdmctl.controls.base import Control
from jdmctl.errors import BadInputError
from jdmctl.evaluation.bootstrap import mean
from jdmctl.evaluation.results import Row
from jdmctl.families.stable_diffusion import StableDiffusion
from jdmctl.recipe import Recipe
from jdmctl.recipe_files import load_recipe
from jdmctl.tinyworld.judge import Judge
from jdmctl.tinyworld.make import REPORT_FILE
from jdmctl.tinyworld.score import NO_CONTROL, ROUND_TRIP, TRUE, Scenes
from jdmctl.tinyworld.stages.autoencoder import psnr
from jdmctl.tinyworld.world import samples, world_folder, world_name

TEACHER_STEPS = 25


def score_runs(
    runs: Sequence[Path],
    split: str,
    num: int,
    compose: bool,
    with_baselines: bool,
    command: str,
    say: Callable[[str], None],
) -> list[Row]:
    """Rows of runs, and of the baselines on the seed of the first.

    The runs differ in nothing but their seed; or, to `compose` them, each has controls of its own.

    Raises:
        BadInputError: the runs do not fit together, or are not on the world in use.
    """
    recipes = [load_recipe(run) for run in runs]
    asked = [tuple(control.name for control in recipe.controls) for recipe in recipes]
    if not compose and len(set(asked)) > 1:
        raise BadInputError(
            "these runs have different controls: " + " and ".join("+".join(names) for names in sorted(set(asked))),
            hint="score them one command each, or add --compose; together, give runs that differ in their seed alone",
        )
    if compose and len(set(itertools.chain(*asked))) < sum(map(len, asked)):
        raise BadInputError("two of these runs have the same control", hint="compose runs of different controls")
    first = recipes[0]
    if first.model.student != "tiny":
        raise BadInputError(f"{runs[0]} is not a run on the embedded world", hint="its recipe's student must be tiny")
    controls = {name: control for recipe in recipes for name, control in build_controls(recipe, "cpu").items()}
    scenes = make_scenes(controls, split, num)
    drawn = []
    branches = [
        {name: run / folder for name, folder in recipe.branch_folders.items()}
        for run, recipe in zip(runs, recipes, strict=True)
    ]
    if compose:
        branches = [dict(itertools.chain(*(own.items() for own in branches)))]
    seeds = [recipe.seed for recipe in recipes][: len(branches)]
    for folders, seed in zip(branches, seeds, strict=True):
        say(f"drawing {scenes.num} pictures with {' + '.join(map(str, folders.values()))}")
        drawn.append(scenes.draw(with_branches(first, folders), seed))
    marks = scenes.marks(drawn)
    method = first.method + " composed" if compose else first.method
    rows = scenes.rows(method, 1, marks, seeds, command)
    if with_baselines:
        baselines = {}
        for name, passes, images in _baselines(scenes, first, say):
            baselines[name] = scenes.marks([images])
            rows += scenes.rows(name, passes, baselines[name], seeds[:1], command)
        rows += scenes.rows(method, 1, scenes.compared(marks, baselines), seeds, command)
    return rows


def make_scenes(controls: dict[str, Control], split: str, num: int) -> Scenes:
    """The first `num` pictures of a split of the world in use, with its judge."""
    judge = Judge.load(world_folder())
    return Scenes.make(world_name(), samples(split), num, controls, judge, samples("reference"), samples("train"))


def world_rows(split: str, num: int, command: str, say: Callable[[str], None]) -> list[Row]:
    """Rows of the world's own generators: the multi-step teacher at its guidance, and the one-step student."""
    family = StableDiffusion.load(world_folder() / "teacher", world_folder() / "student")
    scenes = make_scenes({}, split, num)
    scale = world_report()["teacher guidance"]
    passes = TEACHER_STEPS * (1 if scale == 1 else 2)
    rows = []
    for method, count, draw in (
        (TRUE, 0, scenes.true_images),
        (ROUND_TRIP, 0, lambda: scenes.round_trip(family)),
        ("teacher", passes, lambda: scenes.draw(family, 0, TEACHER_STEPS, scale)),
        ("student", 1, lambda: scenes.draw(family, 0)),
    ):
        say(f"drawing {scenes.num} pictures: {method}")
        rows += scenes.rows(method, count, scenes.marks([draw()]), [0], command)
    found = mean(torch.cat([psnr(family.codec.vae, part) for part in scenes.true_images().split(50)]))
    rows.append(Row(scenes.world, "", ROUND_TRIP, 0, "psnr", found.value, found.low, found.high, [0], found.n, command))
    return rows


def world_report() -> dict[str, float]:
    """What the world's building chose and measured on val."""
    return json.loads((world_folder() / REPORT_FILE).read_text())


def _baselines(scenes: Scenes, recipe: Recipe, say: Callable[[str], None]) -> Iterator[tuple[str, int, Tensor]]:
    """(method, backbone passes per picture, images): the best possible, no control, and ordinary ControlNets."""
    family = with_branches(recipe, {})
    yield TRUE, 0, scenes.true_images()
    yield ROUND_TRIP, 0, scenes.round_trip(family)
    say("drawing the student without control")
    yield NO_CONTROL, 1, scenes.draw(family, recipe.seed, controlled=False)
    shipped = {name: world_folder() / f"controlnet_{name}" for name in scenes.controls}
    if not all(folder.exists() for folder in shipped.values()):
        return
    say("drawing the student with an ordinary ControlNet plugged in")
    yield "ControlNet plugged in", 1, scenes.draw(with_branches(recipe, shipped), recipe.seed)
    scale = world_report()[f"controlnet_{next(iter(shipped))} guidance"]
    for name, folder in shipped.items():
        family.add_control_branch(name, folder, denoiser=family.teacher).eval().requires_grad_(False)
    say(f"drawing the teacher with that ControlNet, {TEACHER_STEPS} steps, guidance {scale}")
    images = scenes.draw(family, recipe.seed, TEACHER_STEPS, scale)
    yield f"ControlNet {TEACHER_STEPS} steps", TEACHER_STEPS * (1 if scale == 1 else 2), images


def with_branches(recipe: Recipe, folders: Mapping[str, Path]) -> StableDiffusion:
    """A recipe's teacher and student, the student with these branches."""
    family = build_family(recipe.model, "cpu")
    for name, folder in folders.items():
        family.add_control_branch(name, folder).eval().requires_grad_(False)
    return family
