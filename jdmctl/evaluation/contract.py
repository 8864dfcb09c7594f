"""Is a student called as it wants to be? Measured, not read: what it draws is held against its teacher's own samples.

Called at a time that is far from its own, or read as another kind of prediction, a student takes noise for something
that it is not, and what comes out has too little detail or is noise. That shows in the spectrum of its latents, for
which the teacher's samples, drawn in many steps, are the measure. Times near its own may do as well: the embedded
student is as good at 0.8 as at its own 1, and three times as far off at 0.5.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from jdmctl.types import Prompt

NUM_BANDS = 6
TOLERANCE = 0.1  # distances closer than that are alike: a tenth of the power, in the root mean square


def spectrum(latents: Tensor) -> Tensor:
    """Mean log power [C, NUM_BANDS] of latents [B, C, h, w] in rings of equal width around frequency 0."""
    power = torch.fft.fft2(latents.float(), norm="ortho").abs().square().mean(0)  # [C, h, w]
    rows, columns = (torch.fft.fftfreq(size, device=latents.device) for size in latents.shape[-2:])
    radius = (rows[:, None].square() + columns[None].square()).sqrt()  # up to 0.71
    ring = (radius / 0.5 * NUM_BANDS).long().clamp(max=NUM_BANDS - 1)
    means = [power[:, ring == number].mean(1) for number in range(NUM_BANDS)]
    return torch.stack(means, dim=1).clamp(min=1e-12).log()


def spectral_distance(latents: Tensor, reference: Tensor) -> float:
    """Root mean square difference of two spectra: 0 for alike, 0.7 where power is twice or half everywhere."""
    return (spectrum(latents) - spectrum(reference)).square().mean().sqrt().item()


def distance(latents: Tensor, reference: Tensor) -> float:
    """Spectral distance, and how far the channels' means are apart in units of the reference's standard deviation.

    The second tells a picture from its negative: v, taken for x0 at pure noise, is one.
    """
    means = [x.float().mean((0, 2, 3)) for x in (latents, reference)]
    apart = (means[0] - means[1]).square().mean().sqrt() / reference.float().std()
    return spectral_distance(latents, reference) + apart.item()


Call = tuple[float, str]  # the time in [0, 1], and what the raw output is taken for


@torch.no_grad()
def distances(
    student: Any, noise: Tensor, prompt: Prompt, reference: Tensor, calls: Sequence[Call]
) -> dict[Call, float]:
    """Distance to `reference` of what the student makes of `noise` in one call of each kind.

    `noise` [B, C, h, w] is N(0, 1); `reference` are the teacher's samples for the same prompts.
    """
    own = student.student_time, student.prediction
    found = {}
    try:
        for call in calls:
            student.student_time, student.prediction = call
            found[call] = distance(student.generate(noise, prompt), reference)
    finally:
        student.student_time, student.prediction = own
    return found


def other_calls(own: Call) -> list[Call]:
    """Its own call first, then others that a student is mistakenly given: at other times, as other predictions."""
    time, prediction = own
    times = [other for other in (0.0, 0.25, 0.4, 0.6, 0.8, 1.0) if abs(other - time) > 0.1]
    predictions = [other for other in ("epsilon", "v_prediction", "sample") if other != prediction]
    return [own, *((other, prediction) for other in times), *((time, other) for other in predictions)]


def better(own: Call, found: Mapping[Call, float]) -> Call | None:
    """The best call, if it is clearly better than the student's own."""
    best = min(found, key=lambda call: found[call])
    return best if found[own] - found[best] > TOLERANCE else None
