"""The identity U = KL(joint) + H_q(c | x) of the marginal form, and when it is a bound.

    U = KL( q(x) || p(x) ) - E_q log p(c | x)  =  KL( q(x, c) || p(x) p(c | x) ) + H_q(c | x)

because log q(x) = log q(x, c) - log q(c | x). It is what the marginal form descends at lambda = 1
as t -> 0. For a discrete c the entropy lies between 0 and log(number of requests), so U bounds the
joint KL from above; for a continuous one it may be negative.
"""

import math

import pytest
import torch
from gaussian_world import GaussianStudent, World, gaussian_kl
from torch.distributions import Normal
from torch.nn.functional import logsigmoid, one_hot
from torch.special import xlogy

from jdmctl.diffusion.schedule import RectifiedFlow
from jdmctl.diffusion.timesteps import UniformTimesteps
from jdmctl.types import Batch, EnergyWeights

ALMOST_CLEAN = UniformTimesteps(1e-4, 1e-4)  # with RectifiedFlow: the t -> 0 form


def joint_kl_and_entropy(g, s, v: float, tau_squared: float):
    """KL( q(x, c) || p(x) p(c | x) ) and h_q(c | x), from the 2 x 2 covariances of (x, c).

    q: [[g^2 v + V, g v], [g v, v]]      p: [[1, 1], [1, 1 + tau^2]]
    KL = 1/2 ( tr(p^-1 q) - 2 + log det p - log det q )
    h_q(c | x) = 1/2 log( 2 pi e det q / (g^2 v + V) )
    """
    v = torch.tensor(v, dtype=torch.float64)
    q = torch.stack([g**2 * v + s**2, g * v, g * v, v]).reshape(2, 2)
    p = torch.tensor([[1, 1], [1, 1 + tau_squared]], dtype=q.dtype)
    kl = 0.5 * (torch.trace(torch.linalg.solve(p, q)) - 2 + p.logdet() - q.logdet())
    return kl, 0.5 * (2 * math.pi * math.e * q.det() / q[0, 0]).log()


@pytest.mark.parametrize(("form", "objective"), [("conditional", 0.0), ("marginal", 1.0)])
def test_forms_descend_the_joint_kl_and_the_joint_kl_plus_entropy(form, objective):
    """At lambda = 1 and t -> 0, with the chain rule on the joint KL:

    conditional  E_c KL(q(x|c) || p(x)) - E log p(c|x) = KL + H(c),     H(c) constant;
    marginal         KL(q(x) || p(x))   - E log p(c|x) = KL + H_q(c | x) =: U.
    """
    v, tau_squared = 0.8, 0.1
    world = World(RectifiedFlow(), ALMOST_CLEAN, num_times=1, request_variance=v)
    student = GaussianStudent(gain=0.6, spread=0.5)
    world.step(student, form, k=1 / tau_squared).student_loss(world.batch()).total.backward()

    g, s = (p.detach().clone().requires_grad_() for p in (student.gain, student.spread))
    kl, entropy = joint_kl_and_entropy(g, s, v, tau_squared)
    (kl + objective * entropy).backward()
    assert student.gain.grad.item() == pytest.approx(g.grad.item(), rel=1e-6)
    assert student.spread.grad.item() == pytest.approx(s.grad.item(), rel=1e-6)


def test_for_a_continuous_request_the_marginal_objective_is_no_bound():
    """U = KL(q(x) || p(x)) + E (c-x)^2 / (2 tau^2) + 1/2 log(2 pi tau^2) = KL(joint) + h_q(c | x)
    always. A differential entropy may be negative, and then U lies below the joint KL.
    """
    v, tau_squared = 0.8, 0.1
    below = []
    for spread in (1.5, 0.05):
        g, s = torch.tensor(0.9, dtype=torch.float64), torch.tensor(spread, dtype=torch.float64)
        kl, entropy = joint_kl_and_entropy(g, s, v, tau_squared)
        square = (1 - g) ** 2 * v + s**2
        energy = 0.5 * (square / tau_squared + math.log(2 * math.pi * tau_squared))
        bound = gaussian_kl(0, g**2 * v + s**2, 0, 1) + energy
        assert bound.item() == pytest.approx((kl + entropy).item(), abs=1e-12)
        below.append(bool(bound < kl))
    assert below == [False, True]


def tables(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Random q(x, c) and p(x, c) over 6 pictures and 4 requests."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.rand(2, 6, 4, generator=generator, dtype=torch.float64)
    q, p = values / values.sum((1, 2), keepdim=True)
    return q, p


def marginal_objective(q, p):
    """U = KL(q(x) || p(x)) - E_q log p(c | x), term by term as the marginal form computes it."""
    q_x, p_x = q.sum(1), p.sum(1)
    return (q_x * (q_x / p_x).log()).sum() - xlogy(q, p / p_x[:, None]).sum()


@pytest.mark.parametrize("seed", range(5))
def test_for_a_discrete_request_the_marginal_objective_bounds_the_joint_kl(seed):
    """U = KL(joint) + H_q(c | x) with 0 <= H_q(c | x) <= log 4, so U >= KL(joint)."""
    q, p = tables(seed)
    kl = (q * (q / p).log()).sum()
    entropy = -(q * (q / q.sum(1, keepdim=True)).log()).sum()
    assert marginal_objective(q, p).item() == pytest.approx((kl + entropy).item(), abs=1e-12)
    assert 0 <= entropy <= math.log(4)


def test_the_bound_is_tight_when_the_request_can_be_read_off_the_picture():
    """If c = h(x) exactly, the true joint has H_q(c | x) = 0 and reaches U = KL(joint) = 0.

    It keeps all of the teacher's variety inside each {x : h(x) = c}.
    """
    p_x = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)
    h = torch.tensor([0, 0, 1, 1])
    joint = p_x[:, None] * one_hot(h, 2)
    assert marginal_objective(joint, joint).item() == pytest.approx(0, abs=1e-12)


