"""Means of what a loop logs, kept on the device until somebody looks: reading a number stops a GPU, adding does not."""

from __future__ import annotations

import math
import resource
import sys
import time
from collections.abc import Mapping
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor


class Meter:
    """Sums of named values since the last reading, and the first step at which a scalar was not finite.

    Of a vector, a histogram, each entry has a mean of its own over the times that it was not nan.
    """

    def __init__(self, accelerator: Accelerator):
        self._accelerator = accelerator
        self._totals: dict[str, Tensor] = {}  # [2, ...]: sums, and of how many
        self._first_bad = torch.full((), torch.inf, device=accelerator.device)

    def add(self, step: int, values: Mapping[str, Tensor]) -> None:
        for name, value in values.items():
            value = value.detach().float()
            if value.ndim:
                total = torch.stack([value.nan_to_num(), ~value.isnan()])
            else:
                total = torch.stack([value, torch.ones_like(value)])
                bad = torch.where(value.isfinite(), torch.inf, float(step))
                self._first_bad = torch.minimum(self._first_bad, bad)
            self._totals[name] = self._totals[name] + total if name in self._totals else total

    def read(self) -> tuple[dict[str, Any], int | None]:
        """The means over all processes since the last reading, and the first step that was not finite, if any.

        Of a vector a list, None where there was nothing.
        """
        totals = [total.reshape(2, -1) for total in self._totals.values()]
        nothing = torch.empty(2, 0, device=self._first_bad.device)
        sums, counts = self._accelerator.reduce(torch.cat([nothing, *totals], 1), "sum")
        first_bad = -self._accelerator.reduce(-self._first_bad, "max")
        *values, bad = torch.cat([sums / counts, first_bad.reshape(1)]).tolist()
        means: dict[str, Any] = {}
        for name, total in self._totals.items():
            own, values = values[: total[0].numel()], values[total[0].numel() :]
            means[name] = [None if math.isnan(mean) else mean for mean in own] if total.ndim > 1 else own[0]
        self._totals = {}
        return means, None if math.isinf(bad) else int(bad)


def peak_memory(device: torch.device) -> int:
    """The most bytes held at once so far: by tensors on a GPU, by the whole process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024  # macOS counts bytes, Linux kibibytes
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


class Pace:
    """Seconds a step, as a moving mean over what was logged."""

    def __init__(self) -> None:
        self._last = time.monotonic()
        self._seconds: float | None = None

    def elapsed(self) -> float:
        """Seconds since the last call of measure or restart."""
        return time.monotonic() - self._last

    def measure(self, num_steps: int) -> float:
        """Seconds a step, given that `num_steps` were done since the last call or restart."""
        now = time.monotonic()
        if num_steps:
            seconds = (now - self._last) / num_steps
            self._seconds = seconds if self._seconds is None else 0.5 * (self._seconds + seconds)
        self._last = now
        return self._seconds or float("nan")

    def restart(self) -> None:
        """What happened since the last call (a validation, a save) was not training."""
        self._last = time.monotonic()
