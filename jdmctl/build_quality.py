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
from jdmctl.training.device import that_fit
from jdmctl.training.energies import DifferentiableReward
from jdmctl.training.observer import Validation
from jdmctl.training.quality import Quality
from jdmctl.training.watch import Watch
from jdmctl.types import Batch

_MOST_AT_ONCE = 32
_REFERENCE = 1000
_GOALS = 6


def drawn_at_once(resolution_px: int) -> int:
    """Pictures in one batch of validation, on any device."""
    return that_fit(_MOST_AT_ONCE, resolution_px, resolution_px)


def validation_batches(recipe: Recipe, family: Any, batches: Batches, val: Samples) -> list[Batch]:
    """All validation samples once, whole prompts, the same noise each time; conditions wait on the CPU."""
    source = replace(batches, samples=val, prompt_dropout=0.0, buckets=None)
    number, size = min(recipe.data.num_validation_samples, len(val)), drawn_at_once(family.resolution_px)
    shown = [source.take("validation", range(at, min(at + size, number))) for at in range(0, number, size)]
    return [replace(b, images=None, conditions={name: c.cpu() for name, c in b.conditions.items()}) for b in shown]


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

    size = drawn_at_once(family.resolution_px)

    @torch.no_grad()
    def pooled(images: Tensor) -> Tensor:
        device = next(family.teacher.parameters()).device
        latents = [encode(part.to(device)) for part in images.split(size)]
        return adaptive_avg_pool2d(torch.cat(latents), 4).flatten(1).cpu().double()

    @torch.no_grad()
    def by_teacher(texts: list[str]) -> Tensor:
        generator = torch.Generator().manual_seed(recipe.seed)
        noise = torch.randn((len(texts), *family.latent_shape), generator=generator)
        steps, scale = recipe.training.teacher_steps, recipe.objective.guidance_scale
        drawn = []
        for first in range(0, len(texts), size):
            prompt = family.encode_prompt(texts[first : first + size])
            latents = family.multistep(noise[first : first + size].to(batches.device), prompt, steps, scale)
            drawn.append(family.codec.decode(latents).clamp(0, 1).cpu())
        return torch.cat(drawn)

    texts = [val.text(index) for index in range(number)]
    features = pooled
    if judge := _judge(recipe):
        features, true = judge.features, samples("reference").image(slice(0, _REFERENCE))
    else:
        images, _ = val.take(range(number))
        true = by_teacher(texts) if images is None else images
    shown = validation_batches(recipe, family, batches, val)
    first_texts = [text for batch in shown for text in batch.texts][:_GOALS]
    return Quality(
        student=family.student,
        codec=family.codec,
        latent_shape=family.latent_shape,
        batches=shown,
        features=lambda images: features(images.cpu()),
        reference=features(true),
        goals=by_teacher(first_texts),
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
        before=quality.first()[1],
        accuracy=accuracy,
        adherence=adherence,
    )


def _judge(recipe: Recipe) -> Judge | None:
    has_judge = is_of_world(recipe.model.teacher) and (world_folder() / "classifier").exists()
    return Judge.load(world_folder()) if has_judge else None


def _mean_accuracy(judge: Judge, stated: Tensor, images: Tensor) -> float:
    by_attribute = judge.accuracy(images.cpu(), stated)
    return sum(by_attribute.values()) / len(by_attribute)
