"""The density ratio r = p_t / q_t of teacher and student: learning it, keeping it sane, and how it fares."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import softplus

SumOverProcesses = Callable[[Tensor], Tensor]  # any shape -> the same, summed over processes
LogMean = Callable[[str, Tensor], Tensor]  # of what, its logarithms [B] -> log of its mean over the batch, a scalar


def alone(values: Tensor) -> Tensor:
    """The sum over processes where there is one."""
    return values


def critic_loss(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """E_q[softplus(D)] + E_p[softplus(-D)], a scalar from logits [B] each; least at D = log p / q.

    Pointwise in x: q sigmoid(D) = p sigmoid(-D) where the derivative vanishes, so exp(D) = p / q
    (Goodfellow et al. 2014, arXiv:1406.2661).
    """
    return softplus(fake_logits).mean() + softplus(-real_logits).mean()


def gan_loss(fake_logits: Tensor) -> Tensor:
    """softplus(-D), one number a sample [B]: the student's non-saturating loss (ibid.)."""
    return softplus(-fake_logits)


def approximate_r1(real_logits: Tensor, jittered_logits: Tensor) -> Tensor:
    """Mean (D(x) - D(x + small noise))^2, a scalar: punishes steepness at real samples without a second derivative.

    (Lin et al. 2025, arXiv:2501.08316).
    """
    return (real_logits - jittered_logits).square().mean()


def log_mean_exp(values: Tensor, sum_over_processes: SumOverProcesses = alone) -> Tensor:
    """log(mean(exp(values))) of all values [B], the same number B in every process; a scalar."""
    peak = values.max()
    own = peak + (values - peak).exp().mean().log()
    total, count = sum_over_processes(torch.stack([own, torch.ones_like(own)]))
    middle = total / count
    return middle + (sum_over_processes((own - middle).exp()) / count).log()


def log_mean_alone(of: str, values: Tensor) -> Tensor:
    """log(mean(exp(values))) of all values [B], a scalar, where they are the whole batch."""
    return log_mean_exp(values)


def joint_log_ratio(log_fidelity: Tensor, log_likelihood: Tensor, log_mean: LogMean = log_mean_alone) -> Tensor:
    """log r of teacher times controls against the student, [B]: log p/q + sum_k lambda_k log p_k(c_k | x) - log Z.

    Z makes E_q[r] = 1 over the batch, as it must be; so likelihoods need no constants. One Z for all conditions
    leaves a factor to each condition c: r is k(c) times too large. E_q[f(k r)] is itself an f-divergence in r, so
    every condition still has its right optimum and only its pull varies.
    """
    log_ratio = log_fidelity + log_likelihood
    return log_ratio - log_mean("joint ratio", log_ratio)


def normalised_weights(log_weight: Tensor, log_mean: LogMean = log_mean_alone) -> Tensor:
    """h [B] with mean 1 over the batch, from log h: the size of a step does not depend on the divergence."""
    return (log_weight - log_mean("weight", log_weight)).exp()


