"""Precision and recall: what share of each of two sets lies within the other's reach, in a network's features.

A point lies among others if one of them is no further from it than from its own k-th nearest neighbour (Kynkäänniemi et
al. 2019, arXiv:1904.06991). For generated features a [N, D] and true ones b [M, D] the share of a among b is precision
(fidelity), and that of b among a is recall (variety). Equal sets have 1 and 1.
"""

from collections.abc import Callable

import torch
from torch import Tensor

NEIGHBOURS = 3  # as the paper has it


def among(a: Tensor, b: Tensor, k: int = NEIGHBOURS) -> Tensor:
    """Whether each of a [N, D] lies among b [M, D], bool [N]: precision is the mean.

    Raises:
        ValueError: b has no k others for each of its points.
    """
    _require_others(b, k)
    a, b = a.double(), b.double()
    return (torch.cdist(a, b) <= _reach(torch.cdist(b, b), k)).any(1)


def recall_statistic(a: Tensor, b: Tensor, k: int = NEIGHBOURS) -> Callable[[Tensor], float]:
    """The share of b among a[chosen] as a function of `chosen`: for resampling, the distances computed once.

    A point that is chosen twice is its own neighbour, as resampling has it; so recall falls, and an interval of it is
    to be centred. Raises ValueError as `among` does, of a.
    """
    _require_others(a, k)
    a, b = a.double(), b.double()
    apart, within = torch.cdist(a, b), torch.cdist(a, a)  # [N, M], [N, N]

    def statistic(chosen: Tensor) -> float:
        some = chosen.unique()
        reach = _reach(within[some][:, chosen], k)
        return (apart[some] <= reach[:, None]).any(0).double().mean().item()

    return statistic


def _require_others(points: Tensor, k: int) -> None:
    if len(points) <= k:
        raise ValueError(f"a set of {len(points)} points has no {k} neighbours for each point")


def _reach(distances: Tensor, k: int) -> Tensor:
    """Of points to others and to themselves [n, N]: to the k-th nearest other, [n]."""
    return distances.kthvalue(k + 1, dim=1).values  # the nearest is itself
