"""Noise Consistency Training against its stationary point in a linear world, and what its boundary is for.

The frozen student is f(z) = z. A request is c = z + tau e, and the branch makes it f(z, c) = a z + b c. With
squared errors and levels at angles t_k = k pi / (2 K), gradients at fixed targets are

    consistency  d/da: 2 a (1 - cos(pi / 2K))        d/db: 2 a E[cos t_k+1 - cos t_k] = -2 a / K
    boundary     d/da: 2 (a - 1 + b)                 d/db: 2 (a - 1 + b) + 2 b tau^2

since E z_k+1 (z_k+1 - z_k) = 1 - cos(t_k+1 - t_k) and E z_k c = cos t_k. With a multiplier m both sums vanish:

    a (1 - cos(pi / 2K)) + m (a - 1 + b) = 0
    -a / K + m (a - 1 + b + b tau^2) = 0.

The posterior is N(c / (1 + tau^2), tau^2 / (1 + tau^2)). At m = 1 / K and K large the solution is
b = 1 / (1 + tau^2), its mean exactly, and a = tau^2 / (1 + tau^2): the spread is the square of what it should be.
"""

import math
from dataclasses import dataclass

import pytest
import torch
from gaussian_world import IdentityCodec
from torch import nn

from jdmctl.training.draws import SampleDraws
from jdmctl.training.steps.nct import NCTStep
from jdmctl.types import Batch

TAU = 0.7
HUGE = 1e4  # pseudo-Huber far below its scale is the square, over twice the scale


class LinearStudent(nn.Module):
    def __init__(self, a: float = 1.0, b: float = 0.0):
        super().__init__()
        self.a, self.b = (nn.Parameter(torch.tensor(v, dtype=torch.float64)) for v in (a, b))

    def generate(self, noise, prompt, controls=None):
        return self.a * noise + self.b * controls["request"] if controls else noise


@dataclass(frozen=True)
class ExactDraws:
    """Two points for each of three independent numbers integrate every second moment; all levels in equal shares."""

    z: torch.Tensor
    fresh: torch.Tensor
    u: torch.Tensor

    @property
    def size(self):
        return len(self.u)

    def normal(self, name, shape):
        return (self.z if name == "student_noise" else self.fresh).reshape(-1, *shape)

    def uniform(self, name):
        return self.u


def world(student, num_levels, multiplier, limit=0.0, speed=0.0, **fields):
    sign = torch.tensor([-1.0, 1.0], dtype=torch.float64)
    u = (torch.arange(num_levels, dtype=torch.float64) + 0.5) / num_levels
    z, fresh, e, u = (v.flatten() for v in torch.meshgrid(sign, sign, sign, u, indexing="ij"))
    step = NCTStep(
        student=student,
        codec=IdentityCodec01(),
        extractors={"request": lambda image: image * 100 - 50 + TAU * e.reshape(-1, 1, 1, 1)},
        latent_shape=(1, 1, 1),
        student_parameters=tuple(student.parameters()),
        log_multiplier=nn.Parameter(torch.tensor(math.log(multiplier) / (speed or 1.0), dtype=torch.float64)),
        limit=limit,
        multiplier_speed=speed or 1.0,
        num_levels=num_levels,
        **{"distance_scale": HUGE} | fields,
    )
    return step, Batch(None, {}, ExactDraws(z, fresh, u))


class IdentityCodec01(IdentityCodec):
    """The step clamps images to [0, 1]; this one leaves room for latents in [-50, 50]."""

    def decode(self, latent):
        return (latent + 50) / 100


def descend(step, batch, optimizer, num_steps):
    for _ in range(num_steps):
        optimizer.zero_grad()
        step.loss(batch).total.backward()
        optimizer.step()


@pytest.mark.parametrize(("num_levels", "multiplier"), [(4, 0.25), (8, 1.0), (200, 1 / 200)])
def test_its_gradient_is_the_derived_one_and_vanishes_where_derived(num_levels, multiplier):
    """The docstring of this file. A pseudo-Huber distance of scale H is the square over 2 H."""
    m, loss = multiplier, 1 - math.cos(math.pi / 2 / num_levels)
    matrix = torch.tensor([[loss + m, m], [m - 1 / num_levels, m * (1 + TAU**2)]], dtype=torch.float64)
    stationary = torch.linalg.solve(matrix, torch.tensor([m, m], dtype=torch.float64))
    for a, b in ((1.0, 0.0), (0.4, 0.7), stationary.tolist()):
        student = LinearStudent(a, b)
        step, batch = world(student, num_levels, multiplier)
        step.loss(batch).total.backward()
        found = HUGE * torch.stack([student.a.grad, student.b.grad])
        derived = torch.tensor(
            [a * loss + m * (a - 1 + b), -a / num_levels + m * (a - 1 + b + b * TAU**2)], dtype=torch.float64
        )
        assert found == pytest.approx(derived, abs=1e-6)
    if num_levels == 200:
        a, b = stationary.tolist()
        assert b == pytest.approx(1 / (1 + TAU**2), abs=0.02)
        assert a == pytest.approx(TAU**2 / (1 + TAU**2), abs=0.02)


def test_without_its_boundary_it_ignores_its_noise():
    """At m = 0, a decays to 0 whatever b is: the same picture for every noise."""
    student = LinearStudent()
    step, batch = world(student, 2, 1e-9)
    descend(step, batch, torch.optim.SGD(student.parameters(), lr=HUGE), num_steps=60)
    assert abs(student.a.item()) < 1e-3


def test_the_multiplier_rises_until_the_boundary_holds():
    """Primal-dual: at the end the boundary's loss is at its limit, not below and not above."""
    student = LinearStudent(a=0.2, b=0.2)
    step, batch = world(student, 8, 0.1, limit=0.02, speed=2.0, distance_scale=0.5)
    optimizer = torch.optim.Adam([*student.parameters(), step.log_multiplier], lr=0.01)
    descend(step, batch, optimizer, num_steps=1500)
    logs = step.loss(batch).logs
    assert logs["boundary_loss"].item() == pytest.approx(0.02, rel=0.05)
    assert logs["multiplier"].item() > 0.1


def test_gradients_reach_the_branch_and_the_multiplier_alone():
    """The multiplier's gradient is the violation, upwards; the targets are held fixed."""
    student = LinearStudent(a=0.5, b=0.3)
    step, _ = world(student, 4, 1.0, limit=0.1, speed=2.0)
    batch = Batch(None, {}, SampleDraws(0, "test", range(32)))
    step = NCTStep(**{**step.__dict__, "extractors": {"request": lambda image: image}, "distance_scale": 0.1})
    losses = step.loss(batch)
    losses.total.backward()
    assert student.a.grad.abs() > 0 and student.b.grad.abs() > 0
    violation = losses.logs["boundary_loss"] - 0.1
    assert step.log_multiplier.grad.item() == pytest.approx(-2.0 * violation.item(), rel=1e-5)


def test_under_autocast_all_of_a_branch_learns():
    """Its weights are cast where no gradient is wanted first; torch older than the pinned one goes on with those."""

    class Seeing(LinearStudent):
        def __init__(self):
            super().__init__()
            self.eye = nn.Conv2d(1, 1, 1)

        def generate(self, noise, prompt, controls=None):
            return noise + self.eye(controls["request"].float()) if controls else noise

    student = Seeing()
    step, batch = world(student, 4, 1.0)
    with torch.autocast("cpu", torch.bfloat16):
        step.loss(batch).total.backward()
    assert student.eye.weight.grad.abs().sum() > 0 and student.eye.bias.grad.abs().sum() > 0
