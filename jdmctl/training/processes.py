"""What several processes tell each other: weights at the start, gradients after each backward."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast
from torch import Tensor, nn


@torch.no_grad()
def broadcast_parameters(parameters: Sequence[nn.Parameter], accelerator: Accelerator) -> None:
    """Everybody takes the main process's values."""
    if accelerator.num_processes > 1 and parameters:
        _scatter(broadcast(_gather(parameters)), parameters)


def average_gradients(parameters: Sequence[nn.Parameter], accelerator: Accelerator) -> None:
    """Replace gradients by their means over processes, all in one message."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    if accelerator.num_processes > 1 and gradients:
        _scatter(accelerator.reduce(_gather(gradients), "mean"), gradients)


def _gather(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([tensor.flatten() for tensor in tensors])


def _scatter(bucket: Tensor, tensors: Sequence[Tensor]) -> None:
    pieces = bucket.split([tensor.numel() for tensor in tensors])
    for piece, tensor in zip(pieces, tensors, strict=True):
        tensor.copy_(piece.view(tensor.shape))
