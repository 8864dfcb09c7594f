"""Numbers with their uncertainty: percentile bootstrap intervals (Efron 1979), seeded."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Estimate:
    """A value, its interval and the number of samples behind it."""

    value: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        return f"{self.value:.4g} [{self.low:.4g}, {self.high:.4g}]"


def bootstrap(
    statistic: Callable[[Tensor], float],
    n: int,
    *,
    centered: bool = False,
    resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Estimate:
    """Interval of `statistic(indices)`, a function of which of the n samples are in, long [n].

    A sample is what is independent of the others: a scene with all its seeds, not a picture.
    `centered` moves the interval so that its resamples have their median at the value: for
    distances between distributions, which repeated samples push up. Resamples of which the
    statistic is nan are left out; of one that is nan itself, so is the interval.
    """
    generator = torch.Generator().manual_seed(seed)
    value = statistic(torch.arange(n))
    draws = (torch.randint(n, (n,), generator=generator) for _ in range(resamples))
    values = torch.tensor([statistic(indices) for indices in draws], dtype=torch.float64)
    values = values[~values.isnan()]
    if math.isnan(value) or not len(values):
        return Estimate(value, value, value, n)
    if centered:
        values += value - values.median()
    tail = (1 - confidence) / 2
    low, high = values.quantile(torch.tensor([tail, 1 - tail], dtype=torch.float64)).tolist()
    return Estimate(value, min(low, value), max(high, value), n)  # a skewed or constant sample


def mean(values: Tensor, **options) -> Estimate:
    """Mean of values [n]; options as for `bootstrap`."""
    values = values.double()
    return bootstrap(lambda chosen: values[chosen].mean().item(), len(values), **options)


def ratio(above: Tensor, below: Tensor, **options) -> Estimate:
    """mean(above) / mean(below) of two methods on the same samples [n], resampled together.

    What makes a sample hard for both methods cancels, so the interval is narrower than that of
    either mean.
    """
    pairs = torch.stack([above.double(), below.double()])  # [2, n]

    def statistic(chosen: Tensor) -> float:
        top, bottom = pairs[:, chosen].mean(1)
        return (top / bottom).item()

    return bootstrap(statistic, len(above), **options)
