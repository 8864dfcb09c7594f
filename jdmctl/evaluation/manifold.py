"""Precision and recall: what share of each of two sets lies within the other's reach, in a network's features."""

import torch
from torch import Tensor

NEIGHBOURS = 3  # as the paper has it


def precision_and_recall(a: Tensor, b: Tensor, k: int = NEIGHBOURS) -> tuple[Tensor, Tensor]:
    """Whether each of a lies among b, bool [N], and whether each of b lies among a, bool [M].

    For generated features a [N, D] and true ones b [M, D] the means are precision (fidelity) and recall (variety) of
    Kynkäänniemi et al. 2019, arXiv:1904.06991: a point lies among others if one of them is no further from it than from
    its own k-th nearest neighbour. Equal sets have 1 and 1.

    Raises:
        ValueError: a set has no k others for each of its points.
    """
    if min(len(a), len(b)) <= k:
        raise ValueError(f"sets of {len(a)} and {len(b)} points have no {k} neighbours for each point")
    a, b = a.double(), b.double()
    apart = torch.cdist(a, b)  # [N, M]
    return (apart <= _reach(b, k)).any(1), (apart <= _reach(a, k)[:, None]).any(0)


def _reach(points: Tensor, k: int) -> Tensor:
    """Distance of each point to its k-th nearest other, [N]."""
    return torch.cdist(points, points).kthvalue(k + 1, dim=1).values  # the nearest is itself
