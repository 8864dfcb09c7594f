"""A run folder through refusals, full disks and processes that were killed, by the real `train` of a toy."""

import json
import os
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from PIL import Image
from torch import nn
from toy_training import ToyBatches, ToyStep, settings, stages

from jdmctl.comparison.history import History
from jdmctl.errors import JdmError, MissingWeightsError, RecipeError
from jdmctl.export.card import measured_in_training
from jdmctl.training.curve import read_curves
from jdmctl.training.records import add_record, read_records
from jdmctl.training.run import Run, train

STEP = {"event": "step", "stage": "training", "step": 10, "seconds": 2.0}
LOOK = {"event": "validation", "stage": "training", "step": 10, "adherence": {"canny f1": 0.5}}


def run(folder, step, recipe="name: toy\n", resume=False, num_steps=20):
    measure = SimpleNamespace(
        measure=lambda: {"score": 1.0},
        headlines=lambda values: {"closeness": values["score"]},
        watched=lambda values: {},
        warning=lambda values: "",
        sheet=lambda: Image.new("RGB", (8, 8)),
    )
    products = {"out": lambda path: torch.save(step.student, path / "student.pt")}
    parts = stages(step, warmup_steps=0, num_steps=num_steps)
    toy = Run(recipe, parts, ToyBatches(), settings(log_every_steps=2), measure, {}, products)
    return train(toy, folder, Accelerator(cpu=True), lambda record: None, resume)


def test_a_refused_resume_leaves_the_run_its_recipe(tmp_path):
    """And one that goes on replaces it."""
    run(tmp_path, ToyStep())
    with pytest.raises(MissingWeightsError, match="other weights"):
        run(tmp_path, ToyStep(student=nn.Parameter(torch.zeros(5))), "name: other\n", resume=True)
    assert (tmp_path / "recipe.yaml").read_text() == "name: toy\n"
    run(tmp_path, ToyStep(), "name: longer\n", resume=True, num_steps=30)
    assert (tmp_path / "recipe.yaml").read_text() == "name: longer\n"


def test_a_run_is_not_resumed_to_end_before_its_checkpoint(tmp_path):
    """Its recipe, and its weights' metadata, would name fewer steps than the weights have had."""
    run(tmp_path, ToyStep())
    with pytest.raises(RecipeError, match="step-000020 is of training step 20, and .* ends it after 19") as caught:
        run(tmp_path, ToyStep(), "name: shorter\n", resume=True, num_steps=19)
    assert "20 steps of it or more" in caught.value.hint
    assert (tmp_path / "recipe.yaml").read_text() == "name: toy\n"


def test_a_run_without_a_checkpoint_is_resumed_from_its_beginning(tmp_path):
    """As one that was killed between its recipe and its first checkpoint."""
    (tmp_path / "recipe.yaml").write_text("name: toy\n")
    assert run(tmp_path, ToyStep(), resume=True)["best"]["name"] == "step-000020"


def test_a_run_goes_on_from_a_full_disk(tmp_path, monkeypatch):
    """At step 14 half of a line fits; what is written afterwards stands on lines of its own."""
    write = os.write
    monkeypatch.setattr(os, "write", lambda file, line: write(file, line[:9] if b'"step": 14' in line else line))
    with pytest.raises(JdmError, match="the disk is full: could not save .*metrics.jsonl"):
        run(tmp_path, ToyStep())
    monkeypatch.undo()
    run(tmp_path, ToyStep(), resume=True)
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    steps = [record["step"] for record in map(json.loads, lines) if record["event"] == "step"]
    assert steps == [2, 4, 6, 8, 10, 12, 12, 14, 16, 18, 20]  # the checkpoint is of step 10
    assert (tmp_path / "curve.png").is_file()


@pytest.mark.parametrize("length", [1, 20, len(json.dumps(LOOK))])
def test_a_line_that_was_cut_short_is_replaced(tmp_path, length):
    file = tmp_path / "metrics.jsonl"
    file.write_text(json.dumps(STEP) + "\n" + json.dumps(LOOK)[:length])
    add_record(file, LOOK)
    assert file.read_text() == json.dumps(STEP) + "\n" + json.dumps(LOOK) + "\n"


def test_a_line_that_cannot_be_read_is_passed_over(tmp_path):
    """As older versions left it: half of one with another behind it, or what lay on the disk."""
    file = tmp_path / "metrics.jsonl"
    torn = json.dumps(STEP)[:20] + json.dumps(LOOK)
    file.write_bytes("\n".join([json.dumps(STEP), torn, json.dumps(LOOK), "\0\0", ""]).encode() + b"\xff")
    assert read_records(file) == [STEP, LOOK]
    assert read_curves(file) == ({"canny f1": {10: 0.5}}, [])
    assert History.of(tmp_path).curve == ((2.0, 0.5),)
    assert "canny f1: 0.5000" in measured_in_training(file)
    assert read_records(tmp_path / "none.jsonl") == []
