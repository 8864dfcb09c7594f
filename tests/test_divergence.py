"""Generators and weights of the divergences: each h from its f, and each gradient from its true divergence."""

import math
import re

import pytest
import torch
from quadrature import gauss_hermite, log_normal

from jdmctl.errors import JdmError
from jdmctl.objectives.divergence import divergence_names, load_divergence, power
from jdmctl.objectives.matching import Matching

NAMES = [
    *(name for name in divergence_names() if not name.endswith("NUMBER")),
    *("alpha:-1", "alpha:0", "alpha:0.3", "alpha:0.5", "alpha:1", "alpha:2"),
    *("bregman-sba:-1", "bregman-sba:0", "bregman-sba:0.7"),
]
R = torch.logspace(-3, 3, 61, dtype=torch.float64)


def weight(name: str, r: torch.Tensor = R) -> torch.Tensor:
    return load_divergence(name).log_weight(r.log()).exp()


@pytest.mark.parametrize("name", NAMES)
def test_the_weight_is_the_generators_second_derivative_times_r_squared(name):
    """h(r) = f''(r) r^2, f'' by differentiating f twice."""
    r = R.clone().requires_grad_()
    (first,) = torch.autograd.grad(load_divergence(name).f(r).sum(), r, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), r)
    torch.testing.assert_close(weight(name), second * R**2, rtol=1e-7, atol=1e-10)


@pytest.mark.parametrize("name", NAMES)
def test_a_ratio_is_asked_for_where_the_weight_depends_on_it(name):
    """A critic costs true pictures and time, and a constant weight has no use for it."""
    is_constant = weight(name).std() < 1e-12
    assert load_divergence(name).needs_ratio != bool(is_constant)


@pytest.mark.parametrize(
    ("left", "right"),
    [
        (("js", "softened-reverse-kl"), ("reverse-kl",)),  # r/(r+1) + 1/(r+1) = 1
        (("reverse-kl", "forward-kl"), ("jeffreys",)),  # 1 + r
        (("alpha:0",), ("reverse-kl",)),
        (("alpha:1",), ("forward-kl",)),
        (("squared-hellinger",) * 4, ("alpha:0.5",)),  # 4 sqrt(r)/4
        (("alpha:2", "alpha:2"), ("pearson",)),
        (("alpha:-1", "alpha:-1"), ("neyman",)),
        (("bregman-kl",), ("reverse-kl",)),
        (("bregman-lr",), ("js",)),
        (("bregman-lsif", "bregman-lsif"), ("neyman",)),  # 1/r twice
        (("bregman-sba:0.7",), ("alpha:-0.7",)),
    ],
)
def test_sums_of_divergences(left, right):
    """h is linear in f, so sums of generators are sums of weights."""
    torch.testing.assert_close(sum(weight(name) for name in left), sum(weight(name) for name in right))


@pytest.mark.parametrize(("limit", "near"), [(0.0, 1e-9), (0.0, -1e-9), (1.0, 1 + 1e-9), (1.0, 1 - 1e-9)])
def test_the_alpha_family_is_continuous_at_its_limits(limit, near):
    """f_a differs from its limit by O(a - limit) (log r)^2 r <= 1e-9 * 5e4; cancelling terms would err by 1e-7 r."""
    torch.testing.assert_close(power(near)(R), power(limit)(R), rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("name", NAMES)
def test_weights_of_extreme_ratios_do_not_overflow(name):
    """r = exp(+-300) leaves float32, log h does not."""
    log_weight = load_divergence(name).log_weight(torch.tensor([-300.0, 0.0, 300.0]))
    assert log_weight.isfinite().all()


@pytest.mark.parametrize("name", NAMES)
def test_the_gradient_is_that_of_the_true_divergence(name):
    """h(r) times the reverse-KL gradient, against central differences of D_f(p_t || q_t) = E_q[f(p_t / q_t)].

    Teacher N(0.3, 1.1), student x = b + s z, both diffused with a = 0.8, d = 0.6. All expectations are over Gaussians
    and are taken by quadrature: over x_t ~ q_t for the divergence, over (z, noise) for the gradient. p and q are near
    enough for every integral to exist, Neyman's q^2 / p and Pearson's p^2 / q too. E_q[r] = 1 checks the ratio.
    """
    divergence, a, d = load_divergence(name), 0.8, 0.6
    p_mean, p_variance = a * 0.3, a**2 * 1.1 + d**2
    nodes, weights = gauss_hermite()

    def log_ratio(x_t, b, s):
        return log_normal(x_t, p_mean, p_variance) - log_normal(x_t, a * b, a**2 * s**2 + d**2)

    def true(b, s):
        x_t = a * b + math.sqrt(a**2 * s**2 + d**2) * nodes
        return (weights * divergence.f(log_ratio(x_t, b, s).exp())).sum().item()

    b, s, step = 0.1, 0.9, 1e-4
    z, noise = torch.meshgrid(nodes, nodes, indexing="ij")
    joint = weights[:, None] * weights
    x0 = b + s * z
    x_t = a * x0 + d * noise
    q_variance = a**2 * s**2 + d**2
    fake_x0 = b + a * s**2 / q_variance * (x_t - a * b)
    teacher_x0 = 0.3 + a * 1.1 / p_variance * (x_t - a * 0.3)
    alpha, sigma = torch.full((x0.numel(),), a), torch.full((x0.numel(),), d)
    columns = [v.reshape(-1, 1, 1, 1) for v in (x0, teacher_x0, fake_x0)]
    gradient = Matching("kl").gradient(*columns, alpha.double(), sigma.double()).reshape(x0.shape)
    log_r = log_ratio(x_t, b, s)
    assert (joint * log_r.exp()).sum().item() == pytest.approx(1, abs=1e-12)
    force = joint * divergence.log_weight(log_r).exp() * gradient
    assert force.sum().item() == pytest.approx((true(b + step, s) - true(b - step, s)) / (2 * step), rel=1e-5)
    assert (force * z).sum().item() == pytest.approx((true(b, s + step) - true(b, s - step)) / (2 * step), rel=1e-5)


@pytest.mark.parametrize(
    ("typed", "name"),
    [
        ("js", "js"),
        ("Jensen_Shannon", "js"),
        ("rkl", "reverse-kl"),
        ("FKL", "forward-kl"),
        ("hellinger", "squared-hellinger"),
        (" softened-rkl ", "softened-reverse-kl"),
        ("alpha: 0.50", "alpha:0.5"),
    ],
)
def test_names_as_they_are_typed(typed, name):
    assert load_divergence(typed).name == name


@pytest.mark.parametrize(
    ("typed", "hint"),
    [
        ("revers-kl", "did you mean 'reverse-kl'"),
        ("jefreys", "did you mean 'jeffreys'"),
        ("kl", "forward-kl.*reverse-kl|reverse-kl.*forward-kl"),  # either could be meant
        ("js:2", "'js'"),
        ("wasserstein-1e9", "there are reverse-kl.*, sim, sid$"),
        ("simm", "'sim'"),
        ("alpha", "alpha:0.5"),
        ("alpha:nan", "alpha:0.5"),
        ("alpha:half", "alpha:0.5"),
    ],
)
def test_unknown_names_are_told_what_to_type(typed, hint):
    with pytest.raises(JdmError) as raised:
        load_divergence(typed, ("sim", "sid"))
    assert typed in str(raised.value)
    assert re.search(hint, raised.value.hint)
