"""The training loop: which phase runs when, and all that happens around it. It knows no method and no recipe."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from jdmctl.errors import NonFiniteLossError, RecipeError, RunInterrupted
from jdmctl.training.attention import training_attention
from jdmctl.training.checkpoint import Checkpoints
from jdmctl.training.interrupt import StopRequest
from jdmctl.training.meter import Meter, Pace, peak_memory
from jdmctl.training.plan import ALARMS_TO_STOP, LEVEL_CHECK_STEPS, BatchSource, Observer, Settings, Stage
from jdmctl.training.processes import average_gradients, broadcast_parameters
from jdmctl.training.state import Stateful, TrainingState
from jdmctl.types import Phase


def fit(
    stages: Sequence[Stage],
    batches: BatchSource,
    settings: Settings,
    *,
    accelerator: Accelerator,
    checkpoints: Checkpoints,
    observer: Observer,
    extra: Mapping[str, Stateful] | None = None,
    resume: bool = False,
    on_ready: Callable[[], None] = lambda: None,
) -> TrainingState:
    """Run the stages in order; with `resume`, from the latest checkpoint on, bit for bit as if never stopped.

    Modules are not wrapped: parameters are broadcast at the start and gradients averaged after each backward, so a
    step may call its networks as often as it likes. A stage hands the next one the average of what it trained; the
    last one leaves its weights as they are and their average in the state that is returned. `on_ready` is called once
    a checkpoint that does not fit is refused and before anything is trained.

    Raises NonFiniteLossError, RecipeError where a stage is to have fewer steps than its checkpoint has had, and
    RunInterrupted after Ctrl-C (the state is saved first).
    """
    phases = [phase for stage in stages for phase in stage.step.phases]
    state = TrainingState(phases, settings.optimizers, settings.ema_decay, settings.average_on)
    loop = _Loop(stages, batches, settings, accelerator, checkpoints, observer, extra or {}, state)
    if resume and (path := checkpoints.latest()):
        state.load(checkpoints, path, [stage.averaged for stage in stages], loop.extra)
        loop.forget_finished()  # of checkpoints of older versions, which kept all moments
        accelerator.wait_for_everyone()  # no process may save, and delete what was before, until all have read
        _require_no_fewer_steps(stages[state.stage], state.step, path)
        state.halted = state.halted and settings.stop_on_alarm and state.step > 0
    else:
        broadcast_parameters([p for phase in phases for p in phase.parameters], accelerator)
    on_ready()
    with loop.stop, training_attention(accelerator.device):
        for index, stage in enumerate(stages):
            if index >= state.stage:
                loop.run(index, stage)
    return state


def _require_no_fewer_steps(stage: Stage, step: int, path: Path) -> None:
    """Raises RecipeError if the recipe wants less of a stage than its checkpoint has had."""
    if step > stage.num_steps:
        raise RecipeError(
            f"{path} is of {stage.name} step {step}, and the recipe now ends it after {stage.num_steps}",
            hint=f"resume with {step} steps of it or more, or begin a shorter run with another --output",
        )


@dataclass
class _Loop:
    stages: Sequence[Stage]
    batches: BatchSource
    settings: Settings
    accelerator: Accelerator
    checkpoints: Checkpoints
    observer: Observer
    extra: Mapping[str, Stateful]
    state: TrainingState
    stop: StopRequest = field(default_factory=StopRequest)

    def __post_init__(self) -> None:
        self.meter, self.pace = Meter(self.accelerator), Pace()
        self.unread_losses: list[Tensor] = []
        self.logged_step = 0

    def run(self, index: int, stage: Stage) -> None:
        """One stage, from wherever the state stands in it."""
        state = self.state
        if index > state.stage:
            state.enter(index, stage.averaged)
            self.forget_finished()
            stage.on_start()
            self.look(stage)
            self.save(stage)
        self.logged_step = state.step
        self.pace.restart()
        if stage.averaged and state.step and not state.best and stage.is_over(state.step, state.losses):
            self.look(stage, is_last=True)  # resumed to end where it was stopped, before any validation
            self.save(stage)
        while not (state.halted or stage.is_over(state.step, state.losses)):
            stage.before_step(state.step)
            rate = stage.rate(state.step)
            for phase in stage.step.phases:
                for _ in range(phase.repeats):
                    loss = self.update(phase, rate)
            state.average.update()
            state.step += 1
            state.order += 1
            if stage.until_level:
                self.unread_losses.append(loss)
            self.after_step(stage)
        if index + 1 < len(self.stages):
            state.average.copy_to_parameters()

    def forget_finished(self) -> None:
        """Hold, and save, only the moments of phases that this stage or a later one has."""
        left = {phase.name for stage in self.stages[self.state.stage :] for phase in stage.step.phases}
        self.state.forget(self.state.parameters.keys() - left)

    def update(self, phase: Phase, rate: float) -> Tensor:
        """One optimiser update of one phase, its learning rate times `rate`; returns its loss."""
        state, pieces = self.state, self.settings.gradient_accumulation_steps
        total = torch.zeros((), device=self.accelerator.device)
        for piece in range(pieces):
            batch = self.batches.batch(phase.name, state.updates[phase.name], piece)
            with self.accelerator.autocast():
                losses = phase.loss(batch)
            self.accelerator.backward(losses.total / pieces)
            self.meter.add(state.step + 1, losses.logs)
            total += losses.total.detach() / pieces
        average_gradients(phase.parameters, self.accelerator)
        norm = nn.utils.clip_grad_norm_(phase.parameters, self.settings.max_grad_norm)
        self.meter.add(state.step + 1, {f"{phase.name}_update_norm": norm})
        optimizer = state.optimizers[phase.name]
        for group in optimizer.param_groups:
            group["lr"] = rate * self.settings.optimizers[phase.name].learning_rate
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        state.updates[phase.name] += 1
        return total

    def after_step(self, stage: Stage) -> None:
        """Log, validate, show and save where it is due; numbers leave the device only here."""
        settings, state = self.settings, self.state
        if state.step % LEVEL_CHECK_STEPS == 0:
            self.read_losses()
        is_last, is_stopped = stage.is_over(state.step, state.losses), self.any_process(self.stop.received)
        every = {settings.log_every_steps, settings.save_every_steps}
        every |= {settings.validate_every_steps, settings.preview_every_steps} if stage.averaged else set()
        if not (is_last or is_stopped or any(state.step % steps == 0 for steps in every)):
            return
        self.log(stage)
        is_best = self.look(stage, is_last)
        state.halted = self.any_process(state.halted)
        if is_last or state.halted or is_stopped or is_best or state.step % settings.save_every_steps == 0:
            self.save(stage)
        self.pace.restart()
        if is_stopped:
            self.accelerator.wait_for_everyone()  # the first process that ends makes a launcher end the others
            run = self.checkpoints.folder.parent
            raise RunInterrupted(
                f"stopped after {stage.name} step {state.step} of {stage.num_steps}; everything is saved in {run}",
                hint=f"go on with: jdmctl {self.settings.command} {run} --resume",
            )

    def any_process(self, says: bool) -> bool:
        """Whether any process says so: they must all leave the loop at the same step."""
        if self.accelerator.num_processes == 1:
            return says
        flag = torch.tensor(float(says), device=self.accelerator.device)
        return bool(self.accelerator.reduce(flag, "sum"))

    def read_losses(self) -> None:
        if self.unread_losses:
            means = self.accelerator.reduce(torch.stack(self.unread_losses), "mean")
            self.state.losses += means.tolist()
            self.unread_losses = []

    def log(self, stage: Stage) -> None:
        step = self.state.step
        values, bad_step = self.meter.read()
        if bad_step is not None:
            numbers = {name: value for name, value in values.items() if isinstance(value, float)}
            names = ", ".join(name for name, value in numbers.items() if not abs(value) < float("inf"))
            raise NonFiniteLossError(
                f"loss is not finite at {stage.name} step {bad_step} ({names}); "
                f"last good checkpoint: {self.checkpoints.latest()}",
                hint="lower training.learning_rate or fake_score.learning_rate, or use precision: fp32",
            )
        elapsed = self.pace.elapsed()
        seconds = self.pace.measure(step - self.logged_step)
        self.logged_step = step
        record = {
            "event": "step",
            "stage": stage.name,
            "step": step,
            "num_steps": stage.num_steps,
        } | values
        record["seconds"] = elapsed  # of training alone, since the last record
        record["memory_bytes"] = peak_memory(self.accelerator.device)
        record["samples_per_second"] = self.settings.batch_size / seconds
        record["seconds_left"] = seconds * (stage.num_steps - step)
        if self.accelerator.is_main_process:
            self.observer.log(record)

    def look(self, stage: Stage, is_last: bool = False) -> bool:
        """Validate and show the averaged weights where it is due; whether they are the best so far.

        A stage's start is measured too, but what nothing has trained is never its best. Of all that are as good as the
        highest score, to within its standard error, the latest is: it was matched to the teacher for longest, which a
        score of adherence does not see. Alarms end the last stage alone, and no stage at its start.
        """
        state, settings = self.state, self.settings
        if not stage.averaged or not self.accelerator.is_main_process:
            return False
        is_best, name = False, stage.file_name(state.step)
        with state.average.applied(), torch.no_grad():
            if is_last or state.step % settings.validate_every_steps == 0:
                values = dict(self.observer.validate())
                peak = max(state.best.get("peak", float("-inf")), values["score"])
                is_as_good = values["score"] >= peak - values.get("score_error", 0.0)  # what is not finite never is
                is_best = state.step > 0 and (is_as_good or not state.best)
                if is_best:
                    state.best = {"name": name, "peak": peak} | values
                is_alarmed = values.get("alarm", 0) >= ALARMS_TO_STOP
                state.halted = settings.stop_on_alarm and is_alarmed and state.step > 0 and stage is self.stages[-1]
                where = {"event": "validation", "stage": stage.name, "step": state.step, "is_best": is_best}
                self.observer.log(where | values)
            if is_last or state.step % settings.preview_every_steps == 0:
                self.observer.preview(name)
        return is_best

    def save(self, stage: Stage) -> None:
        self.read_losses()
        if self.accelerator.is_main_process:
            name = stage.file_name(self.state.step)
            self.state.save(self.checkpoints, name, self.extra)
            self.checkpoints.prune(keep={name, self.state.best.get("name", name)})
