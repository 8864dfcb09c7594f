"""What more passes for each picture buy without any training."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from jdmctl.comparison.scenes import Drawing, Scenes
from jdmctl.recipe import Recipe
from jdmctl.search import best_of, refine_noise
from jdmctl.training.draws import SampleDraws

_BATCH = 50

BEST_OF, REFINED = "best of {}", "noise refined, {} steps"


@dataclass(frozen=True)
class MorePasses:
    """How far each way goes that spends more than one pass on a picture."""

    teacher_steps: Sequence[int] = ()  # of the teacher with an ordinary ControlNet
    best_of: Sequence[int] = ()  # pictures, of which a reward chooses one
    refine_steps: Sequence[int] = ()  # of noise that climbs a reward


def searches(scenes: Scenes, family: Any, recipe: Recipe, more: MorePasses) -> Iterator[tuple[str, int, Drawing]]:
    """(name, passes, pictures) of the student as it is, searched for what a recipe's first reward likes.

    A step of refinement is a pass forth and back, and counts as one. Nothing for recipes with controls, or no reward.
    """
    if scenes.controls or not recipe.rewards:
        return
    liking = scenes.rewards[f"reward {recipe.rewards[0].called}"]

    def noises(part: Tensor, name: str = "score") -> Tensor:
        draws = SampleDraws(recipe.seed, name, part.tolist(), scenes.device)
        return draws.normal("student_noise", family.latent_shape)

    def chosen(num: int, part: Tensor, texts: list[str]) -> Tensor:
        names = ["score", *(f"try {n}" for n in range(1, num))]
        return best_of(family, liking, texts, [noises(part, name) for name in names])

    def refined(num: int, part: Tensor, texts: list[str]) -> Tensor:
        return refine_noise(family, liking, texts, noises(part), num)

    for num in more.best_of:
        yield BEST_OF.format(num), num, _drawn(scenes, partial(chosen, num))
    for num in more.refine_steps:
        yield REFINED.format(num), num, _drawn(scenes, partial(refined, num))


def _drawn(scenes: Scenes, search: Callable[[Tensor, list[str]], Tensor]) -> Drawing:
    parts = torch.arange(scenes.num).split(scenes.at_once(_BATCH))
    found = [search(part, [scenes.pictures.text(i) for i in part.tolist()]).cpu() for part in parts]
    return Drawing(torch.cat(found))
