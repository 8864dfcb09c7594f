"""How far the distribution of some pictures is from that of others, in a network's features."""

from collections.abc import Callable

import torch
from torch import Tensor

FeatureExtractor = Callable[[Tensor], Tensor]  # images [B, 3, H, W] in [0, 1] -> [B, D]


@torch.no_grad()
def features(extractor: FeatureExtractor, images: Tensor, batch_size: int = 64) -> Tensor:
    """float64 [N, D] features of images [N, 3, H, W] in [0, 1]."""
    return torch.cat([extractor(part).double() for part in images.split(batch_size)])


def frechet_distance(a: Tensor, b: Tensor, weights_b: Tensor | None = None) -> float:
    """|m_a - m_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^(1/2)) of features [N, D] and [M, D].

    The squared Wasserstein-2 distance between the Gaussians of equal mean and covariance (Dowson
    and Landau 1982; FID: Heusel et al. 2017, arXiv:1706.08500). With S = R^T R the trace of the
    root is the sum of the singular values of R_a R_b^T, so that no covariance is formed and no
    matrix root is taken: exact also when N < D. It is biased upwards for small N: compare only
    numbers made with the same N and M. `weights_b` [M], which sum to 1, make b another distribution.
    """
    mean_a, root_a = _moments(a)
    mean_b, root_b = _moments(b, weights_b)
    shift = (mean_a - mean_b).square().sum()
    overlap = torch.linalg.svdvals(root_a @ root_b.T).sum()
    return (shift + root_a.square().sum() + root_b.square().sum() - 2 * overlap).item()


def _moments(samples: Tensor, weights: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Mean [D] and an upper triangular R with R^T R the unbiased covariance."""
    samples = samples.double()
    if weights is None:
        weights = torch.full((len(samples),), 1 / len(samples), dtype=torch.float64)
    mean = weights @ samples
    centered = (samples - mean) * (weights / (1 - weights.square().sum())).sqrt()[:, None]
    return mean, torch.linalg.qr(centered, mode="r").R


def tilted_weights(scores: Tensor, mean: float) -> Tensor:
    """w_i in proportion to exp(score_i / beta), with beta such that sum w_i score_i = `mean`: [M], summing to 1.

    Of all reweightings that reach this mean it is the one nearest to the samples in KL (Csiszar 1975): what the true
    pictures would be if people only chose among them. 1 / beta is found by bisection, and is negative for a mean below
    the samples' own.

    Raises:
        ValueError: no weights give that mean: it is not between the least and the greatest score.
    """
    scores = scores.double()
    if not scores.min() < mean < scores.max():
        raise ValueError(f"the mean {mean} is not between {scores.min():.4g} and {scores.max():.4g}")
    span = 700 / (scores.max() - scores.min()).item()
    low, high = -span, span
    for _ in range(200):
        middle = (low + high) / 2
        weights = (middle * (scores - scores.max())).softmax(0)
        low, high = (middle, high) if weights @ scores < mean else (low, middle)
    return weights


def kernel_distance(a: Tensor, b: Tensor) -> float:
    """Squared maximum mean discrepancy of features [N, D], [M, D], kernel (x.y / D + 1)^3.

    KID (Binkowski et al. 2018, arXiv:1801.01401), the unbiased estimate over all pairs: its mean
    is 0 where the distributions are equal, whatever N, so single values may be negative.
    """
    return kernel_statistic(a, b)(torch.arange(len(a)))


def kernel_statistic(a: Tensor, b: Tensor) -> Callable[[Tensor], float]:
    """`kernel_distance(a[chosen], b)` as a function of `chosen`: for resampling, the kernels computed once."""
    a, b = a.double(), b.double()
    within, across = _kernel(a, a), _kernel(a, b).mean(1)
    constant = _mean_of_pairs(_kernel(b, b))

    def statistic(chosen: Tensor) -> float:
        return (_mean_of_pairs(within[chosen][:, chosen]) + constant - 2 * across[chosen].mean()).item()

    return statistic


def nearest(images: Tensor, others: Tensor) -> Tensor:
    """Root mean square difference of each image [N, C, H, W] to the most similar of the others [M, C, H, W]: [N].

    Far below what held-out true pictures have, it is the mark of copies.
    """
    distances = torch.cdist(images.flatten(1), others.flatten(1)).amin(1)
    return distances / images[0].numel() ** 0.5


def _kernel(a: Tensor, b: Tensor) -> Tensor:
    return (a @ b.T / a.shape[1] + 1) ** 3  # [N, M]


def _mean_of_pairs(kernel: Tensor) -> Tensor:
    """Mean over pairs of two different samples, of a kernel [N, N]."""
    n = len(kernel)
    return (kernel.sum() - kernel.trace()) / (n * (n - 1))
