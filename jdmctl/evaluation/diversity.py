"""How much is left to chance: attributes that captions leave open, and the spread over seeds."""

import torch
from torch import Tensor


def entropy(classes: Tensor) -> float:
    """-sum p log p in nats of the empirical distribution of class indices, long [n]."""
    p = torch.bincount(classes).double() / len(classes)
    return torch.special.entr(p).sum().item()


def seed_distance(features: Tensor) -> Tensor:
    """Mean Euclidean distance between seeds of one condition: features [S, N, D] -> [N].

    S >= 2 seeds of the same N prompts and conditions. 0 is a generator that ignores its noise.
    """
    num_seeds = len(features)
    by_condition = features.transpose(0, 1).double()  # [N, S, D]
    distances = torch.cdist(by_condition, by_condition)  # [N, S, S], 0 on the diagonal
    return distances.sum((1, 2)) / (num_seeds * (num_seeds - 1))
