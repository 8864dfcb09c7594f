"""LoRA files: which layers of a backbone they are for, and how strong: alpha / rank of what their matrices are.

Alpha stands beside the layers (`NAME.alpha`: kohya's trainer and those after it), or in the file's header (diffusers'
and peft's own, a whole LoraConfig); where it stands nowhere it is the rank.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffusers.loaders.lora_base import LORA_ADAPTER_METADATA_KEY
from safetensors.torch import load_file

from jdmctl.errors import BadInputError, first_line
from jdmctl.weights import read_header

if TYPE_CHECKING:
    from jdmctl.families.hooks import FamilyHooks

_ALPHA = ".alpha"


def put_lora_file(family: type[FamilyHooks], file: Path, backbone: Any, role: str) -> None:
    """Give a backbone, which is the teacher's or the student's, the LoRA layers of a file.

    Raises:
        BadInputError: they do not fit it, some are for other components, or the file's header cannot be read.
    """
    prefix = f"{family.subfolder}."
    metadata = _metadata(file, prefix)
    try:
        layers, alphas = family.lora_layers(load_file(file), backbone)
        alphas = {**(alphas or {}), **{name: value for name, value in layers.items() if name.endswith(_ALPHA)}}
        own = {name: value for name, value in layers.items() if name.startswith(prefix) and name not in alphas}
        others = [name for name in layers if not name.startswith(prefix)]
        if others or not own:
            raise ValueError(f"it has {len(own)} tensors for the {family.subfolder}, and {some(others)} for others")
        told = {name: float(value) for name, value in alphas.items()}
        family.put_lora(backbone, own, told or None, metadata)
    except (ValueError, KeyError, RuntimeError, IndexError, TypeError) as reason:
        raise BadInputError(
            f"{file} is a LoRA that does not fit the {role}: {first_line(reason)}",
            hint=f"give the {role} that it was made for (--{role})",
        ) from reason


def _metadata(file: Path, prefix: str) -> Mapping[str, Any] | None:
    """What the header says of the layers whose names start with `prefix`: keys of a LoraConfig, after that prefix."""
    try:
        told = json.loads(read_header(file).metadata.get(LORA_ADAPTER_METADATA_KEY, "{}"))
    except (ValueError, RecursionError):
        told = None
    if not isinstance(told, dict):
        raise BadInputError(
            f"{file}: {LORA_ADAPTER_METADATA_KEY} in its header is no json object",
            hint="save it again with the program that trained it, or without its metadata",
        )
    return {key: value for key, value in told.items() if key.startswith(prefix)} or None


def some(names: Any) -> str:
    """`3 (such as conv_in.weight)`."""
    return f"{len(names)} (such as {min(names)})" if names else "0"
