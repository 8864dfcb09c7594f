"""What a student is measured by while it trains, besides its controls: distance to true pictures, and rewards."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from jdmctl.build import build_reward
from jdmctl.errors import BadInputError
from jdmctl.evaluation.manifold import NEIGHBOURS
from jdmctl.recipe import Recipe
from jdmctl.rewards.base import Reward
from jdmctl.tinyworld.judge import Judge
from jdmctl.tinyworld.world import is_of_world, samples, world_folder
from jdmctl.training.approval import Approval
from jdmctl.training.batches import Batches, Samples
from jdmctl.training.energies import DifferentiableReward
from jdmctl.training.observer import Validation
from jdmctl.training.quality import Quality
from jdmctl.training.watch import Watch
from jdmctl.types import Batch

_BATCH_SIZE = 32
_REFERENCE = 1000
_GOALS = 6


def validation_batches(recipe: Recipe, batches: Batches, val: Samples) -> list[Batch]:
    """All validation samples once, whole prompts, the same noise each time."""
    source = replace(batches, samples=val, prompt_dropout=0.0, buckets=None)
    number = min(recipe.data.num_validation_samples, len(val))
    starts = range(0, number, _BATCH_SIZE)
    return [source.take("validation", range(at, min(at + _BATCH_SIZE, number))) for at in starts]


def build_quality(
    recipe: Recipe, family: Any, batches: Batches, val: Samples, encode: Callable[[Tensor], Tensor]
) -> Quality:
    """On the embedded world in its classifier's features; elsewhere in average-pooled latents, which `encode` makes.

    The reference are true pictures: the embedded world's, or those of the validation samples; where there are none,
    what the teacher draws for their prompts.

    Raises:
        BadInputError: there are too few validation samples to compare.
    """
    number = min(recipe.data.num_validation_samples, len(val))
    if number <= NEIGHBOURS:
        raise BadInputError(
            f"validation compares what is drawn for {number} samples, and needs {NEIGHBOURS + 1}",
            hint=f"give {4 * (NEIGHBOURS + 1)} samples or more, of which a quarter is held out, and "
            f"--set data.num_validation_samples={NEIGHBOURS + 1} or more",
        )

    @torch.no_grad()
    def pooled(images: Tensor) -> Tensor:
        device = next(family.teacher.parameters()).device
        latents = [encode(part.to(device)) for part in images.split(_BATCH_SIZE)]
        return adaptive_avg_pool2d(torch.cat(latents), 4).flatten(1).double().cpu()

    def by_teacher(texts: list[str]) -> Tensor:
        generator = torch.Generator().manual_seed(recipe.seed)
        noise = torch.randn((len(texts), *family.latent_shape), generator=generator)
        prompt, scale = family.encode_prompt(texts), recipe.objective.guidance_scale
        latents = family.multistep(noise.to(batches.device), prompt, recipe.training.teacher_steps, scale)
        return family.codec.decode(latents).clamp(0, 1).cpu()

    texts = [val.text(index) for index in range(number)]
    features = pooled
    if judge := _judge(recipe):
        features, true = judge.features, samples("reference").image(slice(0, _REFERENCE))
    else:
        images, _ = val.take(range(number))
        parts = [texts[first : first + _BATCH_SIZE] for first in range(0, number, _BATCH_SIZE)]
        true = torch.cat([by_teacher(part) for part in parts]) if images is None else images
    shown = validation_batches(recipe, batches, val)
    return Quality(
        student=family.student,
        codec=family.codec,
        latent_shape=family.latent_shape,
        batches=shown,
        features=lambda images: features(images.cpu()),
        reference=features(true),
        goals=by_teacher(list(shown[0].texts[:_GOALS])),
    )


def build_judging_rewards(recipe: Recipe) -> dict[str, Reward]:
    """What finished pictures are asked: the rewards of a recipe, and those that it holds out."""
    trained = {f"reward {given.called}": build_reward(given, "cpu") for given in recipe.rewards}
    return trained | {f"held-out reward {given.called}": build_reward(given, "cpu") for given in recipe.heldout_rewards}


def build_approval(
    recipe: Recipe,
    family: Any,
    adherence: Validation | None,
    rewards: Mapping[str, DifferentiableReward],
    batches: Batches,
    val: Samples,
    encode: Callable[[Tensor], Tensor],
) -> Approval:
    """Of a student with rewards; `family` still draws as it did before training."""
    quality = build_quality(recipe, family, batches, val, encode)
    device = batches.device
    heldout = {f"{given.called} (held out)": build_reward(given, device) for given in recipe.heldout_rewards}
    judge, accuracy = _judge(recipe), None
    if judge and recipe.data.source == "tiny":
        number = sum(len(batch) for batch in quality.batches)
        order = [replace(batches, samples=val, buckets=None).index("validation", i) for i in range(number)]
        stated = samples("val", number).stated[order, 0]
        accuracy = functools.partial(_mean_accuracy, judge, stated)
    return Approval(
        quality=quality,
        rewards={**rewards, **heldout},
        watch=Watch(tuple(rewards), tuple(heldout)),
        before=quality.draw(quality.batches[0]).cpu(),
        accuracy=accuracy,
        adherence=adherence,
    )


def _judge(recipe: Recipe) -> Judge | None:
    has_judge = is_of_world(recipe.model.teacher) and (world_folder() / "classifier").exists()
    return Judge.load(world_folder()) if has_judge else None


def _mean_accuracy(judge: Judge, stated: Tensor, images: Tensor) -> float:
    by_attribute = judge.accuracy(images.cpu(), stated)
    return sum(by_attribute.values()) / len(by_attribute)
