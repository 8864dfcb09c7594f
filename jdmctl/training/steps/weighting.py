"""How much each sample of a student's batch counts under an f-divergence, and how the critic that says so is taught."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from jdmctl.objectives.divergence import Divergence
from jdmctl.objectives.ratio import (
    RatioNormaliser,
    approximate_r1,
    critic_accuracy,
    critic_loss,
    log_mean_alone,
    normalised_weights,
    time_histogram,
    weight_diagnostics,
)
from jdmctl.types import Batch, Codec, Controls, Critic, Losses

R1_NOISE = 0.01  # standard deviation, in units of the latent


@torch.no_grad()
def sample_weights(
    divergence: Divergence,
    normaliser: RatioNormaliser | None,
    logits: Tensor,
    log_likelihoods: Sequence[Tensor],
    t: Tensor,
) -> tuple[Tensor, dict[str, Tensor]]:
    """h(r) of each sample over the mean of the batch, [B], and its diagnostics; of a piece where a batch is cut.

    `logits` are log p_t / q_t [B] at times t [B]; `log_likelihoods`, [B] each, are what controls add. Without a
    normaliser the ratio is taken as it is, as an exact one may be.
    """
    log_likelihood = torch.stack(list(log_likelihoods)).sum(0) if log_likelihoods else None
    if normaliser:
        log_ratio = normaliser(logits, t, log_likelihood)
    else:
        log_ratio = logits if log_likelihood is None else logits + log_likelihood
    log_weight = divergence.log_weight(log_ratio)
    log_mean = normaliser.log_mean if normaliser else log_mean_alone
    weights = normalised_weights(log_weight, log_mean)
    return weights, weight_diagnostics(log_weight, logits, log_mean) | {"h_by_time": time_histogram(weights, t)[1]}


def teach(
    critic: Critic,
    real: tuple[Tensor, Controls | None],
    fake: tuple[Tensor, Controls | None],
    t: Tensor,
    batch: Batch,
    r1_weight: float,
) -> Losses:
    """The logistic loss of noised samples [B, C, h, w], each side with the conditions that the critic sees."""
    real_logits, fake_logits = (critic(x_t, t, batch.prompt, controls) for x_t, controls in (real, fake))
    total = critic_loss(real_logits, fake_logits)
    accuracy = critic_accuracy(real_logits.detach(), fake_logits.detach())
    logs = {
        "critic_loss": total.detach(),
        "critic_accuracy": accuracy.mean(),
        "critic_accuracy_by_time": time_histogram(accuracy, t)[1],
    }
    if r1_weight:
        x_t, controls = real
        jitter = R1_NOISE * batch.draws.normal("critic_r1_noise", tuple(x_t.shape[1:])).to(x_t)
        steepness = approximate_r1(real_logits, critic(x_t + jitter, t, batch.prompt, controls))
        total = total + r1_weight * steepness
        logs["critic_r1"] = steepness.detach()
    return Losses(total, logs)


def jittered(batch: Batch, spread: float) -> Batch:
    """The batch with requests as p(c | x) draws them, around what pictures show: Gaussian noise of that spread."""
    conditions = {
        name: condition + spread * batch.draws.normal(f"request_noise {name}", tuple(condition.shape[1:])).to(condition)
        for name, condition in batch.conditions.items()
    }
    return replace(batch, conditions=conditions)


@torch.no_grad()
def joint_samples(batch: Batch, codec: Codec) -> tuple[Tensor, Controls]:
    """Clean latents of pictures and the conditions that were made from these very pictures: samples of p(x, c).

    Raises:
        ValueError: the batch has no pictures.
    """
    if batch.images is None:
        raise ValueError("a critic of the joint needs the pictures that conditions were made from")
    return codec.encode(batch.images), batch.conditions


@torch.no_grad()
def real_samples(batch: Batch, codec: Codec, controls: Controls | None) -> tuple[Tensor, Controls | None]:
    """Clean latents of the teacher's distribution, with conditions that know nothing of them.

    The ratio p(x) / q(x | c) wants a picture and a condition that are independent. The teacher's own samples were
    drawn blind to the batch's conditions and keep them; pictures are what conditions were made from, so each gets its
    neighbour's. That also parts a condition from its prompt: the ratio is then off by p(c) / p(c | prompt), a factor
    to each request in which x does not occur.

    Raises:
        ValueError: the batch has neither, or a single picture, which has no neighbour.
    """
    if batch.latents is not None:
        return batch.latents, controls
    if batch.images is None:
        raise ValueError("a critic needs real samples: pictures, or latents of the teacher")
    if controls:
        if len(batch) == 1:
            raise ValueError("a critic that sees conditions needs batches of two pictures or more")
        controls = {name: condition.roll(1, 0) for name, condition in controls.items()}
    return codec.encode(batch.images), controls
