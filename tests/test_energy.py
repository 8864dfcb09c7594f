"""Distances, by hand."""

import math

import pytest
import torch

from jdmctl.objectives.energy import l1, l2, pseudo_huber

A = torch.tensor([[[[3.0, -1.0]]], [[[0.0, 0.0]]]])  # [2, 1, 1, 2]
B = torch.zeros_like(A)


def test_l1_and_l2_are_means_over_dimensions():
    assert l1(A, B).tolist() == [2.0, 0.0]
    assert l2(A, B).tolist() == [5.0, 0.0]


def test_pseudo_huber_is_quadratic_near_and_linear_far():
    """sqrt(3^2 + 4^2) - 4 = 1 and sqrt(1 + 16) - 4; near zero r^2 / (2 c), far away |r| - c."""
    assert pseudo_huber(A, B, 4.0)[0].item() == pytest.approx((1 + math.sqrt(17) - 4) / 2)
    assert pseudo_huber(1e-2 * A, B, 4.0)[0].item() == pytest.approx(5e-4 / 8, rel=1e-2)
    assert pseudo_huber(1e4 * A, B, 4.0)[0].item() == pytest.approx(2e4 - 4, rel=1e-4)
