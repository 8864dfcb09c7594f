"""What a run consists of: its stages, its settings, where its batches come from and who watches."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from torch import nn

from jdmctl.training.adamw import AdamW
from jdmctl.training.calibration import is_level
from jdmctl.types import Batch, Phase, Step

LEVEL_CHECK_STEPS = 10
ALARMS_TO_STOP = 2  # validations in a row


class BatchSource(Protocol):
    """Batches as a pure function of where a run stands; so a counter is all that a resumed run needs."""

    def batch(self, phase: str, update: int, piece: int) -> Batch:
        """This process's share of piece `piece` of the batch for a phase's update number `update`."""
        ...


class Observer(Protocol):
    """What is shown and measured while a run trains; called on the main process, averaged weights in place."""

    def log(self, record: dict[str, Any]) -> None: ...

    def validate(self) -> Mapping[str, float]:
        """Measurements; `score` chooses the best checkpoint, higher is better, within `score_error` if there is one.

        `alarm`, if it is there, is for how many validations in a row the same thing has been wrong.
        """
        ...

    def preview(self, name: str) -> None: ...


@dataclass(frozen=True)
class Stage:
    """A part of a run: `num_steps` of one step, or fewer if it ends once its last phase's loss is level."""

    name: str
    step: Step
    num_steps: int
    prefix: str  # of its checkpoints and pictures, as in step-000500
    until_level: bool = False
    min_steps: int = 0
    averaged: tuple[nn.Parameter, ...] = ()  # empty: nothing to average, validate or look at
    on_start: Callable[[], None] = lambda: None  # once: a resumed run does not repeat it
    before_step: Callable[[int], None] = lambda step: None
    rate: Callable[[int], float] = lambda step: 1.0  # step -> factor of every learning rate

    def is_over(self, step: int, losses: Sequence[float]) -> bool:
        may_be_level = self.until_level and step >= self.min_steps and step % LEVEL_CHECK_STEPS == 0
        return step >= self.num_steps or (may_be_level and is_level(losses))

    def file_name(self, step: int) -> str:
        return f"{self.prefix}-{step:06d}"


@dataclass(frozen=True)
class Rate:
    """A factor of learning rates: up from 0 over `warmup_steps`, then constant or falling to 0 at `num_steps`."""

    num_steps: int
    warmup_steps: int = 0
    falls: bool = False

    def __call__(self, step: int) -> float:
        """Of the update after `step` steps; never 0, so that no update is idle."""
        if step < self.warmup_steps:
            return (step + 1) / (self.warmup_steps + 1)
        return (self.num_steps - step) / (self.num_steps - self.warmup_steps) if self.falls else 1.0


@dataclass(frozen=True)
class Phases:
    """Some phases of another step, once a time and in this order: for warming them up. What it lacks is left out."""

    step: Step
    names: tuple[str, ...]

    @property
    def phases(self) -> tuple[Phase, ...]:
        found = {phase.name: replace(phase, repeats=1) for phase in self.step.phases}
        return tuple(found[name] for name in self.names if name in found)


@dataclass(frozen=True)
class Settings:
    """How to train. `batch_size` counts the samples of one update, over all processes and pieces."""

    optimizers: Mapping[str, AdamW]  # by phase
    batch_size: int
    gradient_accumulation_steps: int = 1
    max_grad_norm: float = 1.0
    ema_decay: float = 0.999
    average_on: str | None = None  # a device; None: where the parameters are
    log_every_steps: int = 10
    save_every_steps: int = 100
    validate_every_steps: int = 50
    preview_every_steps: int = 50
    stop_on_alarm: bool = True
    command: str = "add-control"  # to be told when a run is interrupted
