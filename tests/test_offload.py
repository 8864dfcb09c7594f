"""Weights that stay off the device: no bit of a step differs, and nothing else is left where they are."""

import copy

import pytest
import torch
from torch import nn

from jdmctl.build import build_controls, build_jdm_step, build_roles, prepare_student
from jdmctl.errors import JdmError
from jdmctl.families.low_precision import hold
from jdmctl.families.offload import _Offloaded, offload, offloaded_weights
from jdmctl.recipe_files import load_recipe
from jdmctl.training.draws import SampleDraws
from jdmctl.types import Batch

BASIC = ["controls.0.init=student", "training.dsm_warmup_steps=0", "fake_score.rank=2",
         "memory.gradient_checkpointing=true"]  # fmt: skip
LORA = "fake_score.trainable=lora"
KINDS = {
    "LoRA on the teacher's weights": [LORA],
    "a whole fake score": ["fake_score.trainable=full"],
    "a student with a LoRA": [LORA, "student.trainable=lora", "student.rank=2"],
    "a student that is trained": [LORA, "student.trainable=full"],
    "the student's own encoder as a branch": [LORA, "controls.0.branch=controlnet_lora"],
    "half the bytes": [LORA, "memory.frozen_precision=bf16", "training.precision=bf16"],
}


def blocks(*layers: nn.Module) -> nn.Module:
    """A backbone of a first layer, which is in no block, and blocks."""
    return nn.Sequential(nn.Linear(6, 6), nn.ModuleList(layers)).requires_grad_(False)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("layer", [nn.Linear(6, 4), nn.Conv2d(6, 4, 3), nn.Conv1d(6, 4, 1)], ids=str)
def test_a_layer_computes_as_before_and_its_weight_stays(layer, dtype):
    x = torch.randn({nn.Linear: (2, 6), nn.Conv1d: (2, 6, 5), nn.Conv2d: (2, 6, 5, 5)}[type(layer)]).requires_grad_()
    layer = copy.deepcopy(layer)
    backbone = blocks(layer)
    hold([backbone], dtype)
    weight = layer.weight
    seen = []
    for _ in range(2):
        y = layer(x)
        seen.append((y, torch.autograd.grad(y.square().sum(), x)[0]))
        offload(backbone)
    assert isinstance(layer, _Offloaded) and not isinstance(backbone[0], _Offloaded)
    assert all(torch.equal(a, b) for a, b in zip(*seen, strict=True))
    backbone.to("meta")
    assert layer.weight is weight and weight.device.type == "cpu"
    assert layer.bias.is_meta and backbone[0].weight.is_meta


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_is_the_same_to_the_bit(in_tiny_world, kind):
    """Losses and every gradient of both phases; and of what is trained nothing is offloaded."""
    found = []
    for more in ([], ["memory.offload=true"]):
        recipe = load_recipe("tiny/canny", [*BASIC, *KINDS[kind], *more])
        family = build_roles(recipe, "cpu")
        prepare_student(recipe, family)
        step = build_jdm_step(recipe, family, build_controls(recipe, "cpu"))
        step.weights.update(dict.fromkeys(step.weights, 1.0))
        images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
        conditions = {"canny": (images > 0.5).float()}
        batch = Batch(
            family.encode_prompt(["a cone", "a cube"]), conditions, SampleDraws(0, "x", range(2)), images=images
        )
        values = []
        for phase in step.phases:
            with torch.autocast("cpu", torch.bfloat16, enabled=recipe.training.precision == "bf16"):
                loss = phase.loss(batch).total
            loss.backward()
            values += [loss.detach(), *(p.grad for p in phase.parameters)]
            assert all(p.grad is not None for p in phase.parameters)
        found.append(values)
        away = {id(w) for m in (step.student, family.teacher, step.fake_score) for w in offloaded_weights(m)}
        assert bool(away) == bool(more)
        assert away.isdisjoint(id(p) for phase in step.phases for p in phase.parameters)
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize("branch", ["controlnet", "controlnet_lora"])
@pytest.mark.parametrize("trainable", ["lora", "full"])
def test_all_else_is_on_the_device(in_tiny_world, branch, trainable):
    """The device is `meta` here, the offloaded weights real: LoRA, branches and gradients are where they are used."""
    recipe = load_recipe("tiny/canny", [*BASIC, "memory.offload=true", f"controls.0.branch={branch}"])
    family = build_roles(recipe, "cpu")
    prepare_student(recipe, family)
    family.to("meta")
    family.add_student_lora(2)
    fake_score = family.make_fake_score(trainable, 2)
    networks = (family.student, family.teacher, fake_score)
    away = {id(weight): weight for network in networks for weight in offloaded_weights(network)}
    assert away and all(weight.device.type == "cpu" for weight in away.values())
    assert all(p.is_meta for network in networks for p in network.parameters() if id(p) not in away)
    latent, words = torch.empty(2, *family.latent_shape, device="meta"), family.teacher.summary_width
    prompt, controls = torch.empty(2, 77, words, device="meta"), {"canny": torch.empty(2, 3, 64, 64, device="meta")}
    x0 = family.student.generate(latent, prompt, controls)
    seen = fake_score(x0.detach(), torch.full((2,), 0.5, device="meta"), prompt)
    (x0.mean() + seen.mean()).backward()
    trained = [*family.student.trainable(), *fake_score.trainable()]
    assert len(trained) > 100 and all(p.grad.is_meta for p in trained)


def test_without_checkpoints_it_is_refused():
    with pytest.raises(JdmError, match="memory.offload needs memory.gradient_checkpointing"):
        load_recipe("tiny/canny", ["memory.offload=true"])