class MixtureDraws:
    """Gauss-Hermite grids for z and noise, both signs for c; `probability` sums to 1."""

    def __init__(self) -> None:
        z, z_weight = hermite(40)
        noise, noise_weight = hermite(3)
        sign, half = torch.tensor([-1.0, 1.0]).double(), torch.tensor([0.5, 0.5]).double()
        self.z, self.c, self.noise = (v.flatten() for v in torch.meshgrid(z, sign, noise, indexing="ij"))
        parts = torch.meshgrid(z_weight, half, noise_weight, indexing="ij")
        self.probability = (parts[0] * parts[1] * parts[2]).flatten()
        self.size = len(self.z)

    def normal(self, name, shape):
        return (self.z if name == "student_noise" else self.noise).reshape(-1, *shape)

    def uniform(self, name):
        return torch.zeros(self.size, dtype=torch.float64)


def hermite(num: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Nodes and weights for E f(z), z ~ N(0, 1) (Golub and Welsch 1969)."""
    jacobi = torch.arange(1, num, dtype=torch.float64).sqrt()
    nodes, vectors = torch.linalg.eigh(jacobi.diag(1) + jacobi.diag(-1))
    return nodes, vectors[0] ** 2


@pytest.mark.parametrize("gain", [0.0, 0.5, 3.0])
def test_marginal_step_descends_the_bound_for_a_discrete_request(gain):
    """c = -1 or +1 with equal odds, p(x) = N(0, 1), p(c | x) = sigmoid(2 c x), x = g c + s z.

    The student is the mixture of N(-g, V) and N(g, V), and the fake score its exact denoiser: with
    x_t ~ N(+-a g, W), W = a^2 V + d^2, the sign's mean is tanh(a g x_t / W), and given the sign
    E[x0 | x_t] = g sign + (a V / W)(x_t - a g sign). At t -> 0 the step's gradient is that of
    U = KL(joint) + H_q(c | x), here computed on a grid of x from the joint table.
    """
    s = 0.6
    draws = MixtureDraws()

    class WeightedStudent(GaussianStudent):
        def generate(self, noise, prompt, controls=None):
            x0 = super().generate(noise, prompt, controls)
            weight = (draws.probability * draws.size).reshape(-1, 1, 1, 1)
            x0.register_hook(lambda gradient: weight * gradient)
            return x0

    def fake_score(x_t, t, prompt, controls=None):
        a, d = 1 - t[0], t[0]
        width = a**2 * s**2 + d**2
        sign = torch.tanh(a * gain * x_t / width)
        return gain * sign + a * s**2 / width * (x_t - a * gain * sign)

    class Sign:
        name = "sign"

        def __call__(self, image, batch):
            return -logsigmoid(2 * batch.conditions["request"] * image).flatten()

    student = WeightedStudent(gain, s)
    weights = EnergyWeights({"sign": 1.0})
    fields = dict(fake_score=fake_score, energies=(Sign(),), weights=weights)
    step = World(RectifiedFlow(), ALMOST_CLEAN).step(student, "marginal", 1.0, **fields)
    batch = Batch(None, {"request": draws.c.reshape(-1, 1, 1, 1)}, draws)
    step.student_loss(batch).total.backward()

    g, spread = (torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (gain, s))
    x = torch.linspace(-12, 12, 20001, dtype=torch.float64)[:, None]
    c = torch.tensor([[-1.0, 1.0]], dtype=torch.float64)
    log_q = Normal(g * c, spread).log_prob(x) + math.log(0.5)  # [x, c]
    log_p = Normal(0.0, 1.0).log_prob(x) + logsigmoid(2 * c * x)
    dx = (x[1] - x[0]).item()
    kl = (log_q.exp() * (log_q - log_p)).sum() * dx
    entropy = -(log_q.exp() * log_q.log_softmax(1)).sum() * dx
    (kl + entropy).backward()

    assert student.gain.grad.item() == pytest.approx(g.grad.item(), abs=2e-5)
    assert student.spread.grad.item() == pytest.approx(spread.grad.item(), abs=2e-5)
    expected_entropy = {0.0: math.log(2), 3.0: 0.0}  # nothing, or all, can be read off x
    assert 0 <= entropy <= math.log(2) + 1e-12
    if gain in expected_entropy:
        assert entropy.item() == pytest.approx(expected_entropy[gain], abs=1e-5)
