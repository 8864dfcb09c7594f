"""Features of all pictures of a list of pairs, each computed once and kept in memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from jdmctl.data.pictures import read_image
from jdmctl.errors import BadInputError
from jdmctl.feedback.pairs import Pair
from jdmctl.rewards.encoders import Encoder

_SHOWN = 20
_BATCH = 16


@torch.no_grad()
def pair_features(
    pairs: Sequence[Pair],
    encoder: Encoder,
    resolution_px: int,
    device: Any = "cpu",
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[Tensor, Tensor]:
    """Features of the pictures a and b of each pair, float32 [N, D] each, on the CPU.

    Pictures are read as centre squares of `resolution_px`; one that comes in several pairs of a
    prompt goes through the encoder once.

    Raises:
        BadInputError: with up to 20 of the pictures that cannot be read.
    """
    wanted = list(dict.fromkeys((image, pair.prompt) for pair in pairs for image in (pair.image_a, pair.image_b)))
    require_readable([image for image, _ in wanted], resolution_px)
    rows: list[Tensor] = []
    for first in range(0, len(wanted), _BATCH):
        part = wanted[first : first + _BATCH]
        images = torch.stack([read_image(image, resolution_px) for image, _ in part]).to(device)
        rows.append(encoder(images, [prompt for _, prompt in part]).float().cpu())
        progress(first + len(part), len(wanted))
    features = torch.cat(rows)
    if not features.isfinite().all():
        raise BadInputError("the encoder gives features that are not finite", hint="is it a whole, trained network?")
    index = {key: number for number, key in enumerate(wanted)}
    return (
        features[[index[pair.image_a, pair.prompt] for pair in pairs]],
        features[[index[pair.image_b, pair.prompt] for pair in pairs]],
    )


def require_readable(images: Sequence[Path], resolution_px: int) -> None:
    """Open each picture once before an hour of features is spent on the others."""
    problems = []
    for image in dict.fromkeys(images):
        try:
            read_image(image, resolution_px)
        except BadInputError as problem:
            problems.append(str(problem))
    if problems:
        shown = "".join(f"\n  {problem}" for problem in problems[:_SHOWN])
        raise BadInputError(
            f"{len(problems)} pictures cannot be read:{shown}", hint="export them again, or leave their pairs out"
        )
