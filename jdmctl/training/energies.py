"""Controls as the energies of a step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from jdmctl.types import Batch


class DifferentiableControl(Protocol):
    name: str
    gradient: Literal["exact", "surrogate", "network"]

    def energy(self, image: Tensor, condition: Tensor) -> Tensor: ...  # [B]


@dataclass(frozen=True)
class ControlEnergy:
    """-log p(c | image), with the control's own condition of the batch as c.

    Under autocast only networks run in low precision. Arithmetic stays in float32, as the exact condition was made;
    and wide depthwise filters take minutes in bfloat16 on a CPU.
    """

    control: DifferentiableControl

    @property
    def name(self) -> str:
        return self.control.name

    def __call__(self, image: Tensor, batch: Batch) -> Tensor:
        if self.control.gradient == "network":
            return self.control.energy(image, batch.conditions[self.name])
        with torch.autocast(image.device.type, enabled=False):
            return self.control.energy(image, batch.conditions[self.name])
