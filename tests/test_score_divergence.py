"""SIM and SiD: their gradients against the divergences between scores that they stand for."""

import math

import pytest
import torch
from gaussian_world import GaussianStudent, World
from quadrature import gauss_hermite

from jdmctl.diffusion.schedule import RectifiedFlow
from jdmctl.diffusion.timesteps import UniformTimesteps
from jdmctl.objectives.divergence import load_divergence
from jdmctl.objectives.matching import Matching
from jdmctl.objectives.score_divergence import ScoreDivergence, sid_loss, sim_loss

P_MEAN, P_VARIANCE, A, D = 0.4, 1.3, 0.8, 0.6
HUBER = 0.7


def score_distance(phi, b, s):
    """E_{x_t ~ stopgrad q_t}[ phi(s_q(x_t) - s_p(x_t)) ], student N(b, s^2): the scores are linear in x_t."""
    nodes, weights = gauss_hermite()
    mean, variance = A * b, A**2 * s**2 + D**2
    x_t = (mean + variance.sqrt() * nodes).detach()
    difference = (mean - x_t) / variance - (A * P_MEAN - x_t) / (A**2 * P_VARIANCE + D**2)
    return (weights * phi(difference)).sum()


@pytest.mark.parametrize("method", ["sim", "sid"])
def test_the_gradient_is_that_of_the_distance_between_scores(method):
    """In both parameters of x = b + s z, by quadrature over (z, noise), with the fake score's own b and s fixed.

    SIM: phi(y) = sqrt(y^2 + c^2) - c. SiD at mix = 1: phi = y^2 / 2.
    """
    phi = (lambda y: (y**2 + HUBER**2).sqrt() - HUBER) if method == "sim" else (lambda y: y**2 / 2)
    b, s = (torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (-0.2, 0.7))
    expected = torch.autograd.grad(score_distance(phi, b, s), (b, s))

    nodes, weights = gauss_hermite()
    z, noise = torch.meshgrid(nodes, nodes, indexing="ij")
    x0 = b + s * z
    x_t = A * x0 + D * noise
    frozen_b, frozen_s = b.detach(), s.detach()
    fake_x0 = frozen_b + A * frozen_s**2 / (A**2 * frozen_s**2 + D**2) * (x_t - A * frozen_b)
    teacher_x0 = P_MEAN + A * P_VARIANCE / (A**2 * P_VARIANCE + D**2) * (x_t - A * P_MEAN)
    columns = [v.reshape(-1, 1, 1, 1) for v in (x0, teacher_x0, fake_x0)]
    alpha, sigma = (torch.full((z.numel(),), v, dtype=torch.float64) for v in (A, D))
    if method == "sim":
        loss = sim_loss(*columns, alpha, sigma, huber=HUBER, units="score")
    else:
        loss = sid_loss(*columns, alpha, sigma, mix=1.0, units="score")
    found = torch.autograd.grad(((weights[:, None] * weights).flatten() * loss).sum(), (b, s))
    torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-10)


def test_without_the_networks_inputs_the_gradient_is_another():
    """If x0hat of both is held fixed, only <phi', x0> is left: at y^2 / 2 that is d(loss)/d(x0) = y itself.

    So the path through the networks is no luxury; with it the gradient of the same sample is not y.
    """
    world = World(RectifiedFlow(), UniformTimesteps(0.5, 0.5), num_times=1, mean=0.4, variance=1.3)
    student = GaussianStudent(spread=0.7, bias=-0.2)
    matching = ScoreDivergence("sid", units="score", mix=1.0)
    step = world.step(student, "marginal", 1.0, energies=(), matching=matching)
    batch = world.batch()
    x0 = student.generate(batch.draws.normal("student_noise", (1, 1, 1)), None, batch.conditions).detach()
    x_t, t = 0.5 * x0 + 0.5 * batch.draws.normal("noise", (1, 1, 1)), world.t[0].expand(len(x0))
    y = 2 * (step.fake_score(x_t, t, None) - step.teacher(x_t, t, None))  # alpha / sigma^2 = 2
    held = x0.clone().requires_grad_()
    (partial,) = torch.autograd.grad((y.detach() * 2 * held).sum(), held)
    torch.testing.assert_close(partial, 2 * y.detach())
    whole = step._fidelity_gradient(x0, batch)
    assert (whole - partial).abs().max() > 0.1


