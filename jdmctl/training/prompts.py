"""Encoded prompts on disk, so that text encoders need not be where a run trains."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from jdmctl.training.atomic import writing
from jdmctl.types import Prompt

_PROBE = "A photo of two red cubes, 3 cm apart."
_ALONE = "prompt"  # the name of a prompt that is one tensor


class PromptCache:
    """Encodes each text once, alone, so that no bit of it depends on what else is in its batch.

    A file's key is the sha256 of the text and of what the encoders make of a fixed sentence: other encoders, or another
    kind of device, have files of their own. Shorter prompts are padded with zeros where a batch has longer ones, as
    pipelines pad them.
    """

    def __init__(self, folder: str | Path, encode: Callable[[Sequence[str]], Prompt], device: torch.device | str):
        self._folder, self._encode, self._device = Path(folder), encode, device
        probe = _named(encode([_PROBE]))
        self._encoders = hashlib.sha256()
        for name in sorted(probe):
            self._encoders.update(f"{name} {tuple(probe[name].shape)}".encode())
            self._encoders.update(probe[name].float().cpu().numpy().tobytes())

    def fill(self, texts: Iterable[str]) -> None:
        """Encode what is not there yet. Raises JdmError if the folder cannot be written."""
        for text in dict.fromkeys(texts):
            self._row(text)

    def __call__(self, texts: Sequence[str]) -> Prompt:
        """The prompt of a batch, on the device."""
        rows = [self._row(text) for text in texts]
        batch = {
            name: pad_sequence([row[name][0] for row in rows], batch_first=True).to(self._device) for name in rows[0]
        }
        return batch[_ALONE] if batch.keys() == {_ALONE} else batch

    def _row(self, text: str) -> dict[str, Tensor]:
        digest = self._encoders.copy()
        digest.update(text.encode())
        file = self._folder / digest.hexdigest()[:2] / f"{digest.hexdigest()}.safetensors"
        try:
            return load_file(file)
        except (OSError, SafetensorError):  # not there, or cut short: it is written anew
            row = {name: value.cpu().contiguous() for name, value in _named(self._encode([text])).items()}
        partial = file.with_suffix(f".{os.getpid()}.partial")
        with writing(file):
            file.parent.mkdir(parents=True, exist_ok=True)
            save_file(row, partial)
            partial.replace(file)
        return row


def _named(prompt: Any) -> dict[str, Tensor]:
    return {_ALONE: prompt} if isinstance(prompt, Tensor) else dict(prompt)
