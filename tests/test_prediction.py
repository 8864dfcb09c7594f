"""Network outputs <-> x0."""

import pytest
import torch
from diffusers import DDIMScheduler
from gaussian_world import stable_diffusion_schedule

from jdmctl.diffusion.prediction import PREDICTIONS, from_x0, to_x0
from jdmctl.diffusion.schedule import RectifiedFlow, diffuse
from jdmctl.errors import BadInputError

SCHEDULES = {"discrete": stable_diffusion_schedule(), "rectified_flow": RectifiedFlow()}


@pytest.fixture
def sample():
    """x0, noise and a time for each of six samples, float64."""
    generator = torch.Generator().manual_seed(0)
    x0, noise = torch.randn(2, 6, 4, 8, 8, generator=generator, dtype=torch.float64)
    return x0, noise, torch.linspace(0.01, 0.99, 6, dtype=torch.float64)


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_there_and_back(prediction, schedule, sample):
    x0, noise, t = sample
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    x_t = diffuse(schedule, x0, noise, t)
    output = from_x0(prediction, x0, x_t, alpha, sigma)
    torch.testing.assert_close(to_x0(prediction, output, x_t, alpha, sigma), x0)


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
def test_each_prediction_is_what_its_name_says(schedule, sample):
    """The definitions: noise; a noise - s x0; noise - x0; x0."""
    x0, noise, t = sample
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    a, s = alpha.reshape(-1, 1, 1, 1), sigma.reshape(-1, 1, 1, 1)
    x_t = a * x0 + s * noise
    expected = {
        "epsilon": noise,
        "v_prediction": a * noise - s * x0,
        "flow_prediction": noise - x0,
        "sample": x0,
    }
    assert set(expected) == set(PREDICTIONS)
    for prediction, output in expected.items():
        torch.testing.assert_close(from_x0(prediction, x0, x_t, alpha, sigma), output)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_agrees_with_diffusers(prediction):
    scheduler = DDIMScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        prediction_type=prediction,
        clip_sample=False,
        timestep_spacing="trailing",
    )
    scheduler.set_timesteps(4)
    generator = torch.Generator().manual_seed(0)
    output, x_t = torch.randn(2, 1, 4, 8, 8, generator=generator)
    for row in scheduler.timesteps:
        expected = scheduler.step(output, row, x_t).pred_original_sample
        alpha = scheduler.alphas_cumprod[row].sqrt()[None]
        sigma = (1 - scheduler.alphas_cumprod[row]).sqrt()[None]
        torch.testing.assert_close(to_x0(prediction, output, x_t, alpha, sigma), expected)


def test_half_precision_is_widened_before_it_is_divided():
    """At SD's last row 1/alpha = 15; in bfloat16 the difference x_t - sigma epsilon is lost."""
    t = torch.ones(1)
    alpha, sigma = (f(t) for f in (SCHEDULES["discrete"].alpha, SCHEDULES["discrete"].sigma))
    generator = torch.Generator().manual_seed(0)
    output, x_t = torch.randn(2, 1, 4, 8, 8, generator=generator).bfloat16()
    x0 = to_x0("epsilon", output, x_t, alpha.bfloat16(), sigma.bfloat16())
    wide = to_x0("epsilon", output.float(), x_t.float(), alpha.bfloat16(), sigma.bfloat16())
    assert x0.dtype == torch.float32 and torch.equal(x0, wide)


def test_an_unknown_prediction_lists_the_known_ones():
    x = torch.zeros(1, 4, 2, 2)
    with pytest.raises(BadInputError, match="'score'") as error:
        to_x0("score", x, x, torch.ones(1), torch.ones(1))
    assert all(name in error.value.hint for name in PREDICTIONS)
