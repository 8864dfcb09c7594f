"""Noise schedules and the times at which they are read."""

import pytest
import torch
from diffusers import DDPMScheduler, FlowMatchEulerDiscreteScheduler

from jdmctl.diffusion.schedule import DiscreteSchedule, RectifiedFlow, diffuse, expand
from jdmctl.diffusion.timesteps import UniformTimesteps
from jdmctl.errors import BadInputError

STABLE_DIFFUSION = dict(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)


@pytest.fixture
def discrete() -> DiscreteSchedule:
    return DiscreteSchedule.from_diffusers(DDPMScheduler(**STABLE_DIFFUSION))


def test_discrete_schedule_preserves_variance(discrete):
    t = torch.linspace(0, 1, 777, dtype=torch.float64)
    total = discrete.alpha(t) ** 2 + discrete.sigma(t) ** 2
    torch.testing.assert_close(total, torch.ones_like(t), rtol=0, atol=1e-14)


def test_rectified_flow_is_a_straight_path():
    t = torch.tensor([0.0, 0.25, 1.0])
    x0, noise = torch.full((3, 4, 2, 2), 8.0), torch.full((3, 4, 2, 2), -4.0)
    x_t = diffuse(RectifiedFlow(), x0, noise, t)
    assert x_t[:, 0, 0, 0].tolist() == [8.0, 5.0, -4.0]


def test_every_row_has_its_time_and_every_time_its_nearest_row(discrete):
    rows = torch.arange(1000)
    assert torch.equal(discrete.timestep(rows / 999), rows)
    assert discrete.timestep(torch.tensor([0.0, 0.4004, 0.4006, 1.0])).tolist() == [
        0,
        400,
        400,
        999,
    ]


def test_diffuse_is_what_diffusers_adds(discrete):
    scheduler = DDPMScheduler(**STABLE_DIFFUSION)
    generator = torch.Generator().manual_seed(0)
    x0, noise = torch.randn(2, 5, 4, 8, 8, generator=generator)
    rows = torch.tensor([0, 1, 399, 700, 999])
    expected = scheduler.add_noise(x0, noise, rows)
    torch.testing.assert_close(diffuse(discrete, x0, noise, rows / 999), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_schedules_keep_shape_and_dtype(discrete, dtype):
    t = torch.rand(3, dtype=dtype)
    for schedule in (discrete, RectifiedFlow()):
        for value in (schedule.alpha(t), schedule.sigma(t)):
            assert value.shape == t.shape and value.dtype == dtype


def test_a_scheduler_without_a_table_is_named():
    with pytest.raises(BadInputError, match="FlowMatchEulerDiscreteScheduler has no table"):
        DiscreteSchedule.from_diffusers(FlowMatchEulerDiscreteScheduler())


def test_expand_follows_the_dimensions_of_its_target():
    assert expand(torch.zeros(2), torch.zeros(2, 4, 8, 8)).shape == (2, 1, 1, 1)
    assert expand(torch.zeros(2), torch.zeros(2, 7)).shape == (2, 1)


def test_uniform_timesteps_stretch_the_unit_interval():
    t = UniformTimesteps(0.02, 0.98)(torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64))
    assert t.tolist() == pytest.approx([0.02, 0.5, 0.98])
