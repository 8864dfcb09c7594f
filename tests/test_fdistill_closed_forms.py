"""What the JDM step descends under each divergence, against that divergence itself, in Gaussian worlds."""

import math
from types import SimpleNamespace

import pytest
import torch
from gaussian_world import GaussianEnergy, GaussianStudent, World
from quadrature import gauss_hermite, log_normal
from test_ratio import Glass
from torch.distributions import MultivariateNormal, Normal

from jdmctl.diffusion.schedule import RectifiedFlow
from jdmctl.diffusion.timesteps import UniformTimesteps
from jdmctl.families.heads import RatioCritic
from jdmctl.objectives.divergence import load_divergence
from jdmctl.training.steps.jdm import JDMStep
from jdmctl.types import Batch, EnergyWeights

SOME = ["reverse-kl", "softened-reverse-kl", "js", "squared-hellinger", "forward-kl", "jeffreys", "alpha:0.3"]
TAU_SQUARED, REQUEST_VARIANCE = 0.5, 1.2


class Traced(GaussianStudent):
    """Keeps its picture, to show what gradient arrived there."""

    def generate(self, noise, prompt, controls=None):
        self.x0 = super().generate(noise, prompt, controls)
        self.x0.retain_grad()
        return self.x0


class Nodes:
    """Draws that are a grid of quadrature nodes over (z, c, noise)."""

    def __init__(self, num_nodes: int = 24) -> None:
        nodes, weights = gauss_hermite(num_nodes)
        self.z, self.c, self.noise = (v.flatten() for v in torch.meshgrid(nodes, nodes, nodes, indexing="ij"))
        self.weights = (weights[:, None, None] * weights[:, None] * weights).flatten()
        self.size = len(self.z)

    def normal(self, name, shape):
        return (self.z if name == "student_noise" else self.noise).reshape(-1, *shape)

    def uniform(self, name):
        return torch.full((self.size,), 0.5, dtype=torch.float64)


def forces(student: Traced, step: JDMStep, nodes: Nodes) -> tuple[tuple[float, float, float], float]:
    """The step's gradient in (gain, spread, bias), its batch mean replaced by quadrature, not divided by mean h.

    The step gives sample i the gradient g_i / B with weights over their plain mean, which is exp(h_log_mean); that
    mean comes second.
    """
    requests = (REQUEST_VARIANCE**0.5 * nodes.c).reshape(-1, 1, 1, 1)
    losses = step.student_loss(Batch(None, {"request": requests}, nodes))
    losses.total.backward()
    mean_h = losses.logs["h_log_mean"].exp().item() if "h_log_mean" in losses.logs else 1.0
    force = nodes.weights * student.x0.grad.flatten() * nodes.size * mean_h
    return tuple((force * v).sum().item() for v in (requests.flatten(), nodes.z, torch.ones_like(nodes.z))), mean_h


@pytest.mark.parametrize("weight", [0.0, 0.7])
@pytest.mark.parametrize("name", SOME)
def test_the_step_descends_the_divergence(name, weight):
    """d D_f(p_t || q_t) at t = 1/2, p_t and q_t Gaussian, by central differences; energies may stand beside it.

    Marginal form: q_t = N(b / 2, (g^2 v + s^2) / 4 + 1 / 4), v the variance of the requests. The critic is exact.
    Where r is the ratio of fidelity alone, an energy (c - x)^2 / (2 tau^2) of weight lambda adds to what is descended
    lambda times mean h times its mean, ((1 - g)^2 v + b^2 + s^2) / (2 tau^2).
    """
    world = World(
        RectifiedFlow(), UniformTimesteps(0.5, 0.5), mean=0.3, variance=1.5, request_variance=REQUEST_VARIANCE
    )
    student = Traced(gain=0.3, spread=0.9, bias=0.1)
    p_mean, p_variance = 0.15, (1.5 + 1) / 4

    def q(g, s, b):
        return b / 2, (g**2 * REQUEST_VARIANCE + s**2 + 1) / 4

    def critic(x_t, t, prompt, controls=None):
        assert controls is None, "the marginal form's critic is blind"
        x = x_t.flatten()
        return log_normal(x, p_mean, p_variance) - log_normal(x, *q(0.3, 0.9, 0.1))

    divergence = load_divergence(name)
    step = world.step(
        student,
        "marginal",
        1.0,
        energies=(GaussianEnergy(TAU_SQUARED),) if weight else (),
        weights=EnergyWeights({"request": weight}),
        divergence=divergence,
        ratio="fidelity" if weight else "joint",
        critic=critic,
    )
    found, mean_h = forces(student, step, Nodes())

    nodes, weights = gauss_hermite()

    def true(*parameters):
        mean, variance = q(*parameters)
        x = mean + math.sqrt(variance) * nodes
        ratio = (log_normal(x, p_mean, p_variance) - log_normal(x, mean, variance)).exp()
        g, s, b = parameters
        energy = ((1 - g) ** 2 * REQUEST_VARIANCE + b**2 + s**2) / (2 * TAU_SQUARED)
        return (weights * divergence.f(ratio)).sum().item() + weight * mean_h * energy

    assert found == pytest.approx(differences(true, (0.3, 0.9, 0.1)), rel=1e-4, abs=1e-7)


