"""Random numbers belong to samples."""

import pytest
import torch

from jdmctl.training.draws import SampleDraws


def test_a_sample_gets_its_numbers_wherever_and_whenever_it_is_drawn():
    whole = SampleDraws(0, "student", range(6))
    parts = SampleDraws(0, "student", [3, 4, 5]), SampleDraws(0, "student", [0, 1, 2])
    parts[0].uniform("time")  # another order of calls
    noise = torch.cat([part.normal("noise", (4, 8, 8)) for part in reversed(parts)])
    time = torch.cat([part.uniform("time") for part in reversed(parts)])
    assert torch.equal(whole.normal("noise", (4, 8, 8)), noise)
    assert torch.equal(whole.uniform("time"), time)
    assert whole.size == len(noise) == 6


@pytest.mark.parametrize(
    ("other", "name"),
    [
        (SampleDraws(1, "student", [7]), "noise"),
        (SampleDraws(2**32, "student", [7]), "noise"),  # torch's generator would take it for 0
        (SampleDraws(0, "fake_score", [7]), "noise"),
        (SampleDraws(0, "student", [8]), "noise"),
        (SampleDraws(0, "student", [7]), "another"),
    ],
    ids=["seed", "seed beyond 32 bits", "stream", "index", "name"],
)
def test_seed_stream_index_and_name_all_count(other, name):
    reference = SampleDraws(0, "student", [7]).normal("noise", (4,))
    assert not torch.equal(reference, other.normal(name, (4,)))


def test_moments_of_independent_numbers():
    """4000 samples: the mean of normals is 0 +- 0.016, their variance 1 +- 0.022, the mean of
    uniforms 0.5 +- 0.0046, and names correlate by 0 +- 0.016; bounds are four of these."""
    draws = SampleDraws(0, "student", range(4000))
    noise, other = draws.normal("noise", ()), draws.normal("other", ())
    time = draws.uniform("time")
    assert noise.dtype == time.dtype == torch.float32
    assert noise.mean().abs() < 0.064 and (noise.var() - 1).abs() < 0.09
    assert (noise * other).mean().abs() < 0.064
    assert (time.mean() - 0.5).abs() < 0.019 and 0 <= time.min() and time.max() < 1
