"""Activations that are computed again on the way back instead of being kept."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint


def checkpoint_activations(*modules: Any) -> None:
    """Of networks of diffusers that can (SANA's and Qwen-Image's VAE and T2I-Adapters cannot): each of their blocks."""
    for module in modules:
        if getattr(module, "_supports_gradient_checkpointing", False):
            module.enable_gradient_checkpointing(_call)


@contextmanager
def kept_activations(module: nn.Module) -> Iterator[None]:
    """Inside, the module keeps its activations: what is computed again later would find another state of things."""
    switched: list[Any] = [part for part in module.modules() if getattr(part, "gradient_checkpointing", False)]
    for part in switched:
        part.gradient_checkpointing = False
    try:
        yield
    finally:
        for part in switched:
            part.gradient_checkpointing = True


def _call(block: nn.Module, *args: Any, **named: Any) -> Any:
    """The block, computed again without its hooks, which may be gone by then. No block draws random numbers."""
    forward = block.forward
    block.forward = partial(checkpoint, forward, use_reentrant=False, preserve_rng_state=False)
    try:
        return block(*args, **named)
    finally:
        del block.forward
