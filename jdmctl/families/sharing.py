"""Weights that several networks hold in one place."""

from __future__ import annotations

import copy
from typing import Any

from torch import nn


def twin(module: Any) -> Any:
    """A copy with parameters of its own that lie in the same memory, so that weights are held once."""
    shared = {id(value): nn.Parameter(value.detach(), requires_grad=False) for value in module.parameters()}
    return copy.deepcopy(module, shared | {id(value): value for value in module.buffers()})
