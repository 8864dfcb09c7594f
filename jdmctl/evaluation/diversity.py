"""How much is left to chance: attributes that captions leave open, and the spread over seeds."""

import torch
from torch import Tensor

from jdmctl.evaluation.prompts import OPEN, Classes


def entropy(classes: Tensor) -> float:
    """-sum p log p in nats of the empirical distribution of class indices, long [n]."""
    p = torch.bincount(classes).double() / len(classes)
    return torch.special.entr(p).sum().item()


def open_entropy(shown: Classes, stated: Classes) -> dict[str, float]:
    """Attribute -> entropy of what pictures show where their captions leave it open.

    A generator that fills every gap with its favourite has 0. Attributes that are always stated
    are left out.
    """
    is_open = {name: classes == OPEN for name, classes in stated.items()}
    return {name: entropy(shown[name][gaps]) for name, gaps in is_open.items() if gaps.any()}


def seed_distance(features: Tensor) -> Tensor:
    """Mean Euclidean distance between seeds of one condition: features [S, N, D] -> [N].

    S >= 2 seeds of the same N prompts and conditions. 0 is a generator that ignores its noise.
    """
    num_seeds = len(features)
    by_condition = features.transpose(0, 1).double()  # [N, S, D]
    distances = torch.cdist(by_condition, by_condition)  # [N, S, S], 0 on the diagonal
    return distances.sum((1, 2)) / (num_seeds * (num_seeds - 1))
