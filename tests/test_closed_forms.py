"""What JDM descends, and where it ends, against derivations in the world of gaussian_world.py.

Letters: g, b, s are the student's gain, bias and spread; V = s^2 is its variance given c and
S = g^2 v + V over all c, v being the variance of the requests; k = lambda / tau^2; a and d are
alpha_t and sigma_t; E is over t.
"""

import math
from dataclasses import dataclass

import pytest
import torch
from gaussian_world import GaussianStudent, World, gaussian_kl, stable_diffusion_schedule

from jdmctl.diffusion.schedule import RectifiedFlow
from jdmctl.diffusion.timesteps import UniformTimesteps
from jdmctl.objectives.guidance import ControlGuided
from jdmctl.training.steps.jdm import JDMStep
from jdmctl.types import Batch

SD = stable_diffusion_schedule()
ALMOST_CLEAN = UniformTimesteps(1e-3, 1e-3)  # with RectifiedFlow: the t -> 0 form, to about 1e-6


def train(step: JDMStep, batch: Batch, learning_rate: float, num_steps: int = 300) -> None:
    """Plain gradient descent; the fake score follows the student without training."""
    optimizer = torch.optim.SGD(step.student_parameters, lr=learning_rate)
    for _ in range(num_steps):
        optimizer.zero_grad()
        step.student_loss(batch).total.backward()
        optimizer.step()


def root(function, low: float, high: float) -> float:
    """Where a function that crosses zero once between low and high does so."""
    assert function(low) * function(high) < 0
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if function(low) * function(middle) > 0 else (low, middle)
    return low


@pytest.mark.parametrize("energy_at", ["clean", "denoised"])
@pytest.mark.parametrize("form", ["marginal", "conditional"])
def test_step_gradient_is_that_of_the_objective(form, energy_at):
    """d(student_loss) = d( E KL(q_t || p_t) + lambda E energy ) in all three parameters.

    Teacher N(M, P): p_t = N(a M, a^2 P + d^2). The student diffuses to

        conditional  q_t(. | c) = N( a (g c + b), a^2 V + d^2 ), averaged over c:
                     KL is quadratic in the mean, so c enters by E c^2 = v alone;
        marginal     q_t = N( a b, a^2 S + d^2 ).

    The clean energy is k/2 E (c - x)^2 = k/2 ( (1-g)^2 v + b^2 + V ). The denoised one looks at
    x0hat = M + r (x_t - a M) with r = a P / (a^2 P + d^2) instead of x, whose mean given c is
    M + r a (g c + b - M) and whose variance given c is r^2 (a^2 V + d^2):

        k/2 E[ (1 - r a g)^2 v + (M + r a (b - M))^2 + r^2 (a^2 V + d^2) ].
    """
    k = 4.0
    world = World(SD, mean=0.4, variance=1.7, request_variance=0.8)
    student = GaussianStudent(gain=0.3, spread=0.7, bias=-0.2)
    low_noise = UniformTimesteps(0.02, 0.2)
    step = world.step(student, form, k, energy_at=energy_at, energy_timesteps=low_noise)
    step.student_loss(world.batch()).total.backward()

    g, s, b = (p.detach().clone().requires_grad_() for p in (student.gain, student.spread, student.bias))
    a, d, v = world.alpha, world.sigma, world.request_variance
    p_mean, p_variance = a * world.mean, a**2 * world.variance + d**2
    if form == "conditional":
        q_variance = a**2 * s**2 + d**2
        fidelity = gaussian_kl(a * b, q_variance, p_mean, p_variance) + a**2 * g**2 * v / (2 * p_variance)
    else:
        fidelity = gaussian_kl(a * b, a**2 * (g**2 * v + s**2) + d**2, p_mean, p_variance)
    if energy_at == "clean":
        energy = ((1 - g) ** 2 * v + b**2 + s**2) / 2
    else:
        near = World(SD, low_noise)
        a, d = near.alpha, near.sigma
        r = a * world.variance / (a**2 * world.variance + d**2)
        mean = world.mean + r * a * (b - world.mean)
        energy = ((1 - r * a * g) ** 2 * v + mean**2 + r**2 * (a**2 * s**2 + d**2)) / 2
    (fidelity + k * energy).mean().backward()

    for name, trained, derived in (
        ("gain", student.gain, g),
        ("spread", student.spread, s),
        ("bias", student.bias, b),
    ):
        assert trained.grad.item() == pytest.approx(derived.grad.item(), rel=1e-9), name


