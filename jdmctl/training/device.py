"""The device that a command names, checked before anything is loaded; and how many pictures go onto one."""

from __future__ import annotations

import torch

from jdmctl.errors import JdmError

_PIXELS_AT_ONCE = 2**19


def that_fit(most: int, height: int, width: int) -> int:
    """Pictures in a batch that is only looked at: a VAE of Stable Diffusion's holds 0.75 GiB for one of 512 px."""
    return max(1, min(most, _PIXELS_AT_ONCE // (height * width)))


def find_device(name: str = "") -> str:
    """cpu, cuda, cuda:1 ... or mps; where none is named CUDA's if there is one. Raises JdmError if it is not there."""
    number = torch.cuda.device_count()
    there = ["cpu", *(["cuda"] if number else []), *(f"cuda:{i}" for i in range(number))]
    there += ["mps"] if torch.backends.mps.is_available() else []
    name = name or ("cuda" if number else "cpu")
    if name not in there:
        raise JdmError(
            f"device {name} is not there (there is {', '.join(there)})", hint="leave out --device, or give --device cpu"
        )
    return name
