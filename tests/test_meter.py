"""What is logged between two looks."""

import math

import pytest
import torch
from accelerate import Accelerator

from jdmctl.training.meter import Meter


@pytest.fixture
def meter():
    return Meter(Accelerator(cpu=True))


def test_means_since_the_last_look(meter):
    meter.add(1, {"loss": torch.tensor(1.0)})
    meter.add(2, {"loss": torch.tensor(3.0), "seldom": torch.tensor(5.0)})
    assert meter.read() == ({"loss": 2.0, "seldom": 5.0}, None)
    assert meter.read() == ({}, None)


def test_each_entry_of_a_histogram_is_the_mean_of_what_was_there(meter):
    nan = math.nan
    meter.add(1, {"h": torch.tensor([1.0, nan, nan]), "loss": torch.tensor(1.0)})
    meter.add(2, {"h": torch.tensor([3.0, 4.0, nan]), "loss": torch.tensor(2.0)})
    assert meter.read() == ({"h": [2.0, 4.0, None], "loss": 1.5}, None)


def test_the_first_step_with_a_scalar_that_is_not_finite_is_named(meter):
    for step, loss in enumerate((1.0, math.inf, math.nan), start=1):
        meter.add(step, {"loss": torch.tensor(loss)})
    assert meter.read()[1] == 2
