"""Bradley-Terry: P(a is preferred to b) = sigmoid(r(a) - r(b)), with r linear in features.

(Bradley & Terry 1952, doi:10.2307/2334029.) No constant: which side a picture is shown on must not matter.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from jdmctl.evaluation.bootstrap import Estimate, bootstrap
from jdmctl.feedback.check import wilson

WEIGHT_DECAYS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
_FEW = 10  # groups


def fit_weights(differences: Tensor, labels: Tensor, weight_decay: float) -> Tensor:
    """w [D] that minimises mean -log P(labels) + weight_decay / 2 |w scale|^2, by L-BFGS in float64.

    `differences` [N, D] are features of a minus those of b, `labels` [N] in [0, 1] the share that
    prefers a; a tie is half of each. The scale of each feature is its root mean square, so that the
    decay is blind to units. The problem is convex: neither start nor order matters.
    """
    values, target = differences.double(), labels.double()
    scale = values.square().mean(0).sqrt().clamp(min=1e-12)  # [D]
    values = values / scale
    weights = torch.zeros(values.shape[1], dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [weights], max_iter=300, tolerance_grad=1e-7, tolerance_change=1e-10, line_search_fn="strong_wolfe"
    )

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = functional.binary_cross_entropy_with_logits(values @ weights, target)
        value = value + weight_decay / 2 * weights.square().sum()
        value.backward()
        return value

    optimizer.step(loss)
    return weights.detach() / scale


def choose_weight_decay(
    differences: Tensor, labels: Tensor, groups: Tensor, seed: int = 0, folds: int = 5
) -> tuple[float, dict[float, float]]:
    """The decay with the least log-loss on folds that share no group (prompt), and the loss of each.

    `groups` [N] are integers. With one group there is nothing to choose by: the strongest is taken.
    """
    members = groups.unique()
    order = torch.randperm(len(members), generator=torch.Generator().manual_seed(seed))
    fold_of = torch.empty(int(members.max()) + 1, dtype=torch.long)
    fold_of[members[order]] = torch.arange(len(members)) % folds
    fold = fold_of[groups]  # [N]
    losses: dict[float, float] = {}
    for decay in WEIGHT_DECAYS if len(members) > 1 else ():
        total = 0.0
        for number in fold.unique():
            out = fold == number
            weights = fit_weights(differences[~out], labels[~out], decay)
            total += log_loss(differences[out].double() @ weights, labels[out]).item() * int(out.sum())
        losses[decay] = total / len(labels)
    return (min(losses, key=lambda decay: losses[decay]) if losses else WEIGHT_DECAYS[-1]), losses


def log_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean -log P(labels); log 2 = 0.693 for a coin."""
    return functional.binary_cross_entropy_with_logits(logits.double(), labels.double())


def accuracy(logits: Tensor, labels: Tensor, groups: Tensor, seed: int = 0) -> Estimate:
    """Share of choices foretold, [N] each; ties are left out, indifference counts half.

    The interval resamples groups (prompts): choices on one prompt are not independent. Where there are few, or all
    agree, resamples know too little of others: it is then no narrower than Wilson's of as many choices as groups.
    """
    decided = labels != 0.5
    agree = ((logits.sign() * (labels - 0.5).sign() + 1) / 2)[decided].double()
    if not len(agree):
        return Estimate(0.5, 0.0, 1.0, 0)
    _, index = groups[decided].unique(return_inverse=True)
    size = int(index.max()) + 1
    right = torch.zeros(size, dtype=torch.float64).index_add_(0, index, agree)
    count = torch.zeros(size, dtype=torch.float64).index_add_(0, index, torch.ones_like(agree))
    found = bootstrap(lambda chosen: (right[chosen].sum() / count[chosen].sum()).item(), size, seed=seed)
    if size >= _FEW and found.low < found.high:
        return found
    score = wilson(found.value * size, size)
    return Estimate(found.value, min(found.low, score.low), max(found.high, score.high), size)


def reliability(logits: Tensor, labels: Tensor, bins: int = 5) -> tuple[float, list[dict[str, float]]]:
    """Expected calibration error, and a row a bin: foretold and observed share of the likelier picture.

    Folded to the likelier side, probabilities lie in [0.5, 1], and which picture was called a does not
    matter. The error is the mean distance of the two shares, weighted by pairs (Guo et al. 2017,
    arXiv:1706.04599); small samples push it up. A tie counts as half.
    """
    foretold = logits.double().abs().sigmoid()
    observed = torch.where(logits >= 0, labels, 1 - labels).double()
    edges = torch.linspace(0.5, 1, bins + 1, dtype=torch.float64)
    number = torch.bucketize(foretold, edges[1:-1], right=True)
    rows: list[dict[str, float]] = []
    error = 0.0
    for index in range(bins):
        inside = number == index
        count = int(inside.sum())
        if not count:
            continue
        mean, share = foretold[inside].mean().item(), observed[inside].mean().item()
        rows.append({"from": edges[index].item(), "to": edges[index + 1].item(), "foretold": mean,
                     "observed": share, "pairs": count})  # fmt: skip
        error += count / len(labels) * abs(mean - share)
    return error, rows


def group_numbers(names: Sequence[Hashable]) -> Tensor:
    """long [N]: the same name, the same number."""
    numbers = {name: number for number, name in enumerate(dict.fromkeys(names))}
    return torch.tensor([numbers[name] for name in names])
