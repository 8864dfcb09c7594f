"""Where a student with rewards, with guidance apart and without fidelity ends, in the world of gaussian_world.py.

Letters as in test_closed_forms.py: m and V are the student's mean and variance, k = 1 / beta, a and d are alpha_t and
sigma_t, E is over t. The teacher is N(0, 1), so that p_t = N(0, a^2 + d^2) = N(0, 1).
"""

from dataclasses import dataclass, replace

import pytest
import torch
from gaussian_world import GaussianStudent, World, stable_diffusion_schedule
from test_closed_forms import ALMOST_CLEAN, root, train
from torch import nn

from jdmctl.diffusion.schedule import RectifiedFlow
from jdmctl.diffusion.timesteps import UniformTimesteps
from jdmctl.objectives.anchor import Anchor
from jdmctl.objectives.guidance import Guided, PromptGuidance
from jdmctl.types import EnergyWeights

SD = stable_diffusion_schedule()
CLEAN, DIFFUSED = World(RectifiedFlow(), ALMOST_CLEAN, num_times=1), World(SD)


@dataclass(frozen=True)
class Linear:
    """The reward x."""

    name: str = "linear"

    def __call__(self, image, batch):
        return -image.flatten()


@dataclass(frozen=True)
class Quadratic:
    """The reward -(x - goal)^2 / 2."""

    goal: float
    name: str = "quadratic"

    def __call__(self, image, batch):
        return (image.flatten() - self.goal) ** 2 / 2


def reached(world: World, energy, k: float, **fields) -> tuple[float, float]:
    """Mean and variance of a student after training."""
    student = GaussianStudent(gain=0.0, spread=0.9, bias=0.3)
    step = world.step(
        student, "marginal", 0.0, energies=(energy,), weights=EnergyWeights({energy.name: k}),
        student_parameters=(student.spread, student.bias), **fields,
    )  # fmt: skip
    train(step, world.batch(), learning_rate=0.5 / (1 + k), num_steps=500)
    return student.bias.item(), student.spread.item() ** 2


@pytest.mark.parametrize("k", [0.5, 1.0, 3.0])
def test_a_linear_reward_tilts_the_teacher_exactly_as_t_goes_to_0(k):
    """N(0, 1) exp(k x) / Z = N(k, 1)."""
    mean, variance = reached(CLEAN, Linear(), k)
    assert (mean, variance) == (pytest.approx(k, abs=1e-5), pytest.approx(1, abs=1e-5))


@pytest.mark.parametrize("k", [0.5, 1.0, 3.0])
def test_diffused_fidelity_lets_a_linear_reward_go_too_far(k):
    """J = E a^2 m^2 / 2 - k m + (of V alone): m = k / E[a^2], 2.7 times too far on Stable Diffusion's schedule; V = 1.

    Noise hides from fidelity what the reward does to the clean picture; E[a^2] is what is left to see.
    """
    mean, variance = reached(DIFFUSED, Linear(), k)
    assert mean == pytest.approx(k / (DIFFUSED.alpha**2).mean().item(), rel=1e-6)
    assert variance == pytest.approx(1, abs=1e-6)
    assert mean / k == pytest.approx(2.7, abs=0.05)


@pytest.mark.parametrize("k", [0.5, 1.0, 3.0])
def test_a_quadratic_reward_tilts_the_teacher_exactly_as_t_goes_to_0(k):
    """N(0, 1) exp(-k (x - 2)^2 / 2) / Z = N(2 k / (1 + k), 1 / (1 + k))."""
    mean, variance = reached(CLEAN, Quadratic(2.0), k)
    assert mean == pytest.approx(2 * k / (1 + k), abs=1e-5)
    assert variance == pytest.approx(1 / (1 + k), abs=1e-5)


@pytest.mark.parametrize("k", [0.5, 1.0, 3.0])
def test_diffused_fidelity_narrows_and_then_collapses_a_quadratic_reward(k):
    """dJ/dm = E[a^2] m + k (m - 2) = 0, and dJ/dV = 0 is E[a^2 (1 / (a^2 V + d^2) - 1)] = k, as with a control: at
    k = 1 V = 0.080 where the tilt has 0.5; above E[a^4 / d^2] = 2.25 there is no root and V = 0."""
    a2, d2 = DIFFUSED.alpha**2, DIFFUSED.sigma**2
    mean, variance = reached(DIFFUSED, Quadratic(2.0), k)
    assert mean == pytest.approx(2 * k / (a2.mean().item() + k), rel=1e-6)
    expected = 0.0
    if k < (a2**2 / d2).mean():
        expected = root(lambda v: (a2 * (1 / (a2 * v + d2) - 1)).mean().item() - k, 0.0, 1.0)
    assert variance == pytest.approx(expected, abs=1e-5)
    if k == 1:
        assert expected == pytest.approx(0.080, abs=0.001)


@pytest.mark.parametrize(
    "max_time, too_far, left", [(0.98, 2.72, 0.16), (0.3, 1.24, 0.68), (0.2, 1.14, 0.80), (0.05, 1.03, 0.95)]
)
def test_fidelity_nearer_to_0_makes_the_difference_small(max_time, too_far, left):
    """The two laws above with E over t in [0.02, max_time]: a linear reward moves the mean 1 / E[a^2] times as far as
    the tilt; a quadratic one with k = 1 leaves V, the root of E[a^2 (1 / (a^2 V + d^2) - 1)] = 1, of the tilt's 1 / 2.

    Both ratios tend to 1 with max_time: a -> 1 and d -> 0 turn the second equation into 1 / V - 1 = k. These are the
    numbers that the README tells beside objective.max_time.
    """
    world = World(SD, UniformTimesteps(0.02, max_time))
    mean, variance = reached(world, Linear(), 1.0)
    assert mean == pytest.approx(1 / (world.alpha**2).mean().item(), rel=1e-6)
    assert mean == pytest.approx(too_far, abs=0.01) and variance == pytest.approx(1, abs=1e-5)
    a2, d2 = world.alpha**2, world.sigma**2
    expected = root(lambda v: (a2 * (1 / (a2 * v + d2) - 1)).mean().item() - 1, 0.0, 1.0)
    _, variance = reached(world, Quadratic(2.0), 1.0)
    assert variance == pytest.approx(expected, abs=1e-5)
    assert variance / 0.5 == pytest.approx(left, abs=0.01)


