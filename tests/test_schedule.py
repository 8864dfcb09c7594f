"""Noise schedules and the times at which they are read."""

import math

import pytest
import torch
from diffusers import AutoencoderKL, DDPMScheduler, FlowMatchEulerDiscreteScheduler
from torch.utils._python_dispatch import TorchDispatchMode

from jdmctl.diffusion.prediction import from_x0, to_x0
from jdmctl.diffusion.schedule import DiscreteSchedule, RectifiedFlow, diffuse, expand
from jdmctl.diffusion.timesteps import UniformTimesteps
from jdmctl.errors import BadInputError
from jdmctl.families.codec import LatentCodec
from jdmctl.families.schedulers import ddim, discrete_schedule

STABLE_DIFFUSION = dict(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)


@pytest.fixture
def discrete() -> DiscreteSchedule:
    return DiscreteSchedule.from_diffusers(DDPMScheduler(**STABLE_DIFFUSION))


def test_discrete_schedule_preserves_variance(discrete):
    t = torch.linspace(0, 1, 777, dtype=torch.float64)
    total = discrete.alpha(t) ** 2 + discrete.sigma(t) ** 2
    torch.testing.assert_close(total, torch.ones_like(t), rtol=0, atol=1e-14)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_table_is_rounded_once(discrete, dtype):
    """Row 399 in float64, then in t's dtype; where t is there may be no float64."""
    t = torch.tensor([0.0, 399 / 999, 1.0], dtype=dtype)
    rows = discrete.alphas_cumprod[discrete.timestep(t)]
    assert torch.equal(discrete.alpha(t), rows.sqrt().to(dtype)) and discrete.alpha(t).dtype == dtype
    assert torch.equal(discrete.sigma(t), (1 - rows).sqrt().to(dtype))


def test_a_schedule_works_on_a_device_without_float64(discrete):
    """As Apple's; meta stands for it: whatever is made there in float64 is told."""

    class Told(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            result = func(*args, **(kwargs or {}))
            assert not (result.device.type == "meta" and result.dtype == torch.float64), func
            return result

    with Told():
        assert discrete.alpha(torch.ones(2, device="meta")).shape == discrete.sigma(torch.ones(2, device="meta")).shape


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"_class_name": "EDMDPMSolverMultistepScheduler", "sigma_max": 80.0}, "EDMDPMSolver.* no table of betas"),
        ({"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0}, "FlowMatch.* no table"),
        ({"_class_name": "DPMSolverMultistepScheduler", "use_flow_sigmas": True}, "with use_flow_sigmas, whose"),
    ],
)
def test_a_scheduler_without_a_table_of_betas_is_refused(config, says):
    """Playground v2.5's, which is SDXL by all else: DDIM makes the default linear table of it."""
    with pytest.raises(BadInputError, match=says):
        discrete_schedule(config)


def test_a_scheduler_with_a_table_is_read(discrete):
    for name in ("EulerAncestralDiscreteScheduler", "PNDMScheduler", "LCMScheduler", "OneOfTheirOwnScheduler"):
        found, prediction = discrete_schedule({**STABLE_DIFFUSION, "_class_name": name})
        assert torch.equal(found.alphas_cumprod, discrete.alphas_cumprod) and prediction == "epsilon"


def test_a_vae_that_normalises_its_channels_is_refused():
    """StableDiffusionXLPipeline applies latents_mean and latents_std, LatentCodec does not."""
    vae = AutoencoderKL(block_out_channels=(8,), norm_num_groups=8, latents_mean=[0.1] * 4, latents_std=[0.9] * 4)
    with pytest.raises(BadInputError, match="latents_mean"):
        LatentCodec(vae)


def test_a_scheduler_that_says_nothing_of_clipping_does_not_clip():
    """PixArt's is a DPMSolver, which clips nothing and says so nowhere; a latent of 3 must stay one."""
    config = {**STABLE_DIFFUSION, "_class_name": "DPMSolverMultistepScheduler"}
    for told, expected in (({}, 3.0), ({"clip_sample": True}, 1.0)):
        scheduler = ddim(config | told, 1, torch.device("cpu"))
        x0, eps = torch.full((1, 4, 2, 2), 3.0), torch.zeros(1, 4, 2, 2)
        x_t = scheduler.alphas_cumprod[999].sqrt() * x0
        drawn = scheduler.step(eps, scheduler.timesteps[0], x_t).pred_original_sample
        torch.testing.assert_close(drawn, torch.full_like(x0, expected))


