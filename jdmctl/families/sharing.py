"""Weights that several networks hold in one place."""

from __future__ import annotations

import copy
from typing import Any

from torch import nn


def double(module: Any) -> Any:
    """A copy with the very same parameters, frozen ones: wherever one of the two is moved, the other goes too."""
    return copy.deepcopy(module, {id(value): value for value in (*module.parameters(), *module.buffers())})


def twin(module: Any) -> Any:
    """A copy with parameters of its own that lie in the same memory, so that weights are held once."""
    shared = {id(value): nn.Parameter(value.detach(), requires_grad=False) for value in module.parameters()}
    return copy.deepcopy(module, shared | {id(value): value for value in module.buffers()})
