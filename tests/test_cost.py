"""Counting: a step's passes are the stated minimum, and its operations those of its networks."""

import pytest
import torch
from torch import nn

from jdmctl.build import build_controls, build_family, build_jdm_step, prepare_student
from jdmctl.comparison.cost import training_cost
from jdmctl.recipe_files import parse_recipe
from jdmctl.training.draws import SampleDraws
from jdmctl.types import Batch, Losses, Phase

VALUES = {
    "name": "x",
    "model": {"student": "tiny", "teacher": "tiny"},
    "controls": [{"name": "softedge"}, {"name": "lowres"}],
    "data": {"source": "tiny"},
}


class MatrixStep:
    """One product of [4, 8] with [8, 2]."""

    def __init__(self):
        self.matrix = nn.Parameter(torch.ones(8, 2))

    @property
    def phases(self):
        return (Phase("product", lambda batch: Losses((torch.ones(4, 8) @ self.matrix).sum(), {}), (self.matrix,), 3),)


def test_operations_of_a_product(monkeypatch):
    """Forward 2 * 4 * 8 * 2 = 128; backward to the matrix as many, to the constant none; three times."""
    monkeypatch.setattr("jdmctl.comparison.cost.networks", lambda step: {})
    step = MatrixStep()
    assert training_cost(step, None).flops == 3 * (128 + 128)
    assert step.matrix.grad is None


@pytest.mark.parametrize(("form", "scale"), [("marginal", 1.0), ("marginal", 2.0), ("conditional", 2.0)])
def test_a_jdm_step_makes_no_pass_too_many(in_tiny_world, form, scale):
    """k fake-score updates draw and denoise; the student draws, asks teacher and fake score, decodes, and goes back
    through the decoder once for each of two controls."""
    recipe = parse_recipe(VALUES, [f"objective.form={form}", f"objective.guidance_scale={scale}"], "test")
    controls, family = build_controls(recipe, "cpu"), build_family(recipe.model, "cpu")
    prepare_student(recipe, family)
    step = build_jdm_step(recipe, family, controls)
    step.weights.values = dict.fromkeys(controls, 1.0)
    maps = {name: torch.rand(2, 3, 64, 64) for name in controls}
    cost = training_cost(step, Batch(family.encode_prompt(["a", "b"]), maps, SampleDraws(0, "test", range(2))))
    k = step.fake_score_updates
    expected = {
        "student": (k + 1, 1),
        "teacher": (1 if scale == 1 else 2, 0),
        "fake score": (k + 1, k),
        "decoder": (1, 2),
        "encoder": (0, 0),
    } | {f"student's {name} branch": (k + 1, 1) for name in controls}
    if form == "conditional":
        expected |= {f"fake score's {name} branch": (k + 1, k) for name in controls}
    assert cost.passes == expected
    assert cost.flops > 1e6
