"""The learned ratio: that it is the ratio, and what is done to it."""

import json
import math

import pytest
import torch
from torch import nn
from torch.distributions import Normal

from jdmctl.families.heads import RatioCritic
from jdmctl.objectives.divergence import load_divergence
from jdmctl.objectives.ratio import (
    RatioNormaliser,
    approximate_r1,
    critic_accuracy,
    critic_loss,
    gan_loss,
    is_saturated,
    joint_log_ratio,
    log_mean_exp,
    normalised_weights,
    saturation_advice,
    time_histogram,
    weight_diagnostics,
)
from jdmctl.training.steps.weighting import sample_weights


def test_the_critics_optimum_is_the_log_ratio():
    """q(x) softplus(D) + p(x) softplus(-D) has derivative q sigmoid(D) - p sigmoid(-D): 0 at D = log p / q.

    Three points with q = (0.5, 0.25, 0.25) and p = (0.25, 0.25, 0.5), as samples in these shares.
    """
    logits = torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64).log().requires_grad_()
    fake, real = logits[[0, 0, 1, 2]], logits[[0, 1, 2, 2]]
    (gradient,) = torch.autograd.grad(critic_loss(real, fake), logits)
    assert gradient.abs().max() < 1e-15


class Glass:
    """A denoiser whose only feature is what it is shown."""

    feature_channels = (1,)
    summary_width = 1

    def features(self, x_t, t, prompt, controls=None):
        return [x_t]

    def summary(self, prompt):
        return prompt


def test_a_critic_learns_the_log_ratio_of_two_gaussians():
    """p = N(1, 0.8^2), q = N(0, 1): the RMSE over x ~ q is at most 5% of log p/q's own standard deviation there.

    Batches are stratified, one draw from each of `size` equally likely slices, which takes most noise away.
    """
    torch.manual_seed(0)
    p, q = Normal(1.0, 0.8), Normal(0.0, 1.0)
    critic = RatioCritic(Glass(), width=32)
    optimizer = torch.optim.Adam(critic.parameters(), lr=1e-2)
    steps, size = 600, 256
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)

    def logits(x):
        return critic(x.reshape(-1, 1, 1, 1), torch.full((len(x),), 0.5), torch.zeros(len(x), 1))

    def draw(normal):
        return normal.icdf((torch.arange(size) + torch.rand(size).clamp(0.01, 0.99)) / size)

    for _ in range(steps):
        optimizer.zero_grad()
        critic_loss(logits(draw(p)), logits(draw(q))).backward()
        optimizer.step()
        schedule.step()
    x = q.sample((4096,))
    true = p.log_prob(x) - q.log_prob(x)
    error = (logits(x).detach() - true).square().mean().sqrt()
    assert error <= 0.05 * true.std()


def test_the_gan_loss_is_softplus_of_minus_the_logit():
    """log(1 + e^0) = log 2, and log(1 + e^-l) = -l for l far below 0."""
    torch.testing.assert_close(gan_loss(torch.tensor([0.0, -50.0])), torch.tensor([math.log(2), 50.0]))


def test_approximate_r1_is_the_squared_slope():
    """For D(x) = 3 x and noise of deviation 0.01: mean (0.03 n)^2 = 9e-4 mean n^2."""
    x, noise = torch.randn(2, 100, generator=torch.Generator().manual_seed(0))
    assert approximate_r1(3 * x, 3 * (x + 0.01 * noise)).item() == pytest.approx(
        9e-4 * noise.square().mean().item(), rel=1e-3
    )


def test_log_mean_exp_over_two_processes():
    """Two processes with (0, log 3) and (log 5, log 7): the mean over all four is 16 / 4."""
    parts = [torch.tensor([1.0, 3.0]).log(), torch.tensor([5.0, 7.0]).log()]
    own = [log_mean_exp(part) for part in parts]
    middle = sum(own) / 2

    def together(values: torch.Tensor) -> torch.Tensor:
        """What the first process hears: first its mean and count, then its share about the middle."""
        if values.shape == (2,):
            return torch.stack([sum(own), torch.tensor(2.0)])
        return sum((value - middle).exp() for value in own)

    assert log_mean_exp(parts[0], together).exp().item() == pytest.approx(4, rel=1e-6)
    assert log_mean_exp(torch.tensor([500.0, 500.0])).item() == 500, "must not overflow"


