"""What a run left, written out again: diffusers folders with their contract, and single files for other tools."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from jdmctl.errors import BadInputError
from jdmctl.export import ldm, lora
from jdmctl.export.contract import CONFIG_KEY, Contract, metadata
from jdmctl.weights import require_safetensors

Kind = Literal["controlnet", "student_lora", "student"]
LORA_FILE = "pytorch_lora_weights.safetensors"  # diffusers' name for it
_TRAINED = ("unet", "transformer")  # of a pipeline: what a run trains and --dtype is about
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Product:
    """A folder of a run with what it holds and how that is to be used."""

    folder: Path
    kind: Kind
    contract: Contract
    backbone: str  # diffusers class of the student's network

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def config(self) -> dict[str, Any]:
        """Of a control branch: its config.json."""
        return json.loads((self.folder / "config.json").read_text(encoding="utf-8"))

    @property
    def weights(self) -> dict[str, Tensor]:
        """All tensors right in the folder, several files put together."""
        return {key: value for file in require_safetensors(self.folder) for key, value in load_file(file).items()}

    @property
    def single_file(self) -> str:
        """Its name as one file; A1111 chooses a preprocessor by a control's name in it."""
        return f"controlnet-{self.contract.control}.safetensors" if self.kind == "controlnet" else "lora.safetensors"


def refusals(product: Product, tool: str) -> list[str]:
    """Why a product cannot be a single file for a tool: comfyui, a1111 or kohya; [] if it can."""
    if product.kind == "student":
        return ["it is a whole pipeline; only control branches and LoRAs are exported as single files"]
    if product.kind == "controlnet":
        return ldm.problems(product.config, tool)
    return lora.problems(product.backbone, tool)


def write_folder(product: Product, target: Path, dtype: torch.dtype) -> None:
    """The diffusers folder with trained weights in `dtype` and the contract in its config and its weights' metadata.

    Raises:
        BadInputError: a weight does not fit into `dtype`.
    """
    for file in sorted(product.folder.rglob("*")):
        inside = file.relative_to(product.folder)
        to = target / inside
        if file.is_dir():
            continue
        to.parent.mkdir(parents=True, exist_ok=True)
        if file.suffix == ".safetensors" and (len(inside.parts) == 1 or inside.parts[0] in _TRAINED):
            _save(load_file(file), to, dtype, product, _metadata_of(file))
        elif str(inside) in ("config.json", "model_index.json"):
            config = json.loads(file.read_text(encoding="utf-8")) | {CONFIG_KEY: product.contract.to_dict()}
            to.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        else:
            shutil.copyfile(file, to)


def write_single_file(product: Product, to: Path, dtype: torch.dtype) -> None:
    """A control branch in the original ControlNet's keys, or a LoRA in those that tools read.

    Raises:
        BadInputError: a weight does not fit into `dtype`, or the layout has no place for one.
    """
    source = require_safetensors(product.folder)[0]
    weights = product.weights
    try:
        if product.kind == "controlnet":
            weights = ldm.single_file(weights, product.config)
        else:
            weights = lora.single_file(weights, product.backbone)
    except KeyError as key:
        raise BadInputError(
            f"{product.folder} holds {key}, for which the single file has no place", hint="use --format diffusers"
        ) from key
    _save(weights, to, dtype, product, _metadata_of(source))


def _save(
    weights: Mapping[str, Tensor], to: Path, dtype: torch.dtype, product: Product, old: Mapping[str, str]
) -> None:
    cast = {key: value.to(dtype) if value.is_floating_point() else value for key, value in weights.items()}
    if dtype == torch.float16 and (large := [key for key, value in cast.items() if not value.isfinite().all()]):
        raise BadInputError(f"{product.folder}: {large[0]} is too large for fp16", hint="choose --dtype bf16 or fp32")
    whole = {key: value.contiguous() for key, value in cast.items()}
    save_file(whole, to, metadata={**old, "format": "pt", **metadata(product.contract)})


def _metadata_of(file: Path) -> dict[str, str]:
    with safe_open(file, framework="pt") as opened:
        return opened.metadata() or {}
