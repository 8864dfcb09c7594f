"""Classifier-free guidance as a denoiser."""

import pytest
import torch

from jdmctl.objectives.guidance import Guided

X_T, T = torch.ones(2, 1, 1, 1), torch.zeros(2)


class Recorder:
    """A denoiser that answers prompt + control and remembers its calls."""

    def __init__(self) -> None:
        self.calls: list[tuple] = []

    def __call__(self, x_t, t, prompt, controls=None):
        self.calls.append((prompt, controls))
        return x_t * (prompt + (controls or {}).get("depth", 0))


@pytest.mark.parametrize("empty", [1.0, lambda size: 0.5 * size], ids=["prompt", "callable"])
def test_guidance_is_linear_in_the_scale(empty):
    """empty -> 1 and prompt -> 4: the result is 1 + 3 scale, also below 0 and above 1."""
    for scale in (-1.0, 0.0, 1.0, 2.5):
        x0 = Guided(Recorder(), scale, empty)(X_T, T, 4.0)
        assert x0.flatten().tolist() == [1 + 3 * scale] * 2


def test_scale_one_calls_once_and_others_twice():
    for scale, num_calls in ((1.0, 1), (1.5, 2)):
        denoiser = Recorder()
        Guided(denoiser, scale, 0.0)(X_T, T, 4.0)
        assert len(denoiser.calls) == num_calls


def test_controls_reach_both_calls():
    denoiser, controls = Recorder(), {"depth": torch.ones(1)}
    Guided(denoiser, 2.0, 0.0)(X_T, T, 4.0, controls)
    assert denoiser.calls == [(4.0, controls), (0.0, controls)]
