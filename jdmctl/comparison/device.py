"""Where a comparison draws and looks: the CPU unless another device is named, from which pictures come back to it."""

from __future__ import annotations

import torch

from jdmctl.errors import JdmError

_PIXELS = 2**19  # at once, of a picture's height and width, on any device but the CPU


def find_device(name: str) -> str:
    """That device; the CPU where none is named. Raises JdmError if it is not there."""
    kind, colon, index = (name or "cpu").partition(":")
    there = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}
    number = int(index) if index.isdecimal() else -1 if colon else 0
    if not 0 <= number < there.get(kind, 0):
        raise JdmError(f"device {name} is not there", hint="leave out --device, or give --device cpu")
    return kind if kind == "cpu" else name


def describe_device(device: torch.device) -> str:
    """Its kind, with a GPU's name: two kinds of them need not agree in the last bits."""
    return f"cuda {torch.cuda.get_device_name(device)}" if device.type == "cuda" else device.type


def at_once(most: int, device: str, height: int, width: int) -> int:
    """How many pictures of a size are drawn or looked at in one batch: `most` on the CPU, elsewhere as many as fit."""
    return most if device == "cpu" else max(1, min(most, _PIXELS // (height * width)))
