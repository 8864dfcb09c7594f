"""Recipes for published students: each builds all that it trains, on tiny random stand-ins of the same format."""

import json

import pytest
import torch

from jdmctl.build import build_roles, count_parameters
from jdmctl.build_stand_ins import with_stand_ins
from jdmctl.recipe_files import load_recipe, packaged_recipes

NAMES = [name for name in packaged_recipes() if not name.startswith("tiny/")]


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_builds_what_it_trains(name, tmp_path):
    recipe = load_recipe(name)
    assert "not run on released weights" in packaged_recipes()[name].read_text()
    small = with_stand_ins(recipe, tmp_path)
    assert small.model.student.endswith(".safetensors") == recipe.model.student.endswith(".safetensors")
    counts = count_parameters(small, "cpu")
    at = build_roles(small, "cpu").student
    in_branch = counts["student"] - sum(p.numel() for p in at.parameters())
    has_loras = recipe.controls[0].branch == "controlnet_lora"  # on weights of the student's own that are not trained
    assert (0 < counts["trained_in_student"] < in_branch) if has_loras else counts["trained_in_student"] == in_branch
    assert counts["trained_in_fake_score"] > 0
    last = 1000 if at.prediction == "flow_prediction" else 999
    expected = last if recipe.model.student_timestep is None else recipe.model.student_timestep
    assert at.schedule.timestep(torch.tensor(at.student_time)) == expected


def test_a_dry_run_needs_no_download_and_says_so(monkeypatch, capsys, tmp_path):
    from jdmctl.cli.app import app

    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as done:
        app(["add-control", "sdxl_turbo/canny", "--dry-run", "--json"])
    assert not done.value.code
    shown = json.loads(capsys.readouterr().out)
    assert shown["stand_ins"] is True
    assert shown["recipe"]["model"]["student"] == "stabilityai/sdxl-turbo"
    assert shown["parameters"]["trained_in_student"] < 1e6
