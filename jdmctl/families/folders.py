"""Diffusers/transformers folders, checked before anything is loaded from them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from torch import nn
from transformers.utils import is_protobuf_available, is_sentencepiece_available
from transformers.utils import logging as transformers_logging

from jdmctl.errors import BadInputError, MissingWeightsError
from jdmctl.families.skeleton import from_configuration, is_without_weights
from jdmctl.weights import require_safetensors


def read_config(folder: str | Path, subfolder: str | None, filename: str) -> dict[str, Any]:
    """A json file of a local folder or of a hub repository.

    Raises:
        MissingWeightsError: it is not there.
    """
    if Path(folder).exists():
        path = Path(folder, subfolder or "", filename)
    else:
        try:
            path = Path(hf_hub_download(str(folder), filename, subfolder=subfolder))
        except (HfHubHTTPError, LocalEntryNotFoundError, HFValidationError, OSError) as reason:
            raise MissingWeightsError(
                f"no folder {folder}, and no such model can be had from the hub",
                hint="check the path, or download the model first (hf download NAME)",
            ) from reason
    try:
        return json.loads(path.read_text())
    except (FileNotFoundError, NotADirectoryError) as reason:
        raise MissingWeightsError(
            f"{path} is missing", hint="a model folder is what diffusers' save_pretrained writes"
        ) from reason
    except (json.JSONDecodeError, UnicodeDecodeError) as reason:
        raise BadInputError(f"{path} is not valid json: {reason}", hint="copy or download the folder again") from reason


def require_pipeline(folder: str | Path, role: str, accepted: tuple[str, ...]) -> None:
    """Raises BadInputError if `folder` holds another kind of pipeline than those accepted."""
    found = read_config(folder, None, "model_index.json").get("_class_name")
    if found not in accepted:
        from jdmctl.families.identify import PIPELINES

        right = f"--set model.family={PIPELINES[found]}" if found in PIPELINES else "choose the family that fits it"
        raise BadInputError(
            f"{role} {folder} is a {found}, this family takes {' or '.join(accepted)}",
            hint=f"{right}, or give another folder",
        )


def load_component(model_class: Any, folder: str | Path, subfolder: str | None) -> Any:
    """`model_class.from_pretrained`: weights from safetensors only, in float32; or a tokenizer.

    Raises:
        MissingWeightsError: weights are missing, damaged, or only there as a pickle; or what reads a tokenizer is.
    """
    transformers_logging.disable_progress_bar()
    where = Path(folder, subfolder or "")
    if is_without_weights():
        try:
            return from_configuration(model_class, folder, subfolder)
        except (OSError, ValueError) as reason:
            raise MissingWeightsError(
                f"no configuration of {model_class.__name__} at {where}: {reason}",
                hint="check the path, or download the model's json files first (hf download NAME --include '*.json')",
            ) from reason
    has_weights = issubclass(model_class, nn.Module)
    files = require_safetensors(where) if where.exists() and has_weights else []
    try:
        options = {"subfolder": subfolder} if subfolder else {}
        if not has_weights:
            return model_class.from_pretrained(folder, **options)
        if files and all(".fp16" in file.name for file in files):
            options["variant"] = "fp16"  # only half-precision files are there
        return model_class.from_pretrained(folder, use_safetensors=True, **options).float()
    except (ImportError, OSError, ValueError) as reason:
        hint = "is it a folder of that class?"
        if not has_weights and not (is_sentencepiece_available() and is_protobuf_available()):
            hint = "a tokenizer without a tokenizer.json, as T5's often are: pip install -c constraints.txt -e '.[t5]'"
        raise MissingWeightsError(f"cannot load {model_class.__name__} from {where}: {reason}", hint=hint) from reason
