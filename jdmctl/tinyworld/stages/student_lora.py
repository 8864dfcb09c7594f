"""A nearer one-step student, a LoRA of the teacher: the recipe tiny/distill_lora in the world that is being built."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from typing import Any

from jdmctl.build_run import build_run
from jdmctl.evaluation.manifold import NEIGHBOURS
from jdmctl.recipe import Recipe
from jdmctl.recipe_files import load_recipe
from jdmctl.tinyworld.workshop import Workshop
from jdmctl.tinyworld.world import in_use
from jdmctl.training.atomic import whole_folder
from jdmctl.training.run import make_accelerator, train

RECIPE = "tiny/distill_lora"


def build(shop: Workshop) -> None:
    """`student_lora/`: LoRA weights that make the teacher's pipeline draw in one step."""

    def tell(record: Mapping[str, Any]) -> None:
        if record["event"] == "validation":
            shop.say(f"student_lora: {record['stage']}, step {record['step']}, Frechet {record['frechet']:.2f}")

    recipe = scaled(shop)
    run = shop.scratch / "student_lora"
    accelerator = make_accelerator("cpu", recipe.training.precision)
    with in_use(shop.output):
        train(build_run(recipe, accelerator), run, accelerator, tell, resume=True)
    with whole_folder(shop.output / recipe.student_folder) as partial:
        shutil.copytree(run / recipe.student_folder, partial, dirs_exist_ok=True)


def scaled(shop: Workshop) -> Recipe:
    """With the shop's seed, and its share of the updates and samples."""
    full = load_recipe(RECIPE)
    training, fake_score, data = full.training, full.fake_score, full.data
    changes = {
        "seed": shop.seed,
        "training.num_steps": shop.steps(training.num_steps),
        "training.regression_steps": shop.steps(training.regression_steps),
        "fake_score.warmup_min_steps": shop.steps(fake_score.warmup_min_steps),
        "fake_score.warmup_max_steps": shop.steps(fake_score.warmup_max_steps),
        "data.num_samples": shop.steps(data.num_samples),
        "data.num_validation_samples": max(NEIGHBOURS + 1, shop.steps(data.num_validation_samples)),
    }
    return load_recipe(RECIPE, [f"{key}={value}" for key, value in changes.items()])
