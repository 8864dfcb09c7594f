"""All that changes while a run trains, and that a resumed run must have back."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from jdmctl.errors import MissingWeightsError
from jdmctl.training.adamw import AdamW, moments, put_moment
from jdmctl.training.checkpoint import Checkpoints, TensorGroups
from jdmctl.training.ema import MovingAverage
from jdmctl.types import Phase


class Stateful(Protocol):
    def state_dict(self) -> dict[str, Any]: ...  # JSON

    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...


class TrainingState:
    """Parameters, their average, optimiser moments and counters.

    Phases of the same name in several stages share one optimiser and one counter. `order` counts every step of every
    stage.
    """

    def __init__(
        self,
        phases: Sequence[Phase],
        optimizers: Mapping[str, AdamW],
        ema_decay: float,
        average_on: torch.device | str | None = None,
    ):
        self.parameters = {phase.name: phase.parameters for phase in phases}
        self.optimizers = {name: optimizers[name].optimizer(p) for name, p in self.parameters.items()}
        self.ema_decay, self.average_on = ema_decay, average_on  # None: where the parameters are
        self.average = self._average_of(())
        self.stage = -1  # which stage (-1: none yet), and how many of its steps are done
        self.step = 0
        self.order = 0
        self.updates = dict.fromkeys(self.parameters, 0)
        self.losses: list[float] = []  # of this stage's last phase, for the rule that ends a warm-up
        self.best: dict[str, Any] = {}  # name and values of the best checkpoint on validation, highest score so far
        self.halted = False  # this stage is over before its last step

    def enter(self, stage: int, averaged: Sequence[nn.Parameter]) -> None:
        """Begin a stage: step 0, no losses, its own average and its own best checkpoint."""
        self.stage, self.step, self.losses, self.best, self.halted = stage, 0, [], {}, False
        self.average = self._average_of(averaged)

    def forget(self, names: Iterable[str]) -> None:
        """Drop the moments of phases that will not be updated again, 8 bytes of each weight (AdamW's of float32)."""
        for name in names:
            self.optimizers[name].state.clear()

    def save(self, checkpoints: Checkpoints, name: str, extra: Mapping[str, Stateful]) -> Path:
        tensors: TensorGroups = {
            "weights": self._unique(),
            "average": self._average(),
            "optimizer": self._moments(),
        }
        counters = {key: getattr(self, key) for key in _COUNTERS} | {"average_updates": self.average.num_updates}
        return checkpoints.save(name, tensors, counters | {"extra": {k: v.state_dict() for k, v in extra.items()}})

    def load(
        self,
        checkpoints: Checkpoints,
        path: Path,
        averaged: Sequence[Sequence[nn.Parameter]],
        extra: Mapping[str, Stateful],
    ) -> None:
        """Put a checkpoint back; `averaged` lists, by stage, whose average is kept.

        Whatever of `extra` an older version did not keep stays as it is. Raises MissingWeightsError if it is of a run
        that trained other weights, or in more stages.
        """
        tensors, counters = checkpoints.load(path)
        if counters["stage"] >= len(averaged):
            raise _of_another_recipe(path)
        for key in _COUNTERS:
            setattr(self, key, counters[key])
        for key, item in extra.items():
            if key in counters["extra"]:
                item.load_state_dict(counters["extra"][key])
        self.average = self._average_of(averaged[self.stage])
        self.average.num_updates = counters["average_updates"]
        _copy(tensors["weights"], self._unique(), path)
        _copy(tensors["average"], self._average(), path)
        for key, value in tensors["optimizer"].items():
            name, index, moment = key.rsplit(".", 2)
            put_moment(self.optimizers[name], int(index), moment, value)

    def load_average(self, checkpoints: Checkpoints, path: Path) -> None:
        """Take only the average from a checkpoint of the present stage."""
        tensors, _ = checkpoints.load(path)
        _copy(tensors["average"], self._average(), path)

    def _average_of(self, parameters: Sequence[nn.Parameter]) -> MovingAverage:
        return MovingAverage(parameters, self.ema_decay, self.average_on)

    def _unique(self) -> dict[str, nn.Parameter]:
        """Each trained parameter once, named after the first phase that trains it."""
        names: dict[int, tuple[str, nn.Parameter]] = {}
        for name, parameters in self.parameters.items():
            for i, parameter in enumerate(parameters):
                names.setdefault(id(parameter), (f"{name}.{i:04d}", parameter))
        return dict(names.values())

    def _average(self) -> dict[str, Tensor]:
        return {f"{i:04d}": value for i, value in enumerate(self.average.values)}

    def _moments(self) -> dict[str, Tensor]:
        return {
            f"{name}.{i:04d}.{key}": value
            for name, parameters in self.parameters.items()
            for i, parameter in enumerate(parameters)
            for key, value in moments(self.optimizers[name], parameter).items()
        }


_COUNTERS = ("stage", "step", "order", "updates", "losses", "best", "halted")


@torch.no_grad()
def _copy(source: Mapping[str, Tensor], target: Mapping[str, Tensor], path: Path) -> None:
    if {k: v.shape for k, v in source.items()} != {k: v.shape for k, v in target.items()}:
        raise _of_another_recipe(path)
    for key, value in target.items():
        value.copy_(source[key])


def _of_another_recipe(path: Path) -> MissingWeightsError:
    return MissingWeightsError(
        f"the checkpoint {path} holds other weights than this recipe trains",
        hint="resume with the recipe that the run was started with, or begin again with another --output",
    )
