"""Distances of sets of pictures, held against torch-fidelity's of the same features."""

import importlib

import pytest
import torch

from jdmctl.evaluation.fidelity import frechet_distance, kernel_distance
from jdmctl.evaluation.manifold import among, recall_statistic


@pytest.fixture(scope="module")
def features() -> tuple[torch.Tensor, torch.Tensor]:
    """Two sets of 120 in 8 dimensions, of other means and spreads."""
    a, b = torch.randn(2, 120, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return a * torch.linspace(0.5, 1.5, 8) + 0.3, b


def library(name: str):
    """A module of torch-fidelity's; skips where the extra `metrics` is not installed."""
    pytest.importorskip("torch_fidelity")
    return importlib.import_module(f"torch_fidelity.{name}")


def test_frechet_distance(features):
    fid = library("metric_fid")
    moments = [fid.fid_features_to_statistics(one) for one in features]
    expected = fid.fid_statistics_to_metric(*moments, verbose=False)["frechet_inception_distance"]
    assert expected > 0.5
    assert frechet_distance(*features) == pytest.approx(expected, rel=1e-9)


def test_kernel_distance(features):
    """One subset of all samples, in another order, is the estimate over all pairs."""
    kid = library("metric_kid")
    all_of_it = {"kid_subsets": 1, "kid_subset_size": 120, "kid_kernel": "poly", "verbose": False}
    expected = kid.kid_features_to_metric(*features, **all_of_it)["kernel_inception_distance_mean"]
    assert kernel_distance(*features) == pytest.approx(expected, rel=1e-9)
    assert expected > 0.01


def test_precision_and_recall(features):
    """Both of the third nearest neighbour, the first set as drawn, the second as true."""
    found = library("metric_prc").prc_features_to_metric(*features, verbose=False)
    drawn, true = features
    assert among(drawn, true).double().mean().item() == pytest.approx(found["precision"])
    assert recall_statistic(drawn, true)(torch.arange(120)) == pytest.approx(found["recall"])
    assert 0.1 < found["recall"] < found["precision"] < 1 or 0.1 < found["precision"] < found["recall"] < 1
