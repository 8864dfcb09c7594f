"""Better pictures from a student as it is, by more passes for each: what training on a reward has to beat."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

Liking = Callable[[Tensor, Sequence[str]], Tensor]  # images [B, 3, H, W], captions -> [B]


@torch.no_grad()
def best_of(family: Any, liking: Liking, texts: Sequence[str], noises: Sequence[Tensor]) -> Tensor:
    """Of each caption's pictures, one from each of `noises` [B, C, h, w], the one that is liked most: [B, 3, H, W]."""
    prompt = family.encode_prompt(texts)
    drawn = torch.stack([_draw(family, noise, prompt) for noise in noises])  # [n, B, 3, H, W]
    liked = torch.stack([liking(images, texts) for images in drawn])  # [n, B]
    return drawn[liked.argmax(0), torch.arange(len(texts), device=liked.device)]


def refine_noise(
    family: Any,
    liking: Liking,
    texts: Sequence[str],
    noise: Tensor,
    num_steps: int = 50,
    learning_rate: float = 5.0,
    regularisation: float = 0.01,
    max_grad_norm: float = 0.1,
) -> Tensor:
    """The most liked picture met while noise [B, C, h, w] climbs the reward: ReNO (Eyring et al. 2024,
    arXiv:2406.04312).

    Gradient ascent with momentum 0.9 on reward + regularisation log p(|noise|), p being the law of the length of
    normal noise (chi with d = C h w degrees: (d - 1) log |noise| - |noise|^2 / 2), each sample's gradient clipped.
    Steps, regularisation and clipping are those of the authors' code. One pass forth and back a step; the student
    stays as it is.
    """
    prompt = family.encode_prompt(texts)
    noise = noise.clone().requires_grad_()
    optimizer = torch.optim.SGD([noise], lr=learning_rate, momentum=0.9, nesterov=True)
    best, most = torch.empty(0), noise.new_full((len(noise),), -torch.inf)
    dimensions = noise[0].numel()
    for _ in range(num_steps):
        images = _draw(family, noise, prompt)
        liked = liking(images, texts)
        with torch.no_grad():
            better = (liked > most).view(-1, 1, 1, 1)
            best = torch.where(better, images, best) if len(best) else images.clone()
            most = torch.maximum(liked, most)
        length = noise.flatten(1).norm(dim=1)
        typical = (dimensions - 1) * length.log() - length.square() / 2
        (gradient,) = torch.autograd.grad((liked + regularisation * typical).sum(), noise)
        norm = gradient.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
        noise.grad = -gradient * (max_grad_norm / norm.clamp(min=max_grad_norm))
        optimizer.step()
    return best.detach()


def _draw(family: Any, noise: Tensor, prompt: Any) -> Tensor:
    return family.codec.decode(family.student.generate(noise, prompt)).clamp(0, 1)