@pytest.mark.parametrize("k", [0.25, 1.0, 1.8, 3.0, 10.0])
def test_conditional_form_reaches_its_optimum_and_collapses_above_the_threshold(k):
    """Teacher N(0, 1), so a^2 + d^2 = 1 = variance of p_t, and the objective is

        J = 1/2 E[ a^2 (g^2 v + V) - log(a^2 V + d^2) ] + k/2 ( (1-g)^2 v + V ) + const.

        dJ/dg = v ( g E[a^2] + k (g - 1) ) = 0          =>  g = k / (E[a^2] + k)
        dJ/dV = 1/2 ( k - E[ a^2 ( 1/(a^2 V + d^2) - 1 ) ] )

    The expectation falls in V and is E[a^4 / d^2] at V = 0 (a^2 (1 - d^2) / d^2 = a^4 / d^2): below
    that k there is one root V > 0, from there on V = 0, the collapse.
    Bayes would have g = k / (1 + k) and V = 1 / (1 + k) at every k: the t -> 0 test below.
    """
    world = World(SD)
    a2, d2 = world.alpha**2, world.sigma**2
    threshold = (a2**2 / d2).mean().item()
    variance = 0.0
    if k < threshold:
        variance = root(lambda v: (a2 * (1 / (a2 * v + d2) - 1)).mean().item() - k, 0.0, 1.0)

    student = GaussianStudent(gain=0.2, spread=0.9, bias=0.3)
    train(world.step(student, "conditional", k), world.batch(), learning_rate=1 / (1 + k))

    assert student.gain.item() == pytest.approx(k / (a2.mean().item() + k), abs=1e-8)
    assert student.spread.item() ** 2 == pytest.approx(variance, abs=1e-6)
    assert student.bias.item() == pytest.approx(0, abs=1e-8)
    assert (k < threshold) == (student.spread.item() ** 2 > 1e-3)


def test_collapse_threshold_of_stable_diffusion():
    """E[a^4 / d^2] = 2.25 for t in [0.02, 0.98]: at tau^2 = 0.1 lambda = 0.225 is too much."""
    world = World(SD, num_times=9600)
    assert (world.alpha**4 / world.sigma**2).mean().item() == pytest.approx(2.25, abs=0.01)


@pytest.mark.parametrize("request_variance", [0.5, 1.0, 1.5])
@pytest.mark.parametrize("k", [0.5, 5.0])
@pytest.mark.parametrize("timesteps", ["diffused", "t -> 0"])
def test_marginal_form_reaches_its_optimum(timesteps, k, request_variance):
    """Teacher N(0, 1). The fidelity term knows only S = g^2 v + V, and the energy is

        k/2 E (c - x)^2 = k/2 ( (1-g)^2 v + V ) = k/2 ( v + S - 2 g v ).

    At a given S it falls in g, so g is as large as S allows, sqrt(S / v), and V = 0: the student is
    deterministic given c at every k > 0. What is left is one equation for S. With p_t = N(0, P_t),
    P_t = a^2 + d^2, and q_t = N(0, a^2 S + d^2),

        2 dJ/dS = E[ a^2 ( 1/P_t - 1/(a^2 S + d^2) ) ] + k ( 1 - sqrt(v / S) ) = 0,

    which rises in S; as t -> 0 it is (1 - 1/S) + k (1 - sqrt(v / S)) = 0. If v = 1, the requests
    have the teacher's own variance, S = g = 1 for every k: obedience costs no fidelity.
    """
    v = request_variance
    if timesteps == "diffused":
        world = World(SD, request_variance=v)
        a2, d2 = world.alpha**2, world.sigma**2
    else:
        world = World(RectifiedFlow(), ALMOST_CLEAN, num_times=1, request_variance=v)
        a2, d2 = torch.ones(1), torch.zeros(1)

    def slope(total):
        fidelity = (a2 * (1 / (a2 + d2) - 1 / (a2 * total + d2))).mean().item()
        return fidelity + k * (1 - math.sqrt(v / total))

    gain = math.sqrt(root(slope, 0.1, 3.001) / v)

    student = GaussianStudent(gain=0.5, spread=0.6, bias=0.3)
    train(world.step(student, "marginal", k), world.batch(), learning_rate=0.5 / (1 + k))

    assert student.gain.item() == pytest.approx(gain, abs=1e-5)
    assert student.spread.item() == pytest.approx(0, abs=1e-8)
    assert student.bias.item() == pytest.approx(0, abs=1e-8)
    if v == 1:
        assert gain == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize("lam", [0.05, 0.3, 1.0])