@dataclass
class RatioNormaliser:
    """Makes a learned ratio obey E_q[r] = 1 at each noise level, as the true one does.

    log r is clamped, and divided by the moving average of r in its bin of t; this takes away the constant that an
    imperfect critic errs by (Xu et al. 2025, f-distill, arXiv:2502.15681; the numbers are those of FastGen's code).

    All means are of a whole batch. Where it comes in several pieces, each piece's are those of the piece and as many
    before it as make up a batch: one sample, which is its own mean, would else always have the ratio 1.
    """

    bins: int = 10  # equal slices of t in [0, 1]
    decay: float = 0.0  # share of the old mean that is kept; 0: this batch alone
    low: float = 0.1  # r is kept in [low, high] ...
    high: float = 20.0
    max_logit: float = 10.0  # ... and the critic's logit in [-max_logit, max_logit], before likelihoods are added
    sum_over_processes: SumOverProcesses = alone
    pieces: int = 1  # that a batch comes in, one a call
    means: Tensor = field(init=False)  # [bins] after the last whole batch, nan where no sample was seen yet

    def __post_init__(self) -> None:
        self.means = torch.full((self.bins,), math.nan)
        self._number = 0  # of the next piece within its batch
        self._before: dict[str, deque[Tensor]] = {}  # statistic -> of the pieces before, as many as a batch lacks

    def __call__(self, log_ratio: Tensor, t: Tensor, log_likelihood: Tensor | None = None) -> Tensor:
        """log r normalised [B], of logits [B] at times t [B]; with likelihoods [B], of the joint ratio."""
        log_ratio = log_ratio.clamp(-self.max_logit, self.max_logit)
        if log_likelihood is not None:
            log_ratio = joint_log_ratio(log_ratio, log_likelihood, self.log_mean)
        log_ratio = log_ratio.clamp(math.log(self.low), math.log(self.high))
        where = time_bins(t, self.bins)
        ones = torch.ones_like(log_ratio)
        sums = torch.zeros(2, self.bins, dtype=log_ratio.dtype, device=log_ratio.device)
        sums = self.sum_over_processes(sums.index_add(1, where, torch.stack([log_ratio.exp(), ones])))
        sums = self._of_batch("bins", sums).sum(0)
        means = self._moved_means(sums[0] / sums[1])
        self._number = (self._number + 1) % self.pieces
        if self._number == 0:
            self.means = means
        return log_ratio - means[where].log().to(log_ratio.dtype)

    def log_mean(self, of: str, values: Tensor) -> Tensor:
        """log(mean(exp(values))) over the batch, of the values [b] of a piece of it; a scalar. Once a piece."""
        return log_mean_exp(self._of_batch(of, log_mean_exp(values, self.sum_over_processes)))

    def _of_batch(self, of: str, piece: Tensor) -> Tensor:
        """A piece's statistic, the same in all processes, after those of the pieces that make up a batch with it."""
        before = self._before.setdefault(of, deque(maxlen=self.pieces - 1))
        batch = torch.stack([*(one.to(piece) for one in before), piece])
        before.append(piece)
        return batch

    def _moved_means(self, new: Tensor) -> Tensor:
        """Towards this batch's means; a bin without samples (nan) stays as it is."""
        old = self.means.to(new)
        moved = torch.where(old.isnan(), new, self.decay * old + (1 - self.decay) * new)
        return torch.where(new.isnan(), old, moved)

    def state_dict(self) -> dict[str, Any]:
        """As it is between two batches."""
        pieces = {of: [piece.tolist() for piece in before] for of, before in self._before.items() if before}
        return {"means": [None if math.isnan(mean) else mean for mean in self.means.tolist()], "pieces": pieces}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        values = [math.nan if mean is None else mean for mean in state["means"]]
        self.means = torch.tensor(values, dtype=torch.float64)
        self._number = 0
        self._before = {
            of: deque((torch.tensor(piece, dtype=torch.float64) for piece in pieces), maxlen=self.pieces - 1)
            for of, pieces in state.get("pieces", {}).items()  # a run of an older version has none
        }


def time_bins(t: Tensor, bins: int) -> Tensor:
    """Which of `bins` equal slices of [0, 1] each t [B] lies in, long [B]."""
    return (t * bins).long().clamp(0, bins - 1)


def time_histogram(values: Tensor, t: Tensor, bins: int = 10) -> tuple[Tensor, Tensor]:
    """Number of samples and mean of `values` [B] in each slice of t: [bins] twice, mean nan where there are none."""
    where = time_bins(t, bins)
    counts = torch.bincount(where, minlength=bins)
    sums = torch.zeros(bins, dtype=values.dtype, device=values.device).index_add(0, where, values)
    return counts, sums / counts


def critic_accuracy(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """Share of each pair [B] on its right side of 0, a logit of 0 being half right.

    1/2 on average where there is nothing to learn, 1 is too easy.
    """
    return (2 + real_logits.sign() - fake_logits.sign()) / 4


def weight_diagnostics(log_weight: Tensor, log_ratio: Tensor, log_mean: LogMean = log_mean_alone) -> dict[str, Tensor]:
    """How unequal the weights of a batch are; from log h [B] and the log r [B] that came from the critic.

    h_min, h_max    of h over its mean, which is 1
    h_log_mean      log of that mean
    h_ess           effective share of the samples, (sum h)^2 / (B sum h^2): 1 if all count alike, 1 / B if one does
    ratio_log_mean  log E_q[r] before it is normalised: 0 for an exact critic
    """
    mean = log_mean("told weight", log_weight)
    return {
        "h_min": (log_weight.min() - mean).exp(),
        "h_max": (log_weight.max() - mean).exp(),
        "h_log_mean": mean,
        "h_ess": (2 * mean - log_mean("squared weight", 2 * log_weight)).exp(),
        "ratio_log_mean": log_mean("critic's ratio", log_ratio),
    }


def is_saturated(diagnostics: Mapping[str, float]) -> bool:
    """Whether the ratio has stopped to say anything: the critic is always right, or few samples carry all weight."""
    return diagnostics.get("critic_accuracy", 0.5) > 0.95 or diagnostics.get("h_ess", 1.0) < 0.1


def saturation_advice(diagnostics: Mapping[str, float]) -> str:
    """One sentence on what to do about a saturated ratio; empty if it is not."""
    if not is_saturated(diagnostics):
        return ""
    if diagnostics.get("critic_accuracy", 0.5) > 0.95:
        return (
            f"the critic tells student and teacher apart {diagnostics['critic_accuracy']:.0%} of the time, so its "
            "ratio says little: train it less, look at noisier times, or begin with reverse-kl, which needs none"
        )
    return (
        f"{diagnostics['h_ess']:.0%} of the samples carry all the weight: "
        "use js or softened-reverse-kl, whose weights are bounded, or clamp the ratio harder"
    )
