"""Checkpoints: whole folders of safetensors and one JSON file, never a pickle.

checkpoints/step-000500/  weights.safetensors  average.safetensors  optimizer.safetensors  state.json
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from jdmctl.errors import MissingWeightsError
from jdmctl.training.atomic import put_back, remove_partial, whole_folder

STATE_FILE = "state.json"
TensorGroups = Mapping[str, Mapping[str, Tensor]]  # file stem -> tensor name -> tensor


@dataclass(frozen=True)
class Checkpoints:
    """The checkpoints of one run."""

    folder: Path
    metadata: Mapping[str, str] = field(default_factory=dict)  # goes into every safetensors header

    def save(self, name: str, tensors: TensorGroups, state: Mapping[str, Any]) -> Path:
        """Write `folder/name` at once, or raise JdmError and leave nothing.

        `state` is JSON and holds an integer `order`, larger in later checkpoints.
        """
        path = self.folder / name
        with whole_folder(path) as partial:
            for stem, group in tensors.items():
                apart = {key: value.detach().cpu().contiguous() for key, value in group.items()}  # none on the device
                save_file(apart, partial / f"{stem}.safetensors", dict(self.metadata) or None)
            (partial / STATE_FILE).write_text(json.dumps(state, indent=1), encoding="utf-8")
        return path

    def load(self, path: Path) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
        """The tensors, by file stem and name, and the state that `save` was given."""
        state = self.state(path)
        try:
            return {file.stem: load_file(file) for file in sorted(path.glob("*.safetensors"))}, state
        except (OSError, SafetensorError) as error:
            raise _unreadable(path, error) from error

    def state(self, path: Path) -> dict[str, Any]:
        """The state alone that `save` was given."""
        try:
            return json.loads((path / STATE_FILE).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise _unreadable(path, error) from error

    def latest(self) -> Path | None:
        """The complete checkpoint that is furthest in the run. Raises MissingWeightsError for a damaged one.

        One that a killed process laid aside, to save it again, is among them.
        """
        put_back(self.folder)
        orders = {}
        for file in self.folder.glob(f"[!.]*/{STATE_FILE}"):
            orders[file.parent] = self.state(file.parent)["order"]
        return max(orders, key=orders.__getitem__, default=None)

    def prune(self, keep: set[str]) -> None:
        """Delete every checkpoint but those named, and what killed processes left half-written."""
        remove_partial(self.folder)
        for path in self.folder.glob("[!.]*"):
            if path.name not in keep:
                shutil.rmtree(path, ignore_errors=True)


def _unreadable(path: Path, error: Exception) -> MissingWeightsError:
    return MissingWeightsError(
        f"the checkpoint {path} cannot be read: {error}",
        hint=f"delete {path}; --resume then goes on from the one before it, if there is one",
    )