def test_conditional_form_reaches_the_posterior_as_t_goes_to_0(lam):
    """At t -> 0 the optimum is p(x) p(c | x)^lambda / Z.

    N(0, 1) times N(x, tau^2)^lambda in c: precision 1 + k, mean k c / (1 + k), k = lambda / tau^2;
    with tau^2 = 0.1 the three lambdas lie on both sides of the diffused form's collapse.
    """
    k = lam / 0.1
    world = World(RectifiedFlow(), ALMOST_CLEAN, num_times=1)
    student = GaussianStudent(gain=0.2, spread=0.9, bias=0.3)
    train(world.step(student, "conditional", k), world.batch(), learning_rate=0.5 / (1 + k))
    assert student.gain.item() == pytest.approx(k / (1 + k), abs=1e-5)
    assert student.spread.item() ** 2 == pytest.approx(1 / (1 + k), abs=1e-5)
    assert student.bias.item() == pytest.approx(0, abs=1e-5)


@dataclass(frozen=True)
class AwareTeacher:
    """Knows p(x | c) = N(c / (1 + tau^2), tau^2 / (1 + tau^2)): teacher N(0, 1), c = x + noise of variance tau^2."""

    world: World
    tau_squared: float

    def __call__(self, x_t, t, prompt, controls=None):
        if not controls:
            return self.world.denoise(x_t, t, 0.0, 1.0)
        shrink = 1 / (1 + self.tau_squared)
        return self.world.denoise(x_t, t, shrink * controls["request"], self.tau_squared * shrink)


def test_a_teacher_that_sees_the_control_leads_to_the_posterior():
    """Conditional form, no energies: KL(q_t(. | c) || p_t(. | c)) vanishes at every t where q(x | c) = p(x | c)."""
    tau_squared = 0.5
    world = World(SD, request_variance=1 + tau_squared)
    student = GaussianStudent(gain=0.1, spread=0.9, bias=0.2)
    teacher = AwareTeacher(world, tau_squared)
    step = world.step(student, "conditional", 1.0, teacher=teacher, energies=(), teacher_sees_controls=True)
    train(step, world.batch(), learning_rate=0.3, num_steps=800)
    assert student.gain.item() == pytest.approx(1 / (1 + tau_squared), abs=1e-6)
    assert student.spread.item() ** 2 == pytest.approx(tau_squared / (1 + tau_squared), abs=1e-6)
    assert student.bias.item() == pytest.approx(0.0, abs=1e-6)


def test_the_implicit_control_is_linear_in_its_weight():
    """ControlGuided adds w (aware - blind): the gradient is (1 - w) of the blind one plus w of the aware one."""
    world, weight = World(SD), 2.5
    aware = AwareTeacher(world, 0.5)

    def gradient(teacher, sees):
        student = GaussianStudent(gain=0.3, spread=0.7, bias=-0.2)
        step = world.step(student, "marginal", 1.0, teacher=teacher, energies=(), teacher_sees_controls=sees)
        step.student_loss(world.batch()).total.backward()
        return torch.stack([p.grad for p in student.parameters()])

    found = gradient(ControlGuided(aware, weight), True)
    assert found.tolist() == pytest.approx(
        ((1 - weight) * gradient(aware, False) + weight * gradient(aware, True)).tolist()
    )
    assert gradient(ControlGuided(aware, 1.0), True).tolist() == pytest.approx(gradient(aware, True).tolist())
