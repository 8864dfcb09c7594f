"""What a student without controls is measured by while it trains."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from jdmctl.controls.base import Control
from jdmctl.recipe import Recipe
from jdmctl.tinyworld.judge import Judge
from jdmctl.tinyworld.world import samples, world_folder
from jdmctl.training.batches import Batches, Samples
from jdmctl.training.quality import Quality

_BATCH_SIZE = 32
_REFERENCE = 1000
_GOALS = 6


def build_quality(
    recipe: Recipe, family: Any, controls: Mapping[str, Control], batches: Batches, val: Samples
) -> Quality:
    """On the embedded world in its classifier's features; elsewhere in average-pooled latents of the VAE.

    The reference are true pictures: the embedded world's, or those of the validation samples; where there are none,
    what the teacher draws for their prompts.
    """
    source = replace(batches, samples=val, prompt_dropout=0.0)
    number = min(recipe.data.num_validation_samples, len(val))

    @torch.no_grad()
    def pooled(images: Tensor) -> Tensor:
        device = next(family.teacher.parameters()).device
        latents = [family.codec.encode(part.to(device)) for part in images.split(_BATCH_SIZE)]
        return adaptive_avg_pool2d(torch.cat(latents), 4).flatten(1).double().cpu()

    def by_teacher(texts: list[str]) -> Tensor:
        generator = torch.Generator().manual_seed(recipe.seed)
        noise = torch.randn((len(texts), *family.latent_shape), generator=generator)
        prompt, scale = family.encode_prompt(texts), recipe.objective.guidance_scale
        latents = family.multistep(noise.to(batches.device), prompt, recipe.training.teacher_steps, scale)
        return family.codec.decode(latents).clamp(0, 1).cpu()

    texts = [val.text(index) for index in range(number)]
    features = pooled
    if recipe.model.teacher == "tiny" and (world_folder() / "classifier").exists():
        judge = Judge.load(world_folder())
        features, true = judge.features, samples("reference").image(slice(0, _REFERENCE))
    else:
        images, _ = val.take(range(number))
        parts = [texts[first : first + _BATCH_SIZE] for first in range(0, number, _BATCH_SIZE)]
        true = torch.cat([by_teacher(part) for part in parts]) if images is None else images
    starts = range(0, number, _BATCH_SIZE)
    shown = [source.take("validation", range(at, min(at + _BATCH_SIZE, number))) for at in starts]
    return Quality(
        student=family.student,
        codec=family.codec,
        latent_shape=family.latent_shape,
        batches=shown,
        features=lambda images: features(images.cpu()),
        reference=features(true),
        goals=by_teacher(list(shown[0].texts[:_GOALS])),
    )
