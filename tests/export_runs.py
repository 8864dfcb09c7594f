"""Runs as if they had finished, for what is exported of them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

import jdmctl.export.check
import jdmctl.export.plain
from jdmctl.build import build_roles, prepare_student
from jdmctl.recipe_files import parse_recipe, to_yaml


def finished_run(
    folder: Path, student: Path, trainable: str = "frozen", controls: Sequence[str] = ("canny",), model: Any = ()
) -> Path:
    """What a run would leave, its branches and LoRA filled with numbers that matter."""
    values = {
        "name": "mine",
        "model": {"teacher": str(student), "student": str(student), **dict(model)},
        "controls": [{"name": name} for name in controls],
        "student": {"trainable": trainable, "rank": 3},
        "data": {"source": "images", "path": "photos"},
    }
    recipe = parse_recipe(values)
    family = build_roles(recipe, "cpu")
    prepare_student(recipe, family)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in family.student.named_parameters():
            if "controlnet_" in name or "lora_B" in name or (trainable == "full" and name.endswith("conv_out.weight")):
                parameter.normal_(0, 0.1, generator=generator)
    for name, product in recipe.branch_folders.items():
        family.save_control_branch(name, folder / product)
    if recipe.student_folder:
        save = family.save_student if trainable == "full" else family.save_student_lora
        save(folder / recipe.student_folder)
    (folder / "recipe.yaml").write_text(to_yaml(recipe))
    return folder


def run_plain_here(monkeypatch):
    """The check in this process, to save time; what it changes of diffusers is put back."""
    monkeypatch.setattr(jdmctl.export.check, "_run", lambda job, file: jdmctl.export.plain.draw(job))
    monkeypatch.setattr(DiagonalGaussianDistribution, "sample", DiagonalGaussianDistribution.sample)
