"""Where a comparison draws and looks: the CPU unless another device is named, from which pictures come back to it."""

from __future__ import annotations

import torch

from jdmctl.training.device import that_fit


def describe_device(device: torch.device) -> str:
    """Its kind, with a GPU's name: two kinds of them need not agree in the last bits."""
    return f"cuda {torch.cuda.get_device_name(device)}" if device.type == "cuda" else device.type


def at_once(most: int, device: str, height: int, width: int) -> int:
    """How many pictures of a size are drawn or looked at in one batch: `most` on the CPU, elsewhere as many as fit."""
    return most if device == "cpu" else that_fit(most, height, width)
