"""Runs of add-control beside what they have to beat, on the same held-out scenes, with the same judges."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from jdmctl.build import build_controls, build_family
from jdmctl.errors import BadInputError
from jdmctl.evaluation.bootstrap import mean
from jdmctl.evaluation.results import Row
from jdmctl.families.stable_diffusion import StableDiffusion
from jdmctl.recipe import Recipe
from jdmctl.recipe_files import load_recipe
from jdmctl.tinyworld.judge import Judge
from jdmctl.tinyworld.make import REPORT_FILE
from jdmctl.tinyworld.score import Scenes, controlnet_folder
from jdmctl.tinyworld.stages.autoencoder import psnr
from jdmctl.tinyworld.world import samples, world_folder

TEACHER_STEPS = 25


def score_runs(
    runs: Sequence[Path],
    split: str,
    num: int,
    with_baselines: bool,
    command: str,
    say: Callable[[str], None],
) -> list[Row]:
    """Rows of runs that differ in nothing but their seed, and of the baselines on the first of these seeds.

    Raises:
        BadInputError: the runs are of different controls, or not on the embedded world.
    """
    recipes = [load_recipe(run) for run in runs]
    asked = {tuple(control.name for control in recipe.controls) for recipe in recipes}
    if len(asked) > 1:
        raise BadInputError(
            "these runs have different controls: " + " and ".join("+".join(names) for names in sorted(asked)),
            hint="score them one command each; together, give runs that differ in their seed alone",
        )
    first = recipes[0]
    if first.model.student != "tiny":
        raise BadInputError(f"{runs[0]} is not a run on the embedded world", hint="its recipe's student must be tiny")
    scenes = Scenes.make(
        "tiny", samples(split), num, build_controls(first, "cpu"), Judge.load(world_folder()), samples("reference")
    )
    seeds = [recipe.seed for recipe in recipes]
    drawn = []
    for run, recipe in zip(runs, recipes, strict=True):
        say(f"drawing {scenes.num} pictures of {run}")
        family = _with_branches(recipe, {name: controlnet_folder(run, name) for name in scenes.controls})
        drawn.append(scenes.draw(family, recipe.seed))
    rows = scenes.rows("jdm", 1, drawn, seeds, command)
    if with_baselines:
        for method, passes, images in _baselines(scenes, first, say):
            rows += scenes.rows(method, passes, [images], seeds[:1], command)
    return rows


def world_rows(split: str, num: int, command: str, say: Callable[[str], None]) -> list[Row]:
    """Rows of the world's own generators: the multi-step teacher at its guidance, and the one-step student."""
    family = StableDiffusion.load(world_folder() / "teacher", world_folder() / "student")
    scenes = Scenes.make("tiny", samples(split), num, {}, Judge.load(world_folder()), samples("reference"))
    scale = world_report()["teacher guidance"]
    passes = TEACHER_STEPS * (1 if scale == 1 else 2)
    rows = []
    for method, count, draw in (
        ("true pictures", 0, scenes.true_images),
        ("VAE round trip", 0, lambda: scenes.round_trip(family)),
        ("teacher", passes, lambda: scenes.draw(family, 0, TEACHER_STEPS, scale)),
        ("student", 1, lambda: scenes.draw(family, 0)),
    ):
        say(f"drawing {scenes.num} pictures: {method}")
        rows += scenes.rows(method, count, [draw()], [0], command)
    found = mean(torch.cat([psnr(family.codec.vae, part) for part in scenes.true_images().split(50)]))
    rows.append(Row("tiny", "", "VAE round trip", 0, "psnr", found.value, found.low, found.high, [0], found.n, command))
    return rows


def world_report() -> dict[str, float]:
    """What the world's building chose and measured on val."""
    return json.loads((world_folder() / REPORT_FILE).read_text())


def _baselines(scenes: Scenes, recipe: Recipe, say: Callable[[str], None]) -> Iterator[tuple[str, int, Tensor]]:
    """(method, backbone passes per picture, images): the best possible, no control, and ordinary ControlNets."""
    family = _with_branches(recipe, {})
    yield "true pictures", 0, scenes.true_images()
    yield "VAE round trip", 0, scenes.round_trip(family)
    say("drawing the student without control")
    yield "student, no control", 1, scenes.draw(family, recipe.seed, controlled=False)
    shipped = {name: world_folder() / f"controlnet_{name}" for name in scenes.controls}
    if not all(folder.exists() for folder in shipped.values()):
        return
    say("drawing the student with an ordinary ControlNet plugged in")
    yield "ControlNet plugged in", 1, scenes.draw(_with_branches(recipe, shipped), recipe.seed)
    scale = world_report()[f"controlnet_{next(iter(shipped))} guidance"]
    for name, folder in shipped.items():
        family.add_control_branch(name, folder, denoiser=family.teacher).eval().requires_grad_(False)
    say(f"drawing the teacher with that ControlNet, {TEACHER_STEPS} steps, guidance {scale}")
    images = scenes.draw(family, recipe.seed, TEACHER_STEPS, scale)
    yield f"ControlNet, {TEACHER_STEPS} steps", TEACHER_STEPS * (1 if scale == 1 else 2), images


def _with_branches(recipe: Recipe, folders: dict[str, Path]) -> StableDiffusion:
    family = build_family(recipe.model, "cpu")
    for name, folder in folders.items():
        family.add_control_branch(name, folder).eval().requires_grad_(False)
    return family
