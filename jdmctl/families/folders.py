"""Diffusers/transformers folders, checked before anything is loaded from them."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from diffusers.utils import logging as diffusers_logging
from huggingface_hub import hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from torch import nn
from transformers.utils import is_protobuf_available, is_sentencepiece_available
from transformers.utils import logging as transformers_logging

from jdmctl.errors import BadInputError, MissingWeightsError
from jdmctl.families.skeleton import from_configuration, is_without_weights
from jdmctl.weights import require_safetensors

_WEIGHTS = re.compile(
    r"(?:diffusion_pytorch_)?model(?:-\d+-of-\d+)?(?:\.(?P<variant>[^.]+?)(?:-\d+-of-\d+)?)?\.safetensors"
)
_VARIANTS = ("", "fp16", "bf16")  # in the order in which they are taken; the first are files without a variant's name


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

    Weights may be there in a variant alone (model.fp16.safetensors): a folder's is read off its files' names, of a hub
    name fp16 and bf16 are tried.

    Raises:
        MissingWeightsError: weights are missing, damaged, or only there as a pickle; or what reads a tokenizer is.
    """
    transformers_logging.disable_progress_bar()
    diffusers_logging.disable_progress_bar()
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
    variants: Sequence[str] = ("",) if Path(folder).exists() else _VARIANTS
    if where.exists() and has_weights:
        variants = (variant_of(require_safetensors(where)),)
    try:
        options = {"subfolder": subfolder} if subfolder else {}
        if not has_weights:
            return model_class.from_pretrained(folder, **options)
        return _first_there(model_class, folder, options, variants).float()
    except (ImportError, OSError, ValueError) as reason:
        raise MissingWeightsError(
            f"cannot load {model_class.__name__} from {where}: {reason}", hint=_advice(model_class, where)
        ) from reason


def _advice(model_class: Any, where: Path) -> str:
    """For what cannot be loaded: CLIP's and Qwen's tokenizers need no sentencepiece, nor does a tokenizer.json."""
    if (where / "tokenizer.json").is_file():
        return f"is {where / 'tokenizer.json'} whole? copy or download it again"
    is_of_pieces = model_class.__name__.startswith(("T5Tokenizer", "GemmaTokenizer"))
    if is_of_pieces and not (is_sentencepiece_available() and is_protobuf_available()):
        return "a tokenizer without a tokenizer.json, as T5's often are: pip install -c constraints.txt -e '.[t5]'"
    return "is it a folder of that class?"


def variant_of(files: Iterable[Path]) -> str:
    """The variant in which a component's weights are there: fp16 for model.fp16.safetensors, "" for plain files.

    Of several a plain one is taken first, then fp16, bf16, and any other.
    """
    found = {match["variant"] or "" for file in files if (match := _WEIGHTS.fullmatch(file.name))}
    return next((variant for variant in _VARIANTS if variant in found), min(found, default=""))


def pipeline_variant(source: str | Path) -> str:
    """The variant to ask for a pipeline's folder, or for a hub name by what was downloaded of it; "" for none.

    It is that of the components which have no plain files: diffusers takes the plain ones of others by itself.
    """
    folder = Path(source)
    if not folder.exists():
        index = try_to_load_from_cache(str(source), "model_index.json")
        if not isinstance(index, str):
            return ""
        folder = Path(index).parent
    components = {file.parent for file in folder.glob("*/*.safetensors")}
    return next(filter(None, (variant_of(part.glob("*.safetensors")) for part in sorted(components))), "")


def _first_there(model_class: Any, folder: str | Path, options: dict[str, Any], variants: Sequence[str]) -> Any:
    """A model in the first of these variants that is there. Raises what the first of all raises."""

    def load(variant: str) -> Any:
        named = {"variant": variant} if variant else {}
        return model_class.from_pretrained(folder, use_safetensors=True, **options, **named)

    try:
        return load(variants[0])
    except OSError:
        for variant in variants[1:]:
            with contextlib.suppress(OSError):
                return load(variant)
        raise
