"""The Frechet distance in the shipped classifier's features grows with damage to pictures, of each kind."""

import pytest
import torch
from kornia.enhance import adjust_hue
from kornia.filters import gaussian_blur2d

from jdmctl.evaluation.fidelity import frechet_distance
from jdmctl.tinyworld.judge import Judge
from jdmctl.tinyworld.source import scenes
from jdmctl.tinyworld.world import SHIPPED


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """300 scenes, and what measures their distance to 300 others."""
    pictures = scenes("val", 600, tmp_path_factory.mktemp("scenes"))
    images, judge = pictures.image(slice(None)), Judge.load(SHIPPED)
    reference = judge.features(images[300:])
    return images[:300], lambda damaged: frechet_distance(judge.features(damaged), reference), pictures


def blurred(images, sigma):
    return gaussian_blur2d(images, (9, 9), (sigma, sigma)) if sigma else images


def noisy(images, deviation):
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    return (images + deviation * noise).clamp(0, 1)


def with_other_hue(images, radians):
    return adjust_hue(images, radians)


@pytest.mark.parametrize(
    ("damage", "amounts"),
    [(blurred, (0, 0.5, 1.0, 2.0)), (noisy, (0, 0.05, 0.1, 0.2)), (with_other_hue, (0.0, 0.2, 0.5, 1.0))],
)
def test_it_rises_with(world, damage, amounts):
    images, distance, _ = world
    found = [distance(damage(images, amount)) for amount in amounts]
    assert found == sorted(found)
    assert found[-1] > 3 * found[0]


def test_it_rises_as_modes_go(world):
    """Without the pictures of one shape, of two, of three: as many others in their place."""
    images, distance, pictures = world
    shape = pictures.truth[:300, :3].float()
    assert shape.sum() > 100
    found = []
    for removed in range(4):
        kept = images[~shape[:, :removed].any(1)]
        found.append(distance(kept[torch.arange(300) % len(kept)]))
    assert found == sorted(found)
    assert found[-1] > 1.5 * found[0]
