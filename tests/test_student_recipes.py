"""Recipes for published students: each builds all that it trains, on tiny random stand-ins of the same format."""

import json

import pytest
import torch

from jdmctl.build import build_controls, build_jdm_step, build_roles, count_parameters, prepare_student
from jdmctl.build_stand_ins import with_stand_ins
from jdmctl.recipe_files import load_recipe, packaged_recipes
from jdmctl.training.draws import SampleDraws
from jdmctl.types import Batch

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


@pytest.mark.parametrize("name", ["sd15/canny_adapter", "sdxl_hyper/canny_adapter"])
def test_one_backbone_serves_teacher_fake_score_and_student(name, tmp_path):
    """Each weight of the teacher lies in one place for all three, beside LoRA and the adapter; a step trains these."""
    recipe = with_stand_ins(load_recipe(name), tmp_path)
    family = build_roles(recipe, "cpu")
    prepare_student(recipe, family)
    step = build_jdm_step(recipe, family, build_controls(recipe, "cpu"))
    teacher, student, fake = (
        {p.data_ptr() for p in module.parameters()} for module in (family.teacher, family.student, step.fake_score)
    )
    assert teacher <= student and teacher <= fake
    step.weights.update(dict.fromkeys(step.weights, 1.0))
    edges = (torch.rand(2, 3, family.resolution_px, family.resolution_px) > 0.5).float()
    batch = Batch(family.encode_prompt(["a cone", "a cube"]), {"canny": edges}, SampleDraws(0, "x", range(2)))
    for phase in step.phases:
        with torch.autocast("cpu", torch.bfloat16):
            loss = phase.loss(batch).total
        loss.backward()
        assert loss.isfinite() and any(p.grad is not None and p.grad.any() for p in phase.parameters)
        assert teacher.isdisjoint(p.data_ptr() for p in phase.parameters)


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
