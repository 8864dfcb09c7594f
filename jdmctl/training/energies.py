"""Controls as the energies of a step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from jdmctl.types import Batch


class DifferentiableControl(Protocol):
    name: str

    def energy(self, image: Tensor, condition: Tensor) -> Tensor: ...  # [B]


@dataclass(frozen=True)
class ControlEnergy:
    """-log p(c | image), with the control's own condition of the batch as c."""

    control: DifferentiableControl

    @property
    def name(self) -> str:
        return self.control.name

    def __call__(self, image: Tensor, batch: Batch) -> Tensor:
        return self.control.energy(image, batch.conditions[self.name])
