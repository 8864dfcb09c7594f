"""Counting: a step's passes are the stated minimum, and its operations those of its networks."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers.models.attention_processor import Attention
from torch import nn
from torch.nn.functional import scaled_dot_product_attention
from torch.utils.checkpoint import checkpoint

from jdmctl.build import build_controls, build_family, build_jdm_step, prepare_student
from jdmctl.comparison.cells import Cell
from jdmctl.comparison.cost import cell_cost, training_cost
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
    assert training_cost(step, lambda phase: None).flops == 3 * (128 + 128)
    assert step.matrix.grad is None


def test_operations_are_of_all_pieces_of_a_batch(monkeypatch):
    """A pass is of the whole batch however it comes; [4, 8] with [8, 2] costs 128 there and 128 back, four times."""
    network = nn.Linear(8, 2, bias=False)
    monkeypatch.setattr("jdmctl.comparison.cost.networks", lambda step: {"all": network})

    class NetworkStep:
        phases = (Phase("one", lambda batch: Losses(network(torch.ones(4, 8)).sum(), {}), (network.weight,)),)

    cost = training_cost(NetworkStep(), lambda phase: None, pieces=4)
    assert cost.flops == 4 * (128 + 128) and cost.passes == {"all": (1, 1)}
    assert cost.parts == {"all": cost.flops}


def products(network: nn.Module, counts: dict[str, int]) -> list:
    """Hooks that add up what one pass of a network must cost: 2 x inputs x outputs of each layer, by hand; attention of
    L tokens to S is 2 L S width for Q K^T and as much for A V."""

    def layer(module, inputs, output):
        kernel = module.weight[0].numel()  # of a linear layer its inputs, of a convolution inputs / groups x h x w
        counts["layers"] += 2 * output.numel() * kernel

    def attention(module, inputs, options, output):
        size, tokens = len(output), output[:, 0].numel() if output.ndim == 4 else output.shape[:2].numel()
        seen = options.get("encoder_hidden_states")
        others = tokens // size if seen is None else seen.shape[1]
        counts["attention"] += 2 * 2 * tokens * others * module.inner_dim

    hooks = []
    for module in network.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            hooks.append(module.register_forward_hook(layer))
        elif isinstance(module, Attention):
            hooks.append(module.register_forward_hook(attention, with_kwargs=True))
    return hooks


def test_operations_of_each_network(in_tiny_world):
    """The teacher goes forward alone, twice for guidance, and costs its layers and its attention by hand. The frozen
    decoder goes back once for each of two controls: to its inputs, each layer as much as forward; it has no attention.
    All parts add up to the whole, counted apart."""
    step, batch = step_and_batch(parse_recipe(VALUES, ["objective.guidance_scale=2"], "test"))
    cost = training_cost(step, lambda phase: batch)
    assert sum(cost.parts.values()) == cost.flops
    assert set(cost.parts) == {name for name, passes in cost.passes.items() if sum(passes)} | {
        "softedge energy",  # blurs and slopes; the means of lowres are no products
        "all else",  # the 1 x 1 convolution before the decoder
    }

    teacher, decoder = Counter(), Counter()
    hooks = products(step.teacher.denoiser.backbone, teacher) + products(step.codec.vae.decoder, decoder)
    x_t, t = torch.rand(2, *step.latent_shape), torch.rand(2)
    with torch.no_grad():
        step.teacher(x_t, t, batch.prompt)
        step.codec.decode(x_t)
    for hook in hooks:
        hook.remove()
    assert teacher["attention"] > 0 == decoder["attention"]
    assert cost.parts["teacher"] == teacher["layers"] + teacher["attention"]
    assert cost.parts["decoder"] == 3 * decoder["layers"]


def test_operations_on_the_way_back_are_whose_graph_it_is(monkeypatch):
    """y = B(A x) with frozen [8, 8] matrices and x [4, 8] that wants a gradient: 2 * 4 * 8 * 8 = 512 there and back for
    each; between them a product that is nobody's. B's activations are computed again on the way back: 512 more."""
    first, last = (nn.Linear(8, 8, bias=False).requires_grad_(False) for _ in range(2))
    again = Again(last)
    monkeypatch.setattr("jdmctl.comparison.cost.networks", lambda step: {"A": first, "B": again})
    x, between = nn.Parameter(torch.ones(4, 8)), torch.ones(8, 8)

    class ChainStep:
        phases = (Phase("one", lambda batch: Losses(again(first(x) @ between).sum(), {}), (x,)),)

    cost = training_cost(ChainStep(), lambda phase: None)
    assert cost.parts == {"A": 2 * 512, "B": 3 * 512, "all else": 2 * 512}
    assert cost.passes == {"A": (1, 1), "B": (1, 1)} and cost.flops == 7 * 512


class Again(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return checkpoint(lambda x: torch.sin(self.layer(x)), x, use_reentrant=False)


def test_operations_of_attention(monkeypatch):
    """4 tokens of width 8: Q K^T and A V, 2 * 4 * 8 * 4 each; to Q alone there is one product back, as large."""
    monkeypatch.setattr("jdmctl.comparison.cost.networks", lambda step: {})
    query, rest = nn.Parameter(torch.ones(1, 1, 4, 8)), torch.ones(1, 1, 4, 8)

    class AttentionStep:
        phases = (Phase("look", lambda b: Losses(scaled_dot_product_attention(query, rest, rest).sum(), {}), (query,)),)

    product = 2 * 4 * 8 * 4
    assert training_cost(AttentionStep(), lambda phase: None).flops == 2 * product + 2 * product


def step_and_batch(recipe):
    controls, family = build_controls(recipe, "cpu"), build_family(recipe.model, "cpu")
    prepare_student(recipe, family)
    step = build_jdm_step(recipe, family, controls)
    step.weights.update(dict.fromkeys(controls, 1.0))
    maps = {name: torch.rand(2, 3, 64, 64) for name in controls}
    draws = SampleDraws(0, "test", range(2))
    return step, Batch(family.encode_prompt(["a", "b"]), maps, draws, images=torch.rand(2, 3, 64, 64))


@pytest.mark.parametrize(("form", "scale"), [("marginal", 1.0), ("marginal", 2.0), ("conditional", 2.0)])
def test_a_jdm_step_makes_no_pass_too_many(in_tiny_world, form, scale):
    """k fake-score updates draw and denoise; the student draws, asks teacher and fake score, decodes, and goes back
    through the decoder once for each of two controls."""
    recipe = parse_recipe(VALUES, [f"objective.form={form}", f"objective.guidance_scale={scale}"], "test")
    step, batch = step_and_batch(recipe)
    controls, cost = batch.conditions, training_cost(step, lambda phase: batch)
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


def test_a_critic_s_passes_count(in_tiny_world):
    """Of the student's pictures and of true ones while it learns, of the student's for its weights."""
    step, batch = step_and_batch(
        parse_recipe(VALUES, ["objective.divergence=js", "objective.guidance_scale=1"], "test")
    )
    passes = training_cost(step, lambda phase: batch).passes
    assert passes["critic"] == (2 + 1, 2)
    assert passes["teacher"] == (1, 0)  # its way down, which lends features, is the critic's


def test_each_phase_is_counted_on_a_batch_of_its_own(in_tiny_world, tmp_path):
    """The critic's positives are in no other; and what was kept when less was counted is counted again."""
    Path("prompts.txt").write_text("".join(f"a red box number {i}\n" for i in range(16)))
    given = VALUES | {"method": "distill", "controls": [], "data": {"source": "prompts", "path": "prompts.txt"}}
    changes = ["objective.divergence=js", "critic.positives=teacher", "training.teacher_steps=1"]
    sizes = ["training.batch_size=4", "training.gradient_accumulation_steps=2", "data.num_validation_samples=4"]
    cell = Cell("distill", 0, parse_recipe(given, [*changes, *sizes], "test"), tmp_path / "distill-0")
    kept = tmp_path / "distill-0.cost.json"
    kept.write_text('{"passes": {"teacher": [1, 0]}, "flops": 5}')
    cost = cell_cost(cell)
    assert cost.passes["critic"] == (3, 2) and cost.flops > 1e6
    assert cell_cost(cell) == cost and "5}" not in kept.read_text()
    assert sum(cost.parts.values()) == cost.flops and cost.parts["critic"] > 0
    ((stage, (flops, most)),) = cost.warmups.items()  # a fake score's update and a critic's, once
    assert stage == "fake-score-warmup" and most == cell.recipe.fake_score.warmup_max_steps
    assert 0 < flops < cost.flops and cell.recipe.fake_score.updates > 1
    cell = replace(cell, recipe=parse_recipe(given, [*changes, *sizes, "fake_score.updates=1"], "test"))
    assert cell_cost(cell).flops < cost.flops  # what was kept is of another recipe
