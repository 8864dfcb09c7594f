"""What a teacher drew in many steps, kept on disk and found again by all that it was drawn from."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from jdmctl import __version__
from jdmctl.comparison.device import describe_device
from jdmctl.evaluation.results import setup
from jdmctl.training.atomic import writing
from jdmctl.types import Controls, Prompt


class KeptSampler:
    """A family's `multistep`, each batch drawn once. Processes may share the folder.

    A batch's key is the sha256 of the teacher's weights, branches included, of its sampler's settings, of the noise,
    prompt and conditions, of the versions of this package, torch and diffusers, and of the device if it is not the CPU.
    Who changes how a family samples empties the folder.
    """

    def __init__(self, family: Any, folder: Path) -> None:
        self._family, self._folder = family, folder
        device = describe_device(next(family.teacher.parameters()).device)
        self._teacher = digest_of(
            {
                "weights": dict(family.teacher.state_dict()),
                "sampler": [type(family).__qualname__, family.teacher.prediction, dict(family.sampler_config)],
                "versions": setup(__version__, device),
            }
        )

    def __call__(
        self, noise: Tensor, prompt: Prompt, num_steps: int, guidance_scale: float, controls: Controls
    ) -> Tensor:
        """x0 [B, C, h, w], as `multistep` gives it. Raises JdmError if the folder cannot be written."""
        asked = {"noise": noise, "prompt": prompt, "empty": self._family.empty_prompt(1), "controls": controls}
        key = digest_of({**asked, "how": [self._teacher, num_steps, guidance_scale]})
        file = self._folder / f"{key}.safetensors"
        try:
            return load_file(file)["x0"].to(noise.device)
        except (OSError, KeyError, SafetensorError):  # not there, or cut short: it is written anew
            x0 = self._family.multistep(noise, prompt, num_steps, guidance_scale, controls)
        partial = file.with_suffix(f".{os.getpid()}.partial")
        with writing(file):
            file.parent.mkdir(parents=True, exist_ok=True)
            save_file({"x0": x0.contiguous()}, partial)
            partial.replace(file)
        return x0


def digest_of(content: Any) -> str:
    """sha256 of tensors, texts and numbers in mappings and lists."""
    digest = hashlib.sha256()
    if isinstance(content, Tensor):
        digest.update(f"{content.dtype} {tuple(content.shape)} ".encode())
        digest.update(content.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    elif isinstance(content, Mapping):
        digest.update(repr([(name, digest_of(content[name])) for name in sorted(content)]).encode())
    else:
        digest.update(json.dumps(content, default=_told, sort_keys=True).encode())
    return digest.hexdigest()


def _told(content: Any) -> str:
    return digest_of(content) if isinstance(content, Tensor) else str(content)
