"""What several processes tell each other: weights at the start, gradients after each backward."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast
from torch import Tensor, nn

PIECE_BYTES = 64 * 2**20  # of one message; while it is sent it is held twice


@torch.no_grad()
def broadcast_parameters(parameters: Sequence[nn.Parameter], accelerator: Accelerator) -> None:
    """Everybody takes the main process's values."""
    if accelerator.num_processes > 1:
        for piece in _pieces(parameters):
            _scatter(broadcast(_gather(piece)), piece)


def average_gradients(parameters: Sequence[nn.Parameter], accelerator: Accelerator) -> None:
    """Replace gradients by their means over processes, piece by piece."""
    if accelerator.num_processes > 1:
        for piece in _pieces([p.grad for p in parameters if p.grad is not None]):
            _scatter(accelerator.reduce(_gather(piece), "mean"), piece)


def _pieces(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """The tensors in their order, as views: small ones together, large ones in slices of their longest dimension.

    Shapes alone decide, so that all processes send the same messages.
    """
    piece: list[Tensor] = []
    room = PIECE_BYTES
    for tensor in tensors:
        for part in _slices(tensor.detach()):
            if part.nbytes > room and piece:
                yield piece
                piece, room = [], PIECE_BYTES
            piece.append(part)
            room -= part.nbytes
    if piece:
        yield piece


def _slices(tensor: Tensor) -> Sequence[Tensor]:
    if tensor.nbytes <= PIECE_BYTES:
        return (tensor,)
    longest = max(range(tensor.dim()), key=tensor.size)
    thickness = tensor.nbytes // tensor.size(longest)  # bytes of one
    return tensor.split(max(1, PIECE_BYTES // thickness), longest)


def _gather(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([tensor.flatten() for tensor in tensors])


def _scatter(bucket: Tensor, tensors: Sequence[Tensor]) -> None:
    pieces = bucket.split([tensor.numel() for tensor in tensors])
    for piece, tensor in zip(pieces, tensors, strict=True):
        tensor.copy_(piece.view(tensor.shape))
