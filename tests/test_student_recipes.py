"""Recipes for published students: each builds all that it trains, on tiny random stand-ins of the same format."""

from pathlib import Path

import pytest
import torch
from peft import get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from tiny_pipelines import FAMILIES
from tiny_transformers import TRANSFORMERS

from jdmctl.build import build_family, count_parameters
from jdmctl.families.names import family_class
from jdmctl.recipe_files import load_recipe, packaged_recipes

NAMES = [name for name in packaged_recipes() if not name.startswith("tiny/")]


@pytest.fixture(scope="module")
def stand_ins(tmp_path_factory) -> Path:
    """FAMILY/teacher, FAMILY/student, and of each student the weights alone; a LoRA, where there are such students."""
    root = tmp_path_factory.mktemp("stand-ins")
    wanted = {load_recipe(name).model.family for name in NAMES}
    for tiny in [tiny for tiny in (*FAMILIES, *TRANSFORMERS) if tiny.family in wanted]:
        folder = root / tiny.family
        tiny.write(folder)
        kind = family_class(tiny.family)
        weights = load_file(folder / "student" / kind.subfolder / "diffusion_pytorch_model.safetensors")
        save_file(weights, folder / "backbone.safetensors")
    family = family_class("stable_diffusion").load(root / "stable_diffusion/teacher", root / "stable_diffusion/teacher")
    family.add_student_lora(2)
    layers = get_peft_model_state_dict(family.student.backbone)
    layers = {f"unet.{name}": torch.rand_like(value) for name, value in layers.items()}
    save_file(layers, root / "stable_diffusion" / "lora.safetensors")
    return root


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_builds_what_it_trains(name, stand_ins, monkeypatch, tmp_path):
    recipe = load_recipe(name)
    assert "not run on released weights" in packaged_recipes()[name].read_text()
    folder, given = stand_ins / recipe.model.family, recipe.model.student
    form = "lora.safetensors" if "lora" in given else "backbone.safetensors" if given.endswith("tensors") else "student"
    model = recipe.model.model_copy(update={"teacher": str(folder / "teacher"), "student": str(folder / form)})
    small = recipe.model_copy(update={"model": model, "fake_score": recipe.fake_score.model_copy(update={"rank": 2})})
    counts = count_parameters(small, "cpu")
    at = build_family(model, "cpu").student
    assert counts["trained_in_student"] == counts["student"] - sum(p.numel() for p in at.parameters()) > 0
    assert counts["trained_in_fake_score"] > 0
    last = 1000 if at.prediction == "flow_prediction" else 999
    expected = last if recipe.model.student_timestep is None else recipe.model.student_timestep
    assert at.schedule.timestep(torch.tensor(at.student_time)) == expected
