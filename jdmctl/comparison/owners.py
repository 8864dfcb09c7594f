"""Whose an operation is: which network, energy or extractor asked for it, on the way forward and on the way back."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from jdmctl.types import Step

REST = "all else"


class Owners:
    """What `FlopCounterMode` asks at every operation, in the place of its own tracker.

    That one goes by classes, and teacher, student and fake score are of one. Here an operation is, on the way forward,
    of the innermost part that was entered; on the way back, of the part that made the node of the graph that now runs,
    also where it computes activations again. Nodes are numbered in the order in which they are made.
    """

    def __init__(self) -> None:
        self._entered = [REST]
        self._first, self._maker = [0], [REST]  # numbers of nodes, and who makes them from there on

    @property
    def parents(self) -> set[str]:
        """The names that an operation is counted under, as `ModuleTracker` has them."""
        node = torch._C._current_autograd_node()
        if node is None:
            return {"Global", self._entered[-1]}
        return {"Global", self._maker[bisect_right(self._first, node._sequence_nr()) - 1]}

    @contextmanager
    def watching(self, parts: Mapping[str, nn.Module]) -> Iterator[None]:
        """Inside, these modules own what they do."""
        handles = [
            handle
            for name, module in parts.items()
            for handle in (
                module.register_forward_pre_hook(lambda *_, name=name: self._enter(name)),
                module.register_forward_hook(lambda *_: self._leave()),
            )
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    @contextmanager
    def owned_by(self, name: str) -> Iterator[None]:
        self._enter(name)
        try:
            yield
        finally:
            self._leave()

    def named(self, step: Step) -> Step:
        """The step, whose energies and extractors own what they do."""
        energies, extractors = getattr(step, "energies", ()), getattr(step, "extractors", {})
        changes: dict[str, Any] = {}
        if energies:
            changes["energies"] = tuple(_Owned(one, one.name, f"{one.name} energy", self) for one in energies)
        if extractors:
            owned = {name: _Owned(call, name, f"{name} extractor", self) for name, call in extractors.items()}
            changes["extractors"] = owned
        return replace(step, **changes) if changes else step  # type: ignore[type-var]  # such steps are dataclasses

    def __enter__(self) -> Owners:
        return self

    def __exit__(self, *_: Any) -> None: ...

    def _enter(self, name: str) -> None:
        self._entered.append(name)
        self._note()

    def _leave(self) -> None:
        self._entered.pop()
        self._note()

    def _note(self) -> None:
        self._first.append(torch.autograd._get_sequence_nr())
        self._maker.append(self._entered[-1])


@dataclass(frozen=True)
class _Owned:
    """A part of a step that is no module."""

    call: Callable[..., Any]
    name: str
    owner: str
    owners: Owners

    def __call__(self, *inputs: Any) -> Any:
        with self.owners.owned_by(self.owner):
            return self.call(*inputs)