def test_rectified_flow_is_a_straight_path():
    t = torch.tensor([0.0, 0.25, 1.0])
    x0, noise = torch.full((3, 4, 2, 2), 8.0), torch.full((3, 4, 2, 2), -4.0)
    x_t = diffuse(RectifiedFlow(), x0, noise, t)
    assert x_t[:, 0, 0, 0].tolist() == [8.0, 5.0, -4.0]


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_a_flow_is_told_what_its_scheduler_tells(shift):
    """FlowMatchEulerDiscreteScheduler's own rows, shifted: their sigmas and timesteps are ours at t = row / 1000."""
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    flow = RectifiedFlow.from_diffusers(scheduler.config | {"_class_name": type(scheduler).__name__})
    t = torch.linspace(1, 0.001, 1000, dtype=torch.float64)
    torch.testing.assert_close(flow.sigma(t), scheduler.sigmas.double(), rtol=0, atol=1e-6)
    torch.testing.assert_close(flow.timestep(t), scheduler.timesteps.double(), rtol=0, atol=1e-3)
    torch.testing.assert_close(flow.alpha(t) + flow.sigma(t), torch.ones_like(t))
    assert [flow.time(float(row)) for row in flow.timestep(t[::100])] == pytest.approx(t[::100].tolist())
    with pytest.raises(BadInputError, match="no timestep 1001"):
        flow.time(1001)


@pytest.mark.parametrize("kind", ["exponential", "linear"])
def test_a_flow_shifts_with_the_size_of_a_picture(kind):
    """mu runs from 0.5 at 256 tokens to 1.15 at 4096; diffusers gives it to the scheduler, which shifts by it."""
    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, time_shift_type=kind)
    config = scheduler.config | {"_class_name": type(scheduler).__name__}
    for tokens, mu in ((256, 0.5), (4096, 1.15), (2176, 0.825)):
        scheduler.set_timesteps(sigmas=[1.0, 0.6, 0.2], mu=mu)
        sigma = RectifiedFlow.from_diffusers(config, tokens).sigma(torch.tensor([1.0, 0.6, 0.2]))
        torch.testing.assert_close(sigma, scheduler.sigmas[:3])


def test_trigflow_is_the_same_flow():
    """As SanaSprintPipeline calls its network F, x0 = cos(a) x - sin(a) F of TrigFlow is the flow's x0.

    The pipeline gives the network x sqrt(s^2 + (1 - s)^2) and makes F of its answer v. In float64, there and back.
    """
    generator = torch.Generator().manual_seed(0)
    x0, noise, v = torch.randn(3, 5, 4, 8, 8, generator=generator, dtype=torch.float64)
    angle = torch.linspace(0.01, math.pi / 2, 5, dtype=torch.float64)
    a = expand(angle, x0)
    x = a.cos() * x0 + a.sin() * noise
    s = angle.sin() / (angle.cos() + angle.sin())
    flow = RectifiedFlow.from_diffusers({"_class_name": "SCMScheduler"})

    wide = expand(s, x)
    size = (wide**2 + (1 - wide) ** 2).sqrt()
    torch.testing.assert_close(x * size, diffuse(flow, x0, noise, s))
    F = ((1 - 2 * wide) * x * size + (1 - 2 * wide + 2 * wide**2) * v) / size
    trig_x0 = a.cos() * x - a.sin() * F
    torch.testing.assert_close(to_x0("flow_prediction", v, x * size, flow.alpha(s), flow.sigma(s)), trig_x0)
    true_v = from_x0("flow_prediction", x0, x * size, flow.alpha(s), flow.sigma(s))
    torch.testing.assert_close(true_v, noise - x0)


def test_a_table_is_no_flow():
    with pytest.raises(BadInputError, match="DDPMScheduler is not a flow"):
        RectifiedFlow.from_diffusers(DDPMScheduler().config | {"_class_name": "DDPMScheduler"})


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