@pytest.mark.parametrize("ratio", ["joint", "learned"])
@pytest.mark.parametrize("name", SOME)
def test_with_an_energy_the_step_descends_the_divergence_of_the_joints(name, ratio):
    """Conditional form, lambda = 1, almost clean: d D_f( p(x) p(c | x) || p(c) q(x | c) ), one h for both terms.

    p(x) = N(0.3, 1.5), p(c | x) = N(x, tau^2), c ~ N(0, v), q(x | c) = N(g c + b, s^2). The energy lacks the
    constants of p(c | x) and p(c), which the exact critic here supplies; where the ratio is learned, a critic supplies
    all of it. At t = 1e-3 the fidelity term differs from that of clean pictures by O(sigma^2 / s^2) = 1e-6.
    """
    world = World(RectifiedFlow(), UniformTimesteps(1e-3, 1e-3), mean=0.3, variance=1.5)
    start = (0.6, 0.6, 0.1)
    student = Traced(*start)

    def log_joint_ratio(x, c, g, s, b, with_energy=True):
        likelihood = log_normal(c, x, TAU_SQUARED) if with_energy else -0.5 * math.log(2 * math.pi * TAU_SQUARED)
        return (
            log_normal(x, 0.3, 1.5) + likelihood - log_normal(c, 0, REQUEST_VARIANCE) - log_normal(x, g * c + b, s * s)
        )

    def critic(x_t, t, prompt, controls):
        x0, request = student.x0.detach().flatten(), controls["request"].flatten()
        return log_joint_ratio(x0, request, *start, with_energy=ratio == "learned")

    divergence = load_divergence(name)
    step = world.step(
        student,
        "conditional",
        1.0,
        energies=(GaussianEnergy(TAU_SQUARED),),
        weights=EnergyWeights({"request": 1.0}),
        divergence=divergence,
        ratio=ratio,
        critic=critic,
    )
    found, _ = forces(student, step, Nodes(40))

    nodes, weights = gauss_hermite(60)
    z, c = torch.meshgrid(nodes, REQUEST_VARIANCE**0.5 * nodes, indexing="ij")

    def true(g, s, b):
        r = log_joint_ratio(g * c + b + s * z, c, g, s, b).exp()
        return (weights[:, None] * weights * divergence.f(r)).sum().item()

    assert found == pytest.approx(differences(true, start), rel=1e-3, abs=1e-4)


def test_the_critic_of_the_joint_learns_its_log_ratio():
    """Through the step's own critic loss, RMSE over q at most 5% of the log-ratio's standard deviation there.

    Pictures x ~ N(0.3, 1.5) show h(x) = (x, x, x); requests are c = h(x) + noise of variance tau^2 in each channel, so
    c ~ N(0.3, 1.5 + tau^2 I); the student draws x | c ~ N(g mean(c) + b, s^2). All four numbers are jointly Gaussian.
    """
    torch.manual_seed(0)
    g, s, b, steps, size = 0.8, 0.45, 0.1, 2000, 1024
    mean, cov = torch.full((4,), 0.3), 1.5 + torch.diag(torch.tensor([0, TAU_SQUARED, TAU_SQUARED, TAU_SQUARED]))
    pictures_with_requests = MultivariateNormal(mean, cov)
    requests_alone = MultivariateNormal(mean[1:], cov[1:, 1:])

    def generate(noise, prompt, controls):
        return g * controls["request"].mean(1, keepdim=True) + b + s * noise

    critic = RatioCritic(Glass(), ["request"], width=32)
    step = World(RectifiedFlow(), UniformTimesteps(0.0, 0.0)).step(
        SimpleNamespace(generate=generate, parameters=tuple),
        "marginal",
        1.0,
        ratio="learned",
        jitter=TAU_SQUARED**0.5,
        critic=critic,
    )
    optimizer = torch.optim.Adam(critic.parameters(), lr=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    sobol = torch.quasirandom.SobolEngine(5, scramble=True, seed=0)  # evener than chance
    for _ in range(steps):
        n = Normal(0.0, 1.0).icdf(sobol.draw(size).clamp(1e-5, 1 - 1e-5))
        named = {"student_noise": n[:, 1:2], "request_noise request": n[:, 2:]}
        draws = SimpleNamespace(
            size=size,
            normal=lambda name, shape, named=named: named.get(name, torch.zeros(size, 1)).reshape(-1, *shape),
            uniform=lambda name: torch.zeros(size),
        )
        images = (0.3 + 1.5**0.5 * n[:, 0]).reshape(-1, 1, 1, 1)
        batch = Batch(torch.zeros(size, 1), {"request": images.expand(-1, 3, 1, 1)}, draws, images=images)
        optimizer.zero_grad()
        step.critic_loss(batch).total.backward()
        optimizer.step()
        schedule.step()

    c = requests_alone.sample((4096,))
    x = g * c.mean(1) + b + s * torch.randn(4096)
    log_q = requests_alone.log_prob(c) + log_normal(x, g * c.mean(1) + b, s * s)
    true = pictures_with_requests.log_prob(torch.cat([x[:, None], c], dim=1)) - log_q
    shown = {"request": c.reshape(-1, 3, 1, 1)}
    found = critic(x.reshape(-1, 1, 1, 1), torch.zeros(4096), torch.zeros(4096, 1), shown).detach()
    assert (found - true).square().mean().sqrt() <= 0.05 * true.std()


def differences(function, at, step=1e-4):
    """Central differences of a function of three numbers."""
    result = []
    for i in range(3):
        up, down = ([v + sign * step * (i == j) for j, v in enumerate(at)] for sign in (1, -1))
        result.append((function(*up) - function(*down)) / (2 * step))
    return tuple(result)
