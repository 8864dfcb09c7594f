"""Frozen weights in half the bytes, and what is trained in float32.

Only the weights of linear and convolution layers are rounded, which are all but a thousandth of a backbone. Autocast
rounds the same ones whenever it uses them: with `precision: bf16`, holding them in bfloat16 changes no bit of what a
network computes. Norms, biases and tables stay float32.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor, nn


class _HeldLinear(nn.Linear):
    """Whatever its weight is held in, it computes as autocast says, and in float32 where that is off."""

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_autocast_enabled(x.device.type):
            return super().forward(x)
        return nn.functional.linear(x.float(), self.weight.float(), self.bias)


class _HeldConv1d(nn.Conv1d):
    def forward(self, x: Tensor) -> Tensor:
        if torch.is_autocast_enabled(x.device.type):
            return super().forward(x)
        return self._conv_forward(x.float(), self.weight.float(), self.bias)


class _HeldConv2d(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        if torch.is_autocast_enabled(x.device.type):
            return super().forward(x)
        return self._conv_forward(x.float(), self.weight.float(), self.bias)


HELD: dict[type, type] = {nn.Linear: _HeldLinear, nn.Conv1d: _HeldConv1d, nn.Conv2d: _HeldConv2d}


def hold(modules: Iterable[nn.Module], dtype: torch.dtype) -> None:
    """Hold what is frozen of linear and convolution layers in a dtype; a weight that several share stays one."""
    layers = list(_layers(modules, lambda weight: not weight.requires_grad))
    _convert(layers, dtype)
    compute_in_float32(layers)


def train_in_float32(module: nn.Module) -> None:
    """What is trained of linear and convolution layers becomes float32; peft makes LoRA like the layer it is on."""
    _convert(_layers([module], lambda weight: weight.requires_grad), torch.float32)


def compute_in_float32(modules: Iterable[nn.Module]) -> None:
    """Let layers whose weights are held in less compute in float32 outside autocast."""
    for layer in _layers(modules, lambda weight: weight.dtype != torch.float32):
        layer.__class__ = HELD.get(type(layer), type(layer))


def _layers(modules: Iterable[nn.Module], chosen: Callable[[Tensor], bool]) -> Iterator[nn.Module]:
    for module in modules:
        for layer in module.modules():
            if type(layer) in (*HELD, *HELD.values()) and chosen(layer.weight):  # type: ignore[arg-type]
                yield layer


def _convert(layers: Iterable[nn.Module], dtype: torch.dtype) -> None:
    """New parameters, since those of a plan's fake tensors cannot change their type in place."""
    sharing = defaultdict(set)
    for layer in layers:
        sharing[id(layer.weight)].add(layer)
    for group in sharing.values():
        weight: Tensor = next(iter(group)).weight  # type: ignore[assignment]
        if weight.dtype != dtype:
            converted = nn.Parameter(weight.detach().to(dtype), requires_grad=weight.requires_grad)
            for layer in group:
                layer.weight = converted
