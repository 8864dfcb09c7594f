"""Better pictures without training: each search against what it must reach."""

from types import SimpleNamespace

import pytest
import torch

from jdmctl.search import best_of, refine_noise


def family(gain: float = 1.0):
    """Pictures are the noise, scaled, in [0, 1]; the prompt is a number that is added."""
    return SimpleNamespace(
        encode_prompt=lambda texts: torch.tensor([float(text) for text in texts]).view(-1, 1, 1, 1),
        student=SimpleNamespace(generate=lambda noise, prompt: gain * noise + prompt),
        codec=SimpleNamespace(decode=lambda latent: latent),
    )


def brightness(images, texts):
    return images.mean((1, 2, 3))


def test_the_best_of_each_caption_is_taken():
    noises = [torch.full((2, 3, 2, 2), value) for value in (0.1, 0.4, 0.2)]
    noises[0][1] = 0.5
    images = best_of(family(), brightness, ["0", "0.1"], noises)
    assert images[:, 0, 0, 0].tolist() == pytest.approx([0.4, 0.6])


def test_refined_noise_is_liked_more_and_the_best_met_is_kept():
    """The student is left alone; what is returned is never worse than the start; more steps are never worse."""
    noise = 0.1 * torch.rand(3, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    texts = ["0", "0.2", "0.4"]
    start = brightness(best_of(family(), brightness, texts, [noise]), texts)
    found = [brightness(refine_noise(family(), brightness, texts, noise, steps), texts) for steps in (1, 10, 40)]
    torch.testing.assert_close(found[0], start)
    assert (found[1] > start).all() and (found[2] >= found[1]).all()
    assert not noise.requires_grad


def test_without_a_reward_noise_climbs_to_its_typical_length():
    """log p(|z|) = (d - 1) log |z| - |z|^2 / 2 is greatest at |z| = sqrt(d - 1)."""
    met = []

    def indifferent(images, texts):
        met.append(images.detach().flatten(1).norm(dim=1))
        return 0 * images.sum((1, 2, 3))

    noise = 0.05 * torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    refine_noise(family(gain=0.01), indifferent, ["0.0"], noise, 400, learning_rate=1.0, regularisation=1.0)
    assert met[-1].item() / 0.01 == pytest.approx(191**0.5, rel=0.02)
