"""AdamW in eight bits: what it learns, what a checkpoint keeps of it, and what it leaves as it was."""

import sys
from dataclasses import replace

import pytest
import torch
from torch import nn

from jdmctl.errors import JdmError, MissingWeightsError
from jdmctl.training.adamw import AdamW, moments
from jdmctl.training.checkpoint import Checkpoints
from jdmctl.training.state import TrainingState
from jdmctl.types import Phase

EIGHT_BITS = AdamW(0.01, bits=8)


def layers() -> tuple[nn.Parameter, ...]:
    """A channels_last convolution of 9216 numbers, in eight bits, and a bias of 32, in float32."""
    torch.manual_seed(0)
    layer = nn.Conv2d(32, 32, 3).to(memory_format=torch.channels_last)
    return layer.weight, layer.bias


def state_of(parameters, settings=EIGHT_BITS) -> TrainingState:
    return TrainingState([Phase("student", None, parameters)], {"student": settings}, 0.9)


def update(state, number) -> None:
    generator = torch.Generator().manual_seed(number)
    for parameter in state.parameters["student"]:
        parameter.grad = torch.empty_like(parameter).copy_(torch.randn(parameter.shape, generator=generator))
    state.optimizers["student"].step()


def test_without_the_package_it_is_said_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", None)
    with pytest.raises(JdmError, match="needs bitsandbytes") as caught:
        EIGHT_BITS.optimizer(layers())
    assert caught.value.hint == "pip install 'jdmctl[8bit]'"


@pytest.fixture
def bitsandbytes():
    return pytest.importorskip("bitsandbytes")


def test_weights_stay_as_they_lie_and_get_what_bitsandbytes_gives(bitsandbytes):
    """The same update of the same numbers in the same order in memory, by bitsandbytes itself on a flat copy."""
    parameters = layers()
    places = [(p.data_ptr(), p.stride()) for p in parameters]
    flat = nn.Parameter(parameters[0].detach().permute(0, 2, 3, 1).reshape(-1).clone())
    theirs = bitsandbytes.optim.AdamW8bit([flat], lr=0.01, betas=(0.0, 0.95), weight_decay=0.01)
    state = state_of(parameters)
    for number in range(3):
        update(state, number)
        flat.grad = parameters[0].grad.permute(0, 2, 3, 1).reshape(-1).clone()
        theirs.step()
    assert [(p.data_ptr(), p.stride()) for p in parameters] == places
    assert torch.equal(parameters[0].permute(0, 2, 3, 1).reshape(-1), flat)
    assert all(p.grad.shape == p.shape for p in parameters)


def test_a_checkpoint_brings_back_every_bit(bitsandbytes, tmp_path):
    """Five updates, or three, a checkpoint of safetensors, and two more: the same weights and the same moments."""
    whole, cut, again = (state_of(layers()) for _ in range(3))
    whole.enter(0, ()), cut.enter(0, ())
    for number in range(5):
        update(whole, number)
    for number in range(3):
        update(cut, number)
    checkpoints = Checkpoints(tmp_path)
    again.load(checkpoints, cut.save(checkpoints, "three", {}), [()], {})
    for number in range(3, 5):
        update(again, number)
    kinds = set()
    for one, other in zip(whole.parameters["student"], again.parameters["student"], strict=True):
        assert torch.equal(one, other)
        expected, found = moments(whole.optimizers["student"], one), moments(again.optimizers["student"], other)
        assert expected.keys() == found.keys() and expected["step"] == 5
        assert all(torch.equal(value, found[key]) for key, value in expected.items())
        assert all(value.dtype == found[key].dtype for key, value in expected.items())
        kinds.add((expected["state1"].dtype, len(expected)))
    assert kinds == {(torch.uint8, 5), (torch.float32, 3)}  # with a scale for each moment's blocks, and without


@pytest.mark.parametrize(("first", "then"), [(8, 32), (32, 8)])
def test_moments_of_the_other_optimizer_are_refused(bitsandbytes, tmp_path, first, then):
    begun, resumed = (state_of(layers(), replace(EIGHT_BITS, bits=bits)) for bits in (first, then))
    begun.enter(0, ())
    update(begun, 0)
    checkpoints = Checkpoints(tmp_path)
    path = begun.save(checkpoints, "one", {})
    with pytest.raises(MissingWeightsError, match="another optimizer"):
        resumed.load(checkpoints, path, [()], {})


def test_it_learns_about_as_well(bitsandbytes):
    """Least squares towards known weights from noisy answers: both end within the noise, 0.1 of where they began.

    Rounding second moments to 8 bits changes an update by a few per cent of itself, so the rest by little: a tenth.
    """
    torch.manual_seed(0)
    wanted, left = torch.randn(64, 80), {}
    for bits in (32, 8):
        weight = nn.Parameter(torch.zeros(64, 80))
        optimizer = AdamW(0.02, weight_decay=0.0, bits=bits).optimizer([weight])
        generator = torch.Generator().manual_seed(1)
        for _ in range(300):
            x = torch.randn(32, 80, generator=generator)
            noise = torch.randn(32, 64, generator=generator)
            weight.grad = (x @ (weight - wanted).detach().T - noise).T @ x / 32
            optimizer.step()
        left[bits] = (weight - wanted).square().mean().item()
    assert left[32] < 0.1 * wanted.square().mean()
    assert left[8] == pytest.approx(left[32], rel=0.1)
