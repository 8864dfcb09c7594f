"""A head that people's choices trained, on a frozen encoder: what `jdmctl reward fit` makes."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from jdmctl.errors import BadInputError, MissingWeightsError
from jdmctl.rewards.encoders import Encoder, load_encoder, probe
from jdmctl.rewards.folders import read_json, require_folder

MODEL_TYPE = "jdmctl_preference"
_PROBE_TOLERANCE = 0.02  # of its length; another precision or device moves it by far less


@dataclass(frozen=True)
class Head:
    """r = features . weight + offset, and what it takes to know its encoder again."""

    weight: Tensor  # [D]
    offset: Tensor  # []
    probe: Tensor  # [D]
    config: Mapping[str, Any] = field(default_factory=dict)

    def save(self, folder: Path) -> None:
        """model.safetensors and config.json, into a folder that is there."""
        from safetensors.torch import save_file

        tensors = {"weight": self.weight, "offset": self.offset, "probe": self.probe}
        save_file({name: value.float().contiguous() for name, value in tensors.items()}, folder / "model.safetensors")
        text = json.dumps({"model_type": MODEL_TYPE, **self.config}, indent=2)
        (folder / "config.json").write_text(text + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: str) -> Head:
        """Raises JdmError if the folder holds no such head."""
        from safetensors.torch import load_file

        require_folder(folder)
        config = read_json(folder, "config.json") or {}
        if config.get("model_type") != MODEL_TYPE:
            raise BadInputError(
                f"{folder} holds no preference reward (model_type {config.get('model_type')!r})",
                hint="make one: jdmctl reward fit PREFERENCES --encoder FOLDER --output FOLDER",
            )
        tensors = load_file(Path(folder, "model.safetensors"))
        if missing := [name for name in ("weight", "offset", "probe") if name not in tensors]:
            raise MissingWeightsError(f"{folder}: {', '.join(missing)} is missing", hint="fit it again")
        return cls(tensors["weight"], tensors["offset"], tensors["probe"], config)


class Preference:
    """Log-odds: of two pictures for a caption, people prefer the one that scores 1 more in 73 % of cases.

    (Bradley & Terry 1952, doi:10.2307/2334029.) 0 is the mean of the pictures that it was fitted on.
    `folder` is what `jdmctl reward fit` writes; `encoder` a folder, or in Python any function of
    pictures and captions, if the one that the folder names has moved.
    """

    name = "preference"
    description = "a head fitted to people's choices by `jdmctl reward fit`, as log-odds"
    reads_text = True

    def __init__(self, folder: str, encoder: str | Encoder | None = None) -> None:
        self.head = Head.load(folder)
        given = encoder or self.head.config.get("encoder")
        if not given:
            raise BadInputError(
                f"{folder} does not say which encoder it was fitted on: it was a Python function",
                hint="give it again: Preference(FOLDER, encoder=FUNCTION)",
            )
        self.encoder: Any = self._load(given) if isinstance(given, str) else given
        found = probe(self.encoder)
        if found.shape != self.head.probe.shape or _differ(found, self.head.probe):
            raise BadInputError(
                f"the encoder {given} is not the one that {folder} was fitted on: its features differ",
                hint="give the same weights and preprocessor_config.json, or fit it again",
            )

    def _load(self, folder: str) -> Encoder:
        return load_encoder(folder, self.head.config.get("grid", 1), self.head.config.get("layer", -1))

    def __call__(self, image: Tensor, texts: Sequence[str]) -> Tensor:
        features = self.encoder(image, texts).float()
        return features @ self.head.weight.to(features.device) + self.head.offset.to(features.device)

    def to(self, device: Any) -> Self:
        if isinstance(self.encoder, nn.Module):
            self.encoder.to(device)
        return self


def _differ(found: Tensor, expected: Tensor) -> bool:
    return bool(torch.linalg.vector_norm(found - expected) > _PROBE_TOLERANCE * torch.linalg.vector_norm(expected))