def test_without_fidelity_nothing_holds_a_reward_back():
    """A quadratic reward alone ends at its goal with no variety; an anchor of weight h ends where
    (m - 2) + h (m - 0.3) = 0 and s + h (s - 0.9) = 0 (V = s^2): it knows where it was, not what pictures are."""
    assert reached(DIFFUSED, Quadratic(2.0), 1.0, fidelity=False) == (pytest.approx(2.0), pytest.approx(0, abs=1e-9))
    student, weight = GaussianStudent(gain=0.0, spread=0.9, bias=0.3), 0.5
    trained = (student.spread, student.bias)
    step = DIFFUSED.step(
        student, "marginal", 0.0, energies=(Quadratic(2.0),), weights=EnergyWeights({"quadratic": 1.0}),
        fidelity=False, anchor=Anchor.here(trained, weight), student_parameters=trained,
    )  # fmt: skip
    assert [phase.name for phase in step.phases] == ["student"]  # no fake score to train
    train(step, DIFFUSED.batch(), learning_rate=0.3)
    assert student.bias.item() == pytest.approx((2.0 + weight * 0.3) / (1 + weight))
    assert student.spread.item() == pytest.approx(weight * 0.9 / (1 + weight))


@dataclass(frozen=True)
class Prompted:
    """A teacher that knows p(x | prompt) = N(prompt, 1), and for no prompt (0) N(0, 1)."""

    world: World

    def __call__(self, x_t, t, prompt, controls=None):
        return self.world.denoise(x_t, t, prompt, 1.0)


def gradients(world: World, **fields) -> list[float]:
    student = GaussianStudent(gain=0.3, spread=0.7, bias=-0.2)
    step = world.step(student, "marginal", 0.0, energies=(), **fields)
    step.student_loss(replace(world.batch(), prompt=1.5)).total.backward()
    return [parameter.grad.item() for parameter in student.parameters()]


def test_decoupled_guidance_is_the_coupled_one_at_equal_draws_and_times():
    """fake - (empty + s (asked - empty)) = (fake - asked) + (s - 1) (empty - asked), with the same factor before it."""
    scale, teacher = 3.0, Prompted(DIFFUSED)
    apart = PromptGuidance(scale - 1, DIFFUSED.timesteps, lambda size: 0.0)
    coupled = gradients(DIFFUSED, teacher=Guided(teacher, scale, 0.0))
    assert gradients(DIFFUSED, teacher=teacher, guidance=apart) == pytest.approx(coupled, rel=1e-12)


def test_guidance_is_the_prompt_s_log_odds_as_an_energy():
    """At t -> 0 its gradient is -w d/dx log p(x | prompt) / p(x) = -w (prompt - 0), whatever x: a linear reward."""
    guidance = PromptGuidance(2.0, ALMOST_CLEAN, lambda size: 0.0)
    teacher = Prompted(CLEAN)
    with_it, without = (gradients(CLEAN, teacher=teacher, guidance=each) for each in (guidance, None))
    in_bias = with_it[2] - without[2]
    assert in_bias == pytest.approx(-2.0 * 1.5, rel=1e-2)
    assert with_it[:2] == pytest.approx(without[:2], abs=1e-2)


def test_guidance_has_noise_levels_and_draws_of_its_own():
    """Its times reach the teacher apart from those of fidelity, and its noise is drawn under another name."""
    times, names = [], []

    class Recorder(Prompted):
        def __call__(self, x_t, t, prompt, controls=None):
            times.append((t.min().item(), t.max().item()))
            return super().__call__(x_t, t, prompt, controls)

    world = World(SD)
    batch = replace(world.batch(), prompt=1.5)
    normal = type(batch.draws).normal

    class Named(type(batch.draws)):
        def normal(self, name, shape):
            names.append(name)
            return normal(self, name, shape)

    batch = replace(batch, draws=Named(batch.draws.z, batch.draws.noise, batch.draws.u))
    student = GaussianStudent()
    high = PromptGuidance(1.0, type(world.timesteps)(0.7, 0.9), lambda size: 0.0)
    world.step(student, "marginal", 0.0, energies=(), teacher=Recorder(world), guidance=high).student_loss(batch)
    assert times[0][0] < 0.1 and all(low >= 0.7 and most <= 0.9 for low, most in times[1:])
    assert {"fidelity_noise", "guidance_noise"} <= set(names)


def test_an_anchor_is_a_parabola_at_where_it_was_dropped():
    """3 / 2 (1^2 + 2^2) with the slope 3 (theta - theta_0), here 3 (1, -2)."""
    parameter = nn.Parameter(torch.tensor([1.0, 2.0]))
    anchor = Anchor.here([parameter], 3.0)
    assert anchor().item() == 0
    with torch.no_grad():
        parameter += torch.tensor([1.0, -2.0])
    anchor().backward()
    assert anchor().item() == pytest.approx(1.5 * 5)
    assert parameter.grad.tolist() == pytest.approx([3.0, -6.0])
