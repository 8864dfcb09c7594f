"""What one training step costs: passes and floating-point operations of each network, counted while it runs."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from jdmctl.build_run import build_run
from jdmctl.comparison.cells import Cell
from jdmctl.comparison.history import History
from jdmctl.comparison.owners import Owners
from jdmctl.errors import JdmError
from jdmctl.families.base import DiffusionDenoiser
from jdmctl.families.heads import RatioCritic
from jdmctl.recipe_files import to_yaml
from jdmctl.training.atomic import write_text
from jdmctl.training.attention import training_attention
from jdmctl.training.run import make_accelerator
from jdmctl.types import Batch, Step

_COUNTED = "a whole batch, with attention and the critic, by part; warm-ups too"


@dataclass(frozen=True)
class Cost:
    """Of one update, with all its phases.

    A pass is of the whole batch, in however many pieces it comes; operations are of all pieces. A critic's pass is that
    of its heads and of what lends them features: of a UNet the way down, which is no pass of its own, and all of a
    transformer, whose pass is counted too. Operations are of the innermost: of a critic with a transformer's features
    its heads' alone, the rest being the transformer's.
    """

    passes: dict[str, tuple[int, int]]  # network -> forward, backward
    flops: int  # multiply-adds count as two, as torch.utils.flop_counter does
    parts: dict[str, int]  # whose they are: networks, energies, extractors, all else
    warmups: dict[str, tuple[int, int]] = field(default_factory=dict)  # stage -> operations of an update, most updates


def training_cost(step: Step, piece_of: Callable[[str], Batch], pieces: int = 1) -> Cost:
    """Run each phase as often as one step does, without updating anything, and count.

    `piece_of` gives a piece of a phase's batch, by the phase's name; all `pieces` of an update cost the same.
    """
    found, owners = networks(step), Owners()
    batches = {phase.name: piece_of(phase.name) for phase in step.phases}
    counter = FlopCounterMode(display=False)
    counter.mod_tracker = owners  # type: ignore[assignment]
    with _counted_passes(found) as passes, owners.watching(found), counter:
        _run_once(owners.named(step), batches)
    operations = {name: pieces * sum(each.values()) for name, each in counter.get_flop_counts().items()}
    parts = {name: operations[name] for name in [*found, *operations] if operations.get(name) and name != "Global"}
    return Cost(passes(), operations.get("Global", 0), parts)


def cell_cost(cell: Cell) -> Cost:
    """Of a cell's main stage and of its warm-ups, counted once on a piece of one batch and kept beside its folder, of
    this recipe alone. What a teacher draws beforehand is not in it."""
    file, counted = cell.folder.with_name(f"{cell.folder.name}.cost.json"), what_is_counted(cell)
    values = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    if values.pop("counted", "") != counted:
        run = build_run(cell.recipe, make_accelerator("cpu", "fp32"))
        pieces = run.settings.gradient_accumulation_steps
        each = [training_cost(stage.step, lambda phase: run.batches.batch(phase, 0, 0), pieces) for stage in run.stages]
        warmups = {
            stage.name: (one.flops, stage.num_steps) for stage, one in zip(run.stages[:-1], each[:-1], strict=True)
        }
        values = asdict(replace(each[-1], warmups=warmups))
        write_text(file, json.dumps({"counted": counted, **values}) + "\n")
    passes = {name: (there, back) for name, (there, back) in values["passes"].items()}
    warmups = {name: (flops, most) for name, (flops, most) in values["warmups"].items()}
    return Cost(passes, values["flops"], values["parts"], warmups)


def what_is_counted(cell: Cell) -> str:
    """What a kept cost is of; another is counted again."""
    return f"{_COUNTED}; {hashlib.sha256(to_yaml(cell.recipe).encode()).hexdigest()}"


def countable_cost(cell: Cell) -> Cost | None:
    """`cell_cost`; None where it cannot be counted, or not yet."""
    try:
        return cell_cost(cell)
    except JdmError:  # its teacher's ControlNet, for one, is yet to be trained
        return None


def updates(cell: Cell, stage: str = "training", most: int = 0) -> int:
    """Of a run that is done as many as it had, which an alarm may have ended early; else all that are planned."""
    done = History.of(cell.folder).updates.get(stage, 0) if cell.is_done else 0
    return done or most or cell.recipe.training.num_steps


def main_flops(cell: Cell, cost: Cost | None) -> float | None:
    """Of all updates of a cell's main stage, by the cost of one."""
    return float(cost.flops * updates(cell)) if cost else None


def training_flops(cell: Cell, cost: Cost | None) -> float | None:
    """The same with its warm-ups."""
    if cost is None:
        return None
    of_warmups = sum(flops * updates(cell, name, most) for name, (flops, most) in cost.warmups.items() if most)
    return float(cost.flops * updates(cell) + of_warmups)


def networks(step: Step) -> dict[str, nn.Module]:
    """The networks of a step by role; branches that two roles share are named once."""
    found: dict[str, nn.Module] = {}
    for part in fields(step):  # type: ignore[arg-type]  # steps are dataclasses
        for name, module in _parts(part.name, getattr(step, part.name)):
            if not any(module is other for other in found.values()):
                found[name] = module
    return found


def _parts(role: str, value: Any) -> Iterator[tuple[str, nn.Module]]:
    while hasattr(value, "denoiser"):  # guidance is a denoiser around a denoiser
        value = value.denoiser
    role = role.replace("_", " ")
    if isinstance(value, DiffusionDenoiser):
        yield role, value.backbone
        yield from ((f"{role}'s {name} branch", branch) for name, branch in value.branches.items())
    if isinstance(value, RatioCritic):
        yield role, value
    vae = getattr(value, "vae", None)
    if vae is not None:
        yield "decoder", vae.decoder
        yield "encoder", vae.encoder


@contextmanager
def _counted_passes(found: Mapping[str, nn.Module]) -> Iterator[Callable[[], dict[str, tuple[int, int]]]]:
    """Inside, passes of these networks are counted; gives what tells them."""
    forward: Counter[str] = Counter()
    backward: Counter[str] = Counter()

    def after_forward(name: str):
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            forward[name] += 1
            tensor = _first_tensor(output)
            if tensor.requires_grad:
                tensor.register_hook(lambda gradient: backward.update([name]))

        return hook

    handles = [module.register_forward_hook(after_forward(name)) for name, module in found.items()]
    try:
        yield lambda: {name: (forward[name], backward[name]) for name in found}
    finally:
        for handle in handles:
            handle.remove()


def _run_once(step: Step, batches: Mapping[str, Batch]) -> None:
    """There and back, each phase as often as one update has it; no gradient is left."""
    try:
        with training_attention(step.phases[-1].parameters[0].device):
            for phase in step.phases:
                for _ in range(phase.repeats):
                    phase.loss(batches[phase.name]).total.backward()
    finally:
        for phase in step.phases:
            for parameter in phase.parameters:
                parameter.grad = None


def _first_tensor(output: Any) -> torch.Tensor:
    while not isinstance(output, torch.Tensor):
        output = output[0]
    return output
