"""A method small enough to follow by hand: a student of four numbers, a fake score that follows it, a fixed teacher."""

from dataclasses import dataclass, field

import torch
from accelerate import Accelerator
from torch import nn

from jdmctl.training.adamw import AdamW
from jdmctl.training.checkpoint import Checkpoints
from jdmctl.training.draws import SampleDraws
from jdmctl.training.loop import fit
from jdmctl.training.plan import Phases, Settings, Stage
from jdmctl.types import Batch, Losses, Phase

TEACHER = torch.tensor([1.0, -2.0, 0.5, 3.0])


@dataclass
class ToyStep:
    """student -> teacher, fake -> student, by noisy least squares."""

    student: nn.Parameter = field(default_factory=lambda: nn.Parameter(torch.zeros(4)))
    fake: nn.Parameter = field(default_factory=lambda: nn.Parameter(torch.ones(4)))
    fake_updates: int = 2
    calls: list[str] = field(default_factory=list)

    @property
    def phases(self) -> tuple[Phase, ...]:
        return (
            Phase("fake_score", self.fake_loss, (self.fake,), self.fake_updates),
            Phase("student", self.student_loss, (self.student,)),
        )

    def fake_loss(self, batch: Batch) -> Losses:
        return self._loss("fake_score", self.fake, self.student.detach(), batch)

    def student_loss(self, batch: Batch) -> Losses:
        return self._loss("student", self.student, TEACHER + 0.1 * self.fake.detach(), batch)

    def _loss(self, name: str, value: nn.Parameter, target: torch.Tensor, batch: Batch) -> Losses:
        self.calls.append(name)
        noisy = target + batch.draws.normal("noise", (4,))
        total = (value - noisy).square().sum(1).mean()
        return Losses(total, {f"{name}_loss": total.detach()})


@dataclass(frozen=True)
class ToyBatches:
    batch_size: int = 8
    pieces: int = 1

    def batch(self, phase: str, update: int, piece: int) -> Batch:
        size = self.batch_size // self.pieces
        first = update * self.batch_size + piece * size
        return Batch(None, {}, SampleDraws(0, phase, range(first, first + size)))


@dataclass
class Watcher:
    """Keeps what it is told; the score is the closeness to the teacher."""

    step: ToyStep
    records: list[dict] = field(default_factory=list)
    previews: list[str] = field(default_factory=list)

    def log(self, record):
        self.records.append(record)

    def validate(self):
        return {"score": -(self.step.student - TEACHER).square().sum().item()}

    def preview(self, name):
        self.previews.append(name)


def settings(**changes) -> Settings:
    rates = {"fake_score": AdamW(0.05), "student": AdamW(0.03)}
    every = {f"{what}_every_steps": 10 for what in ("log", "save", "validate", "preview")}
    return Settings(**({"optimizers": rates, "batch_size": 8, "ema_decay": 0.9} | every | changes))


def stages(step: ToyStep, warmup_steps: int = 10, num_steps: int = 20, **changes) -> list[Stage]:
    main = Stage("training", step, num_steps, "step", averaged=(step.student,), **changes)
    warmup = Stage("fake-score-warmup", Phases(step, ("fake_score",)), warmup_steps, "fake-score-warmup")
    return [warmup, main] if warmup_steps else [main]


def train(folder, step: ToyStep, parts=None, batches=None, resume=False, watcher=None, accelerator=None, **changes):
    """`fit` with the toy's defaults; returns the state and the watcher. `folder` may be ready-made Checkpoints."""
    watcher = watcher or Watcher(step)
    state = fit(
        parts or stages(step),
        batches or ToyBatches(),
        settings(**changes),
        accelerator=accelerator or Accelerator(cpu=True),
        checkpoints=folder if isinstance(folder, Checkpoints) else Checkpoints(folder / "checkpoints"),
        observer=watcher,
        resume=resume,
    )
    return state, watcher
