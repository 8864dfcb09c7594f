"""Controls and rewards as the energies of a step."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor
from torch.nn import functional

from jdmctl.controls.base import Control
from jdmctl.errors import BadInputError
from jdmctl.types import Batch, Draws


class DifferentiableControl(Protocol):
    name: str
    gradient: Literal["exact", "surrogate", "network"]

    def energy(self, image: Tensor, condition: Tensor) -> Tensor: ...  # [B]


def extract(control: Control, image: Tensor) -> Tensor:
    """The control's exact condition of images that a run has drawn, [B, 3, H, W] both, as those of data are made."""
    with _precision(control.gradient, image):
        return control.condition(image)


@dataclass(frozen=True)
class ControlEnergy:
    """-log p(c | image), with the control's own condition of the batch as c."""

    control: DifferentiableControl

    @property
    def name(self) -> str:
        return self.control.name

    def __call__(self, image: Tensor, batch: Batch) -> Tensor:
        with _precision(self.control.gradient, image):
            return self.control.energy(image, batch.conditions[self.name])


class DifferentiableReward(Protocol):
    name: str
    reads_text: bool

    def __call__(self, image: Tensor, texts: Sequence[str]) -> Tensor: ...  # [B], higher is better


@dataclass(frozen=True)
class RewardEnergy:
    """-R(image, caption): the taste p(like | image) is proportional to exp(R / beta), and beta is one over the weight.

    With a `threshold` relu(threshold - R) instead, as ImageReward's ReFL has it: a picture that is good enough is left
    alone, where an unbounded reward would go on and ruin it. With `crop` in (0, 1) the reward sees a random window of
    that share of each side, the same for all rewards of a batch: what pleases one reward at one place of the picture
    only pleases it less.

    Raises:
        BadInputError: the share is not in (0, 1], or the reward reads captions and the data has none.
    """

    reward: DifferentiableReward
    threshold: float | None = None
    crop: float = 1.0
    label: str = ""  # what to call it; by default its name

    def __post_init__(self) -> None:
        if not 0 < self.crop <= 1:
            raise BadInputError(f"{self.name}: crop is {self.crop}", hint="choose a share above 0 and up to 1")

    @property
    def name(self) -> str:
        return self.label or self.reward.name

    def __call__(self, image: Tensor, batch: Batch) -> Tensor:
        if self.reward.reads_text and len(batch.texts) != len(image):
            raise BadInputError(
                f"the reward {self.name} reads captions, the data has none",
                hint="give data with captions, or a reward that does not read them",
            )
        reward = self.reward(random_window(image, self.crop, batch.draws), batch.texts)
        return -reward if self.threshold is None else functional.relu(self.threshold - reward)


def random_window(image: Tensor, share: float, draws: Draws) -> Tensor:
    """A window [B, 3, round(share H), round(share W)] of each image [B, 3, H, W], anywhere with equal odds."""
    if share == 1:
        return image
    indices = []
    for axis, length in (("row", image.shape[2]), ("column", image.shape[3])):
        size = max(1, round(share * length))
        first = (draws.uniform(f"window {axis}").to(image.device) * (length - size + 1)).long()  # [B]
        indices.append(first[:, None] + torch.arange(size, device=image.device))
    rows, columns = indices
    sample = torch.arange(len(image), device=image.device)[:, None, None]
    return image.permute(0, 2, 3, 1)[sample, rows[:, :, None], columns[:, None]].permute(0, 3, 1, 2)


def _precision(gradient: str, image: Tensor) -> AbstractContextManager[Any]:
    """Under autocast only networks run in low precision. Arithmetic stays in float32, as the exact condition was made;
    and wide depthwise filters take minutes in bfloat16 on a CPU.
    """
    return nullcontext() if gradient == "network" else torch.autocast(image.device.type, enabled=False)
