"""The denoising loss and its weights, by hand."""

import pytest
import torch

from jdmctl.diffusion.prediction import from_x0
from jdmctl.objectives.denoising import denoising_loss

ALPHA, SIGMA = torch.tensor([0.6, 0.96]), torch.tensor([0.8, 0.28])  # snr 0.5625 and 11.76


@pytest.mark.parametrize(
    ("weight", "expected"),
    [
        ("x0", [2.5, 2.5]),
        ("epsilon", [2.5 * 0.5625, 2.5 * 11.755]),
        ("snr_clamped", [2.5 * 0.5625, 12.5]),
    ],
)
def test_weights(weight, expected):
    """An error of (1, 2) has mean square 2.5; the second sample's snr of 11.76 is clamped to 5."""
    x0 = torch.zeros(2, 1, 1, 2)
    prediction = torch.tensor([1.0, -2.0]).expand(2, 1, 1, 2)
    loss = denoising_loss(prediction, x0, ALPHA, SIGMA, weight)
    assert loss.tolist() == pytest.approx(expected, rel=1e-3)


def test_epsilon_weight_is_the_squared_error_of_the_noise():
    generator = torch.Generator().manual_seed(0)
    x0, x_t, prediction = torch.randn(3, 2, 4, 8, 8, generator=generator)
    noise = [from_x0("epsilon", x, x_t, ALPHA, SIGMA) for x in (x0, prediction)]
    expected = (noise[0] - noise[1]).square().flatten(1).mean(1)
    torch.testing.assert_close(denoising_loss(prediction, x0, ALPHA, SIGMA, "epsilon"), expected)
