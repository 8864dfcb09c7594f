"""Supervised training of the world's networks: one module, one loss, cached and resumable."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from jdmctl.training.atomic import whole_file
from jdmctl.training.attention import training_attention


@dataclass(frozen=True)
class FitSettings:
    num_steps: int
    learning_rate: float
    shape: Literal["one_cycle", "constant"] = "one_cycle"
    ema_decay: float = 0.0
    weight_decay: float = 0.01
    warmup_steps: int = 100
    save_every_seconds: float = 60.0
    seed: int = 0

    def rate(self, step: int) -> float:
        """Learning rate at `step`: linear warm-up, then cosine to zero or constant."""
        warm = min(1.0, (step + 1) / self.warmup_steps)
        if self.shape == "constant":
            return self.learning_rate * warm
        return self.learning_rate * warm * 0.5 * (1 + math.cos(math.pi * step / self.num_steps))


def fit(
    module: nn.Module,
    loss: Callable[[torch.Generator], Tensor],
    settings: FitSettings,
    state_file: Path,
    report: Callable[[int, float, float], None] = lambda step, loss, seconds_left: None,
    snapshots: dict[int, Callable[[], None]] | None = None,
) -> None:
    """Train `module` in place, on the device it is on; leaves its EMA weights in it if `ema_decay` is set.

    `loss(generator)` draws everything random from a generator seeded by (seed, step), so a resumed run repeats an
    uninterrupted one. `snapshots[step]` is called with the EMA weights in place once that many steps are done.

    Raises JdmError if its state cannot be saved.
    """
    parameters = {name: p for name, p in module.named_parameters() if p.requires_grad}
    optimizer = torch.optim.AdamW(
        parameters.values(),
        lr=settings.learning_rate,
        betas=(0.9, 0.99),
        weight_decay=settings.weight_decay,
        fused=True,
    )
    ema = {name: p.detach().clone() for name, p in parameters.items()}
    buffers = dict(module.named_buffers())  # what batch norms have seen
    start = _load(state_file, parameters, ema, optimizer, buffers)
    generator, device = torch.Generator(), next(iter(parameters.values())).device
    began = saved = time.monotonic()
    for step in range(start, settings.num_steps):
        generator.manual_seed(settings.seed * 1_000_003 + step)
        for group in optimizer.param_groups:
            group["lr"] = settings.rate(step)
        with training_attention(device):
            value = loss(generator)
        optimizer.zero_grad(set_to_none=True)
        value.backward()
        nn.utils.clip_grad_norm_(parameters.values(), 1.0)
        optimizer.step()
        decay = min(settings.ema_decay, (1 + step) / (10 + step))
        for name, p in parameters.items():
            ema[name].lerp_(p.detach(), 1 - decay)
        if (step + 1) % 25 == 0:
            pace = (time.monotonic() - began) / (step + 1 - start)
            report(step + 1, value.item(), pace * (settings.num_steps - step - 1))
        if snapshots and step + 1 in snapshots:
            live = {name: p.detach().clone() for name, p in parameters.items()}
            _copy(ema, parameters)
            snapshots[step + 1]()
            _copy(live, parameters)
        if time.monotonic() - saved > settings.save_every_seconds or step + 1 == settings.num_steps:
            _save(state_file, step + 1, parameters, ema, optimizer, buffers)
            saved = time.monotonic()
    _copy(ema, parameters)


def _copy(values: dict[str, Tensor], parameters: dict[str, nn.Parameter]) -> None:
    with torch.no_grad():
        for name, p in parameters.items():
            p.copy_(values[name])


def _save(
    file: Path,
    step: int,
    parameters: dict[str, nn.Parameter],
    ema: dict[str, Tensor],
    optimizer: torch.optim.Optimizer,
    buffers: dict[str, Tensor],
) -> None:
    tensors = {"parameter." + name: p.detach().contiguous() for name, p in parameters.items()}
    tensors |= {"ema." + name: value.contiguous() for name, value in ema.items()}
    tensors |= {"buffer." + name: value.contiguous() for name, value in buffers.items()}
    for name, p in parameters.items():
        tensors |= {f"{key}.{name}": value.contiguous() for key, value in optimizer.state[p].items()}
    with whole_file(file) as partial:
        save_file(tensors, partial, metadata={"state": json.dumps({"step": step})})


def _load(
    file: Path,
    parameters: dict[str, nn.Parameter],
    ema: dict[str, Tensor],
    optimizer: torch.optim.Optimizer,
    buffers: dict[str, Tensor],
) -> int:
    """Steps already done; 0 where there is no state."""
    if not file.exists():
        return 0
    tensors = load_file(file)
    for name, p in parameters.items():
        p.data.copy_(tensors["parameter." + name])
        ema[name].copy_(tensors["ema." + name])
        optimizer.state[p] = {
            key: tensors[f"{key}.{name}"].to(p.device, copy=True) for key in ("step", "exp_avg", "exp_avg_sq")
        }
    for name, value in buffers.items():
        value.copy_(tensors.get("buffer." + name, value))  # absent from states of before they were kept
    return int(tensors[f"step.{next(iter(parameters))}"])
