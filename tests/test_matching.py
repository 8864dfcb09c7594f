"""The fidelity gradient, by hand."""

import pytest
import torch

from jdmctl.objectives.matching import Matching

ALPHA, SIGMA = torch.tensor([0.6, 0.8]), torch.tensor([0.8, 0.6])


def latents(*rows: list[float]) -> torch.Tensor:
    return torch.tensor(rows).reshape(len(rows), 1, 1, -1)


def test_kl_weight_is_the_signal_to_noise_ratio():
    """alpha^2 / sigma^2 is 9/16 for the first sample, 16/9 for the second; fake - teacher is 1."""
    teacher = latents([1.0, -2.0], [0.0, 5.0])
    gradient = Matching("kl").gradient(torch.zeros(2, 1, 1, 2), teacher, teacher + 1, ALPHA, SIGMA)
    expected = latents([9 / 16, 9 / 16], [16 / 9, 16 / 9])
    torch.testing.assert_close(gradient, expected)


def test_normalized_weight_is_the_mean_distance_to_the_teacher():
    """|x0 - teacher| is (1, 3) and (2, 2), 2 on average; fake - teacher is (1, 4) and (-1, 0)."""
    x0 = latents([1.0, 1.0], [0.0, 0.0])
    teacher = latents([0.0, -2.0], [2.0, -2.0])
    fake = latents([1.0, 2.0], [1.0, -2.0])
    gradient = Matching("normalized").gradient(x0, teacher, fake, ALPHA, SIGMA)
    torch.testing.assert_close(gradient, latents([0.5, 2.0], [-0.5, 0.0]))


@pytest.mark.parametrize("weight", ["kl", "normalized"])
def test_a_matched_student_stays_where_it_is(weight):
    """fake = teacher means q_t = p_t; a sample on the teacher's own x0 must not divide by zero."""
    x0 = latents([1.0, 1.0], [0.0, 0.0])
    gradient = Matching(weight).gradient(x0, x0, x0, ALPHA, SIGMA)
    assert torch.equal(gradient, torch.zeros_like(x0))
