"""Conditions and latents on disk, found again by what they were made from."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from jdmctl.data.arrays import read_arrays
from jdmctl.errors import BadInputError
from jdmctl.weights import fingerprint


class ConditionCache:
    """Extracts each picture's condition once, or whatever else of one shape is made from it.

    A condition's key is the sha256 of the picture's pixels, the control's name and options and the
    version of the code; an option that names files or folders counts by their contents. One .npz a
    condition, moved into place when complete: processes may share the folder.
    """

    def __init__(
        self,
        folder: str | Path,
        extract: Callable[[Tensor], Tensor],  # [B, 3, H, W] -> [B, 3, H, W]
        control: str,
        options: Mapping[str, Any],
        version: str,
    ) -> None:
        self._folder = Path(folder)
        self._extract = extract
        named = {name: _identity(value) for name, value in options.items()}
        self._recipe = json.dumps([control, named, version], sort_keys=True)

    def __call__(self, images: Tensor) -> Tensor:
        """Conditions [B, 3, H, W] of images [B, 3, H, W] in [0, 1], float32 and on the CPU.

        Raises:
            BadInputError: the folder cannot be written, for instance because the disk is full.
        """
        files = [self._file(image) for image in images]
        found = {number: kept for number, file in enumerate(files) if (kept := _read(file)) is not None}
        missing = [number for number in range(len(files)) if number not in found]
        if missing:
            for number, condition in zip(missing, self._extract(images[missing]), strict=True):
                found[number] = condition.float().cpu()
                _write(files[number], found[number])
        return torch.stack([found[number] for number in range(len(files))])

    def _file(self, image: Tensor) -> Path:
        pixels = image.detach().float().cpu().contiguous().numpy()
        digest = hashlib.sha256(f"{self._recipe} {pixels.shape}".encode())
        digest.update(pixels.tobytes())
        key = digest.hexdigest()
        return self._folder / key[:2] / f"{key}.npz"


def _identity(option: Any) -> Any:
    if isinstance(option, Mapping):
        return {str(name): _identity(value) for name, value in option.items()}
    if isinstance(option, list | tuple):
        return [_identity(value) for value in option]
    is_path = isinstance(option, str | os.PathLike) and str(option) and Path(option).exists()
    return fingerprint(option) if is_path else str(option)


def _read(file: Path) -> Tensor | None:
    kept = read_arrays(file) or {}  # absent, or not ours: it is written anew
    return torch.from_numpy(kept["condition"]) if "condition" in kept else None


def _write(file: Path, condition: Tensor) -> None:
    unfinished = None
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=file.parent, suffix=".part", delete=False) as stream:
            unfinished = Path(stream.name)
            np.savez_compressed(stream, condition=condition.numpy())
        unfinished.replace(file)
    except OSError as problem:
        raise BadInputError(
            f"cannot write the condition cache {file.parent.parent}: {problem.strerror or problem}",
            hint="make room on the disk, or choose another folder",
        ) from problem
    finally:
        if unfinished:
            unfinished.unlink(missing_ok=True)
