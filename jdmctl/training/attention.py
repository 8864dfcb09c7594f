"""Which of torch's attention kernels a training runs on."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel


def training_attention(device: torch.device | str) -> AbstractContextManager[Any]:
    """On a CPU the plain kernel, the faster one in bf16 for the few tokens of small pictures. Elsewhere torch chooses.

    It holds the matrix of attention weights, tokens x tokens for each head.
    """
    return sdpa_kernel(SDPBackend.MATH) if torch.device(device).type == "cpu" else nullcontext()
