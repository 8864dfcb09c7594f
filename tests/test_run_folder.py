"""A run folder through refusals and processes that were killed, by the real `train` of a toy."""

from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from PIL import Image
from torch import nn
from toy_training import ToyBatches, ToyStep, settings, stages

from jdmctl.errors import MissingWeightsError
from jdmctl.training.run import Run, train


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


def test_a_run_without_a_checkpoint_is_resumed_from_its_beginning(tmp_path):
    """As one that was killed between its recipe and its first checkpoint."""
    (tmp_path / "recipe.yaml").write_text("name: toy\n")
    assert run(tmp_path, ToyStep(), resume=True)["best"]["name"] == "step-000020"
