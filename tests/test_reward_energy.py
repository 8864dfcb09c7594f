"""A reward as the energy of a step: minus it, saturated, and seen through random windows."""

import pytest
import torch

from jdmctl.errors import BadInputError
from jdmctl.rewards.closed_form import Brightness
from jdmctl.training.draws import SampleDraws
from jdmctl.training.energies import RewardEnergy, random_window
from jdmctl.types import Batch


def batch(size, texts=(), seed=0, first=0):
    return Batch(None, {}, SampleDraws(seed, "train", range(first, first + size)), texts)


class Length:
    """Brightness times the number of letters."""

    name = "length"
    reads_text = True

    def __call__(self, image, texts):
        return Brightness()(image) * torch.tensor([len(text) for text in texts])


def test_the_energy_is_minus_the_reward():
    image = torch.rand(3, 3, 8, 8, requires_grad=True)
    energy = RewardEnergy(Length())
    assert energy.name == "length"
    values = energy(image, batch(3, ("a", "bb", "ccc")))
    torch.testing.assert_close(values, -Length()(image, ("a", "bb", "ccc")))
    (gradient,) = torch.autograd.grad(values[2], image)
    assert (gradient[2] < 0).all() and not gradient[:2].any()


def test_enough_is_enough():
    """Brightness 0.2 and 0.8 with a threshold of 0.5: relu(0.5 - R) is 0.3 and 0, the latter without gradient."""
    image = torch.tensor([0.2, 0.8]).view(2, 1, 1, 1).repeat(1, 3, 4, 4).requires_grad_()
    values = RewardEnergy(Brightness(), threshold=0.5)(image, batch(2))
    torch.testing.assert_close(values, torch.tensor([0.3, 0.0]))
    (gradient,) = torch.autograd.grad(values.sum(), image)
    assert gradient[0].any() and not gradient[1].any()


def test_captions_must_be_there():
    with pytest.raises(BadInputError, match="the reward length reads captions, the data has none"):
        RewardEnergy(Length())(torch.rand(2, 3, 4, 4), batch(2))


@pytest.mark.parametrize("share", [0, -0.1, 1.5])
def test_shares_that_are_none(share):
    with pytest.raises(BadInputError, match="brightness: crop is"):
        RewardEnergy(Brightness(), crop=share)


def test_windows_are_pieces_of_their_own_picture():
    """A picture whose red is its row and green its column, in 1/10: a window of 4 of 10 px is a block of it."""
    rows, columns = torch.meshgrid(torch.arange(10.0), torch.arange(10.0), indexing="ij")
    image = torch.stack([rows, columns, rows]).expand(200, 3, 10, 10) / 10
    windows = random_window(image, 0.4, batch(200).draws)
    assert windows.shape == (200, 3, 4, 4)
    top, left = (windows[:, 0, 0, 0] * 10).round(), (windows[:, 1, 0, 0] * 10).round()
    torch.testing.assert_close(windows[:, 0, 3, 2] * 10, top + 3)
    torch.testing.assert_close(windows[:, 1, 3, 2] * 10, left + 2)
    for first in (top, left):  # each of the 7 places, about 200 / 7 = 29 times
        counts = first.long().bincount(minlength=7)
        assert len(counts) == 7 and counts.min() > 10


def test_windows_belong_to_samples():
    """A sample's window does not depend on its batch; a whole window is the picture itself."""
    image = torch.rand(6, 3, 9, 12)
    together = random_window(image, 0.5, batch(6).draws)
    apart = torch.cat(
        [random_window(image[:2], 0.5, batch(2).draws), random_window(image[2:], 0.5, batch(4, first=2).draws)]
    )
    assert torch.equal(together, apart)
    assert random_window(image, 1, batch(6).draws) is image


def test_a_window_has_a_gradient():
    image = torch.rand(2, 3, 8, 8, requires_grad=True)
    RewardEnergy(Brightness(), crop=0.5)(image, batch(2)).sum().backward()
    assert ((image.grad != 0).sum((1, 2, 3)) == 3 * 4 * 4).all()
