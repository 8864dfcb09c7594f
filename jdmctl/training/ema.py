"""Exponential moving average of trained parameters."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class MovingAverage:
    """mean <- decay * mean + (1 - decay) * parameter, after every update.

    The decay starts small, min(decay, (1 + n) / (10 + n)) at update n, so that a short run's average is not its start.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], decay: float, device: torch.device | str | None = None):
        """`device` is where the average is kept, and the parameters' own values while it is applied."""
        self.parameters = tuple(parameters)
        self.decay = decay
        self.num_updates = 0
        self.device = device
        self.values = self._own()
        self._passage: Tensor | None = None  # between two devices, as large as the largest of them

    @torch.no_grad()
    def update(self) -> None:
        if not self.parameters:
            return
        decay = min(self.decay, (1 + self.num_updates) / (10 + self.num_updates))
        if all(p.device == value.device for p, value in zip(self.parameters, self.values, strict=True)):
            torch._foreach_lerp_(self.values, self.parameters, 1 - decay)
        else:
            for p, value in zip(self.parameters, self.values, strict=True):
                value.lerp_(self._fetched(p), 1 - decay)
        self.num_updates += 1

    @torch.no_grad()
    def copy_to_parameters(self) -> None:
        for parameter, value in zip(self.parameters, self.values, strict=True):
            parameter.copy_(value)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The parameters hold their averages inside the block and their own values again after it."""
        own = self._own()
        self.copy_to_parameters()
        try:
            yield
        finally:
            with torch.no_grad():
                for parameter, value in zip(self.parameters, own, strict=True):
                    parameter.copy_(value)

    def _fetched(self, parameter: nn.Parameter) -> Tensor:
        """It where the average is, laid out alike, until the next is asked for.

        One pinned buffer for all, so that no update gets memory anew for every weight.
        """
        if self._passage is None:
            size = max(p.numel() for p in self.parameters)
            is_pinned = parameter.device.type == "cuda"
            self._passage = torch.empty(size, dtype=parameter.dtype, device=self.device, pin_memory=is_pinned)
        return self._passage.as_strided(parameter.shape, parameter.stride()).copy_(parameter)

    def _own(self) -> list[Tensor]:
        return [p.detach().to(self.device or p.device, copy=True) for p in self.parameters]