def test_the_jdm_step_descends_the_distance_between_scores():
    """SiD's loss at mix = 1 is of degree two in z and in the noise, so the world's grid is exact: phi = y^2 / 2.

    Both scores are linear, alpha = sigma = 1/2 at t = 1/2; no gradient reaches the fake score's own parameters
    beyond that of the student's output.
    """
    world = World(RectifiedFlow(), UniformTimesteps(0.5, 0.5), num_times=1, mean=P_MEAN, variance=P_VARIANCE)
    student, follower = GaussianStudent(spread=0.7, bias=-0.2), GaussianStudent(spread=0.7, bias=-0.2)
    matching = ScoreDivergence("sid", units="score", mix=1.0)
    fake_score = world.step(follower, "marginal", 1.0).fake_score
    step = world.step(student, "marginal", 1.0, energies=(), matching=matching, fake_score=fake_score)
    step.student_loss(world.batch()).total.backward()
    assert all(parameter.grad is None for parameter in follower.parameters())

    b, s = (torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (-0.2, 0.7))
    variance = 0.25 * s**2 + 0.25
    nodes, weights = gauss_hermite(20)
    x_t = (0.5 * b + variance.sqrt() * nodes).detach()
    y = (0.5 * b - x_t) / variance - (0.5 * P_MEAN - x_t) / (0.25 * P_VARIANCE + 0.25)
    (weights * y**2 / 2).sum().backward()
    assert student.bias.grad.item() == pytest.approx(b.grad.item(), rel=1e-9)
    assert student.spread.grad.item() == pytest.approx(s.grad.item(), rel=1e-9)


def test_sids_loss_by_hand():
    """x0 = 0, teacher (1, 3), fake (2, 1): y = (1, -2), x0 - fake = (-2, -1), <y, .> = 0, |y|^2 = 5.

    SiD's code: (x0_T - x0_F) ((x0_T - x0) - 1.2 (x0_T - x0_F)) summed = -1 (1 + 1.2) + 2 (3 - 2.4) = -1, over
    mean |x0 - x0_T| = 2.
    """
    x0, teacher, fake = (torch.tensor(v).reshape(1, 1, 1, 2) for v in ([0.0, 0.0], [1.0, 3.0], [2.0, 1.0]))
    one = torch.ones(1)
    torch.testing.assert_close(sid_loss(x0, teacher, fake, one, one), torch.tensor([-0.5]))


def test_sims_loss_by_hand():
    """As above with c^2 = 0.5^2 * 2: <y, x0 - fake> = 0 is no test, so x0 = (1, 0): y . (-1, -1) = 1."""
    x0, teacher, fake = (torch.tensor(v).reshape(1, 1, 1, 2) for v in ([1.0, 0.0], [1.0, 3.0], [2.0, 1.0]))
    one = torch.ones(1)
    expected = torch.tensor([1 / math.sqrt(5 + 0.5)])
    torch.testing.assert_close(sim_loss(x0, teacher, fake, one, one, huber=0.5), expected)


def test_a_score_divergence_takes_no_f():
    world = World(RectifiedFlow())
    fields = dict(matching=ScoreDivergence(), divergence=load_divergence("js"), critic=lambda *_: torch.zeros(1))
    with pytest.raises(ValueError, match="leave out"):
        world.step(GaussianStudent(), "marginal", 1.0, **fields)
    world.step(GaussianStudent(), "marginal", 1.0, **fields | {"matching": Matching()})
