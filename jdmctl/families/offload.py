"""Frozen weights that stay in the computer's own memory: each layer has its weight on the device while it computes.

The layers are the linear and convolution layers of a backbone's blocks (whatever lies in an nn.ModuleList), which hold
all but a hundredth of it. A copy of the weight is made on the input's device for every pass and belongs to that pass:
without gradients it is gone with the layer's output, with gradients once the pass has gone back. So gradients need
no hooks; with checkpointed activations no more than a block's copies are there at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from jdmctl.families.low_precision import HELD


class _Offloaded:
    """A layer whose weight stays where it is, whatever the layer is moved to."""

    _parameters: dict[str, nn.Parameter]

    def __new__(cls, *shape: Any, **options: Any) -> Any:
        """A new one is an ordinary layer: peft makes LoRA of the class of the layer that it is for."""
        return _PLAIN[cls](*shape, **options) if shape else super().__new__(cls)

    def forward(self, x: Tensor) -> Tensor:
        vars(self)["weight"] = self._parameters["weight"].to(x.device, copy=True)  # on a CPU too: plans count it
        try:
            return super().forward(x)  # type: ignore[misc]
        finally:
            del vars(self)["weight"]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        weight = self._parameters["weight"]
        return super()._apply(lambda t: t if t is weight else fn(t), recurse)  # type: ignore[misc]


_KINDS = {kind: type(f"Offloaded{kind.__name__}", (_Offloaded, kind), {}) for kind in (*HELD, *HELD.values())}
_PLAIN = {offloaded: kind for kind, offloaded in _KINDS.items()}


def offload(backbone: nn.Module) -> None:
    """Let the frozen weights of a backbone's blocks stay where they are from now on."""
    for blocks in backbone.modules():
        if isinstance(blocks, nn.ModuleList):
            for layer in blocks.modules():
                if type(layer) in _KINDS and not layer.weight.requires_grad:
                    layer.__class__ = _KINDS[type(layer)]


def bring_back(module: nn.Module, device: torch.device) -> None:
    """The whole module on a device, as one that was never offloaded."""
    for layer in _offloaded(module):
        layer.__class__ = _PLAIN[type(layer)]
    module.to(device)


def offloaded_weights(module: nn.Module) -> list[Tensor]:
    """Those that stay off the device."""
    return [layer.weight for layer in _offloaded(module)]  # type: ignore[misc]


def _offloaded(module: nn.Module) -> Iterator[nn.Module]:
    return (layer for layer in module.modules() if isinstance(layer, _Offloaded))