def test_the_joint_ratio_has_mean_one():
    """r = r_fidelity p(c | x)^lambda / Z: likelihoods (0, -1) on ratios (2, 2e): both 2 / Z, and Z = 2."""
    log_ratio = joint_log_ratio(torch.tensor([2.0, 2 * math.e]).log(), torch.tensor([0.0, -1.0]))
    torch.testing.assert_close(log_ratio, torch.zeros(2))
    values = torch.randn(2, 50, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert joint_log_ratio(values[0], 300 * values[1]).exp().mean().item() == pytest.approx(1, rel=1e-5)


def test_weights_have_mean_one_and_a_constant_one_is_exactly_one():
    torch.testing.assert_close(normalised_weights(torch.tensor([1.0, 3.0]).log()), torch.tensor([0.5, 1.5]))
    assert torch.equal(normalised_weights(torch.zeros(7)), torch.ones(7))


def test_the_normaliser_divides_by_the_mean_of_each_time_bin():
    """Two bins: ratios 1, 3 (mean 2) and 4, 4 (mean 4) become 1/2, 3/2 and 1, 1."""
    normaliser = RatioNormaliser(bins=2)
    log_ratio, t = torch.tensor([1.0, 4.0, 3.0, 4.0]).log(), torch.tensor([0.1, 0.6, 0.4, 1.0])
    torch.testing.assert_close(normaliser(log_ratio, t).exp(), torch.tensor([0.5, 1.0, 1.5, 1.0]))
    assert normaliser.means.tolist() == pytest.approx([2, 4])


def test_the_exact_ratio_needs_no_normaliser():
    """E_q[p / q] = 1: over 10^5 samples the mean errs by sqrt(Var_q r / n), well below 0.005."""
    p, q = Normal(0.2, 0.9), Normal(0.0, 1.0)
    torch.manual_seed(0)
    x = q.sample((100_000,))
    log_ratio = p.log_prob(x) - q.log_prob(x)
    normaliser = RatioNormaliser(bins=1, low=1e-4, high=1e4)
    torch.testing.assert_close(normaliser(log_ratio, torch.full_like(x, 0.3)), log_ratio, rtol=0, atol=0.005)


def test_the_mean_moves_and_empty_bins_stay():
    """decay 3/4 from 2 towards 6: 2 * 3/4 + 6 / 4 = 3; the other bin sees nothing in either batch but the first."""
    normaliser = RatioNormaliser(bins=2, decay=0.75)
    normaliser(torch.tensor([2.0, 5.0]).log(), torch.tensor([0.2, 0.7]))
    normalised = normaliser(torch.tensor([6.0]).log(), torch.tensor([0.2]))
    assert normaliser.means.tolist() == pytest.approx([3, 5])
    assert normalised.exp().item() == pytest.approx(6 / 3)


def test_clamps_come_before_the_mean():
    """Logits of +-100 become ratios of 20 and 1/10, mean 10.05."""
    normaliser = RatioNormaliser(bins=1)
    ratio = normaliser(torch.tensor([100.0, -100.0]), torch.tensor([0.5, 0.5])).exp()
    torch.testing.assert_close(ratio, torch.tensor([20.0, 0.1]) / 10.05)


def test_likelihoods_need_no_constants():
    """-1000 + (0, log 2) beside equal logits: ratios 1 : 2, mean 1, whatever the constant and whatever the clamps."""
    ratio = RatioNormaliser(bins=1)(torch.zeros(2), torch.zeros(2), torch.tensor([0.0, math.log(2)]) - 1000).exp()
    torch.testing.assert_close(ratio, torch.tensor([2 / 3, 4 / 3]), rtol=1e-4, atol=0)


def test_the_mean_is_over_processes():
    """Another process's sum 9 over 3 samples beside our 1 over 1: the mean is 10 / 4."""
    normaliser = RatioNormaliser(bins=1, sum_over_processes=lambda v: v + torch.tensor([[9.0], [3.0]]))
    assert normaliser(torch.zeros(1), torch.zeros(1)).exp().item() == pytest.approx(0.4)


def test_the_normaliser_survives_json():
    first = RatioNormaliser(bins=3, decay=0.9)
    first(torch.tensor([0.3, 1.1]), torch.tensor([0.1, 0.9]))
    second = RatioNormaliser(bins=3, decay=0.9)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    log_ratio, t = torch.tensor([0.2, -0.4, 0.6]), torch.tensor([0.1, 0.5, 0.8])
    assert torch.equal(first(log_ratio, t), second(log_ratio, t))
    assert first.state_dict() == second.state_dict()


def test_a_batch_in_pieces_of_one_sample_is_weighed_like_the_whole():
    """Forward KL, h = r. While batches repeat, means over the latest eight samples are those of the batch.

    A sample alone is its own mean: taken piece by piece every h would be 1. The first batch is so at its beginning.
    """
    generator = torch.Generator().manual_seed(0)
    logits, likelihood = torch.randn(2, 8, generator=generator)
    t = torch.rand(8, generator=generator)
    whole, cut = RatioNormaliser(bins=2), RatioNormaliser(bins=2, pieces=8)
    forward = load_divergence("forward-kl")
    for _ in range(4):
        expected, told = sample_weights(forward, whole, logits, [likelihood], t)
        found = [sample_weights(forward, cut, logits[[i]], [likelihood[[i]]], t[[i]]) for i in range(8)]
    torch.testing.assert_close(torch.cat([weight for weight, _ in found]), expected)
    assert found[-1][1]["h_ess"].item() == pytest.approx(told["h_ess"].item()) and told["h_ess"] < 0.9


def test_pieces_over_two_processes_are_weighed_like_pieces_of_one():
    """Two processes that see the same: every sum is doubled and no mean is changed."""
    one, two = RatioNormaliser(pieces=3), RatioNormaliser(pieces=3, sum_over_processes=lambda values: 2 * values)
    js, t = load_divergence("js"), torch.tensor([0.1, 0.5])
    for piece in torch.randn(7, 2, generator=torch.Generator().manual_seed(2)):
        found = [sample_weights(js, normaliser, piece, [piece.flip(0)], t) for normaliser in (one, two)]
        torch.testing.assert_close(*found, equal_nan=True)


def test_the_mean_moves_once_a_batch():
    """Whatever the pieces: after each batch it is what it would be without them."""
    whole, cut = RatioNormaliser(bins=2, decay=0.9), RatioNormaliser(bins=2, decay=0.9, pieces=4)
    for batch in torch.randn(3, 2, 8, generator=torch.Generator().manual_seed(0)):
        log_ratio, t = batch[0], batch[1].sigmoid()
        whole(log_ratio, t)
        for i in range(0, 8, 2):
            cut(log_ratio[i : i + 2], t[i : i + 2])
        torch.testing.assert_close(cut.means, whole.means)


def test_a_batch_in_pieces_goes_on_after_json():
    first, again = (RatioNormaliser(bins=3, decay=0.9, pieces=3) for _ in range(2))
    values = torch.randn(12, 2, generator=torch.Generator().manual_seed(1))
    t, js = torch.tensor([0.1, 0.9]), load_divergence("js")
    for piece in values[:6]:
        sample_weights(js, first, piece, [piece.flip(0)], t)
    again.load_state_dict(json.loads(json.dumps(first.state_dict())))
    for piece in values[6:]:
        weights = [sample_weights(js, one, piece, [piece.flip(0)], t)[0] for one in (first, again)]
        assert torch.equal(*weights)
    again.load_state_dict({"means": [1.0, None, 2.0]})  # as older versions kept it


def test_diagnostics():
    """h = (1, 3): over its mean 2 (1/2, 3/2), ess = 4^2 / (2 * 10) = 0.8; E[r] = (2 + 4) / 2."""
    found = weight_diagnostics(torch.tensor([1.0, 3.0]).log(), torch.tensor([2.0, 4.0]).log())
    expected = {"h_min": 0.5, "h_max": 1.5, "h_log_mean": math.log(2), "h_ess": 0.8, "ratio_log_mean": math.log(3)}
    assert {name: value.item() for name, value in found.items()} == pytest.approx(expected, rel=1e-5)
    assert critic_accuracy(torch.tensor([1.0, -1.0]), torch.tensor([-2.0, -0.1])).tolist() == [1.0, 0.5]
    assert critic_accuracy(torch.zeros(2), torch.tensor([0.0, 1.0])).tolist() == [0.5, 0.25]


def test_time_histogram():
    counts, means = time_histogram(torch.tensor([1.0, 2.0, 6.0]), torch.tensor([0.1, 0.9, 1.0]), bins=3)
    assert counts.tolist() == [1, 0, 2]
    assert means[0] == 1 and means[1].isnan() and means[2] == 4


@pytest.mark.parametrize(
    ("diagnostics", "word"),
    [
        ({"critic_accuracy": 0.99, "h_ess": 0.9}, "99%"),
        ({"critic_accuracy": 0.7, "h_ess": 0.02}, "2% of the samples"),
        ({"critic_accuracy": 0.7, "h_ess": 0.6}, ""),
        ({}, ""),
    ],
)
def test_a_saturated_ratio_comes_with_advice(diagnostics, word):
    assert is_saturated(diagnostics) == bool(word)
    assert word in saturation_advice(diagnostics)
    assert bool(saturation_advice(diagnostics)) == bool(word)


def test_a_new_critic_says_nothing_and_owns_only_its_heads():
    """The last layer is 0: r = 1 everywhere, so that any divergence begins as reverse KL."""
    lender = Glass()
    lender.weights = nn.Linear(2, 2)
    critic = RatioCritic(lender)
    logits = critic(torch.randn(3, 1, 4, 4), torch.rand(3), torch.randn(3, 1))
    assert torch.equal(logits, torch.zeros(3))
    assert not {id(p) for p in lender.weights.parameters()} & {id(p) for p in critic.parameters()}
