"""What one training step costs: passes of each network and floating-point operations, counted while it runs."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from jdmctl.build_run import build_run
from jdmctl.comparison.cells import Cell
from jdmctl.families.base import DiffusionDenoiser
from jdmctl.training.atomic import write_text
from jdmctl.training.run import make_accelerator
from jdmctl.types import Batch, Step


@dataclass(frozen=True)
class Cost:
    passes: dict[str, tuple[int, int]]  # network -> forward, backward
    flops: int  # multiply-adds count as two, as torch.utils.flop_counter does


def training_cost(step: Step, batch: Batch) -> Cost:
    """Run each phase as often as one step does, without updating anything, and count."""
    forward: Counter[str] = Counter()
    backward: Counter[str] = Counter()

    def after_forward(name: str):
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            forward[name] += 1
            tensor = _first_tensor(output)
            if tensor.requires_grad:
                tensor.register_hook(lambda gradient: backward.update([name]))

        return hook

    found = networks(step)
    handles = [module.register_forward_hook(after_forward(name)) for name, module in found.items()]
    try:
        with FlopCounterMode(display=False) as counter:
            for phase in step.phases:
                for _ in range(phase.repeats):
                    phase.loss(batch).total.backward()
    finally:
        for handle in handles:
            handle.remove()
        for phase in step.phases:
            for parameter in phase.parameters:
                parameter.grad = None
    return Cost({name: (forward[name], backward[name]) for name in found}, counter.get_total_flops())


def cell_cost(cell: Cell) -> Cost:
    """Of a cell's main stage, counted once on one batch and kept beside its folder."""
    file = cell.folder.with_name(f"{cell.name}.cost.json")
    if not file.exists():
        run = build_run(cell.recipe, make_accelerator("cpu", "fp32"))
        step = run.stages[-1].step
        cost = training_cost(step, run.batches.batch(step.phases[-1].name, 0, 0))
        write_text(file, json.dumps({"passes": cost.passes, "flops": cost.flops}) + "\n")
    values = json.loads(file.read_text(encoding="utf-8"))
    return Cost({name: (there, back) for name, (there, back) in values["passes"].items()}, values["flops"])


def networks(step: Step) -> dict[str, nn.Module]:
    """The networks of a step by role; branches that two roles share are named once."""
    found: dict[str, nn.Module] = {}
    for field in fields(step):  # type: ignore[arg-type]  # steps are dataclasses
        for name, module in _parts(field.name, getattr(step, field.name)):
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
    vae = getattr(value, "vae", None)
    if vae is not None:
        yield "decoder", vae.decoder
        yield "encoder", vae.encoder


def _first_tensor(output: Any) -> torch.Tensor:
    while not isinstance(output, torch.Tensor):
        output = output[0]
    return output
