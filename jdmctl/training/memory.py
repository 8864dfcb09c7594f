"""What a training holds in memory, in bytes: counted where it is known, played through where it has to be measured.

A plan plays one update of each phase on fake tensors (torch._subclasses.FakeTensorMode), which have shapes and no
data, so that a 12-billion-parameter model is planned on a laptop; a test plays it on real ones.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from jdmctl.families.offload import offloaded_weights
from jdmctl.types import Batch, Phase

MOMENTS = 2  # of AdamW for each parameter, float32 like it
STEP_BYTES = 4  # AdamW counts its steps for each parameter
BLOCK = 256  # numbers of an 8-bit moment that share a float32 scale
TABLE_BYTES = 1024  # what the codes of an 8-bit moment mean, once for each optimiser
LEAST_IN_8_BITS = 4096  # smaller weights have moments in float32


def held_bytes(parts: Mapping[str, Iterable[Tensor]]) -> dict[str, int]:
    """Part -> bytes; what several parts share counts for the first of them."""
    seen: set[int] = set()
    held = {}
    for name, tensors in parts.items():
        held[name] = 0
        for tensor in tensors:
            storage = tensor.untyped_storage()
            if storage._cdata not in seen:
                seen.add(storage._cdata)
                held[name] += storage.nbytes()
    return held


def weights_of(*modules: nn.Module | None) -> list[Tensor]:
    """All parameters and buffers but those that stay off the device."""
    found: list[Tensor] = []
    for module in modules:
        if module is not None:
            away = {id(weight) for weight in offloaded_weights(module)}
            found += [t for t in (*module.parameters(), *module.buffers()) if id(t) not in away]
    return found


def optimizer_bytes(phases: Mapping[str, Sequence[nn.Parameter]], bits: int = 32) -> int:
    """Of AdamW's state, once each phase has been updated; every phase has an optimiser of its own."""
    if bits == 32:
        return sum(MOMENTS * _size(parameters) + STEP_BYTES * len(parameters) for parameters in phases.values())
    total = 0
    for parameters in phases.values():
        large = [p.numel() for p in parameters if p.numel() >= LEAST_IN_8_BITS]
        total += MOMENTS * sum(size + 4 * math.ceil(size / BLOCK) for size in large)
        total += MOMENTS * (4 * (sum(p.numel() for p in parameters) - sum(large)) + TABLE_BYTES * bool(large))
    return total


def average_bytes(averaged: Sequence[nn.Parameter]) -> int:
    """Of the moving average."""
    return _size(averaged)


@dataclass(frozen=True)
class Working:
    """The most bytes that one update of a phase holds at once, beside weights, optimiser and average."""

    gradients: int
    peak: int  # the batch, activations, low-precision copies and gradients, while it goes forward and back


def play(
    phase: Phase,
    batch: Batch,
    *,
    pieces: int = 1,
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> Working:
    """One update of a phase as the loop does it, on real or fake tensors, up to its gradients.

    The optimiser's own update makes nothing on the way (AdamW is fused, or in eight bits). The batch is held while it
    goes on.
    """
    with PeakBytes() as seen:
        for _ in range(pieces):
            with autocast():
                losses = phase.loss(batch)
            (losses.total / pieces).backward()
            del losses
    trained = [p for p in phase.parameters if p.grad is not None]
    gradients = _size(trained)
    for parameter in trained:
        parameter.grad = None
    return Working(gradients, _batch_bytes(batch) + seen.peak)


def play_apart(work: Callable[[], Any], batch: Batch) -> Working:
    """What is no update: beside the batch it makes only what it returns."""
    with PeakBytes() as seen:
        work()
    return Working(0, _batch_bytes(batch) + seen.peak)


class PeakBytes(TorchDispatchMode):
    """Inside, every tensor that an operation makes is counted for as long as it lives.

    What lived before is not counted, and views count with what they are views of.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._alive: dict[int, Any] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {t.untyped_storage()._cdata for t in tree_iter((args, kwargs)) if isinstance(t, Tensor)}
        result = func(*args, **(kwargs or {}))
        for tensor in tree_iter(result):
            if isinstance(tensor, Tensor):
                self._see(tensor, given)
        return result

    def _see(self, tensor: Tensor, given: set[int]) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._alive or key in given:
            return
        size = storage.nbytes()
        self.now += size
        self.peak = max(self.peak, self.now)

        def gone(_: Any) -> None:
            self.now -= size
            self._alive.pop(key, None)

        self._alive[key] = weakref.ref(storage, gone)


def _batch_bytes(batch: Batch) -> int:
    return held_bytes({"batch": (t for t in tree_iter(vars(batch)) if isinstance(t, Tensor))})["batch"]


def _size(tensors: Sequence[Tensor]) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)
