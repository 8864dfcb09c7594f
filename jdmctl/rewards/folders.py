"""Networks, tokenizers and json files of a reward's folder, from the disk or the hub; never a pickle."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from jdmctl._compat import ensure_torchvision
from jdmctl.errors import BadInputError, MissingWeightsError, first_line
from jdmctl.weights import PICKLE_SUFFIXES, require_possible, require_safetensors

CONVERT = "make a folder of it once, if you trust it: jdmctl reward convert FILE FOLDER"

_TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "vocab.txt", "spiece.model", "tokenizer.model")


def load_network(class_name: str, source: str, what: str, spare: str = "") -> Any:
    """transformers' class of that name from `source`, frozen, in float32 and eval mode.

    A part of the network named `spare` is taken off (None) where the weights of it are missing.

    Raises:
        MissingWeightsError: nothing is there, it is damaged, of another class, or a pickle.
    """
    ensure_torchvision()
    import transformers
    from transformers.utils import logging

    require_weights(source)
    logging.disable_progress_bar()
    model_class = getattr(transformers, class_name)
    try:
        network, info = model_class.from_pretrained(source, use_safetensors=True, output_loading_info=True)
    except (OSError, ValueError, KeyError, RuntimeError) as problem:
        raise MissingWeightsError(
            f"cannot load {what} from {source}: {first_line(problem)}",
            hint=f"give a folder or hub name that transformers' {class_name} can load",
        ) from problem
    missing = sorted(info["missing_keys"])  # transformers would fill them with random numbers
    if missing and spare and all(key.startswith(f"{spare}.") for key in missing):
        setattr(network, spare, None)
    elif missing:
        raise MissingWeightsError(
            f"{source} lacks {len(missing)} of the weights of {what}: {', '.join(missing[:3])} ...",
            hint=f"is it a whole {class_name}? download it again",
        )
    return network.float().eval().requires_grad_(False)


def run_network(network: Any, source: str, pixels: Any, **options: Any) -> Any:
    """What a network of `load_network` makes of pixels [B, 3, h, w].

    Raises:
        BadInputError: it takes another size, and no preprocessor_config.json says which.
    """
    try:
        return network(pixel_values=pixels, **options)
    except ValueError as problem:
        raise BadInputError(
            f"{source} does not take pictures of {pixels.shape[-1]} x {pixels.shape[-2]} px: {first_line(problem)}",
            hint="put the model's preprocessor_config.json, which says its size, mean and std, into the folder",
        ) from problem


def load_tokenizer(source: str) -> Any:
    """Raises MissingWeightsError if `source` holds none."""
    from transformers import AutoTokenizer

    try:
        if Path(source).is_dir() and not any(Path(source, file).is_file() for file in _TOKENIZER_FILES):
            raise OSError("none of its files is there")  # of a config.json alone transformers makes an empty one
        return AutoTokenizer.from_pretrained(source)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as problem:
        raise MissingWeightsError(
            f"cannot load a tokenizer from {source}: {first_line(problem)}",
            hint="the folder needs tokenizer.json and tokenizer_config.json, as the processor's save_pretrained writes",
        ) from problem


def require_folder(folder: str) -> None:
    """Raises MissingWeightsError where a reward that comes as a folder alone, from no hub, is not there."""
    if not Path(folder).exists():
        raise MissingWeightsError(
            f"no folder {folder}", hint=f"check the path; from here it is {Path(folder).absolute()}"
        )
    require_weights(folder)


def require_weights(source: str) -> None:
    """Check what is on the disk at `source`, if anything, before it is opened.

    Raises:
        MissingWeightsError: it is a pickle, holds only pickles, or is damaged; or nothing is there and no hub
            repository can have that name.
    """
    path = Path(source)
    require_possible(source)
    if not path.exists():
        return
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    pickles = [file for file in files if file.suffix in PICKLE_SUFFIXES]
    if pickles and not any(file.suffix == ".safetensors" for file in files):
        raise MissingWeightsError(
            f"{pickles[0]} is a pickle, which can run any code when it is opened: refused", hint=CONVERT
        )
    require_safetensors(path)


def read_json(source: str, filename: str) -> dict[str, Any] | None:
    """A json file of a folder or hub repository, None where there is no such file.

    Raises:
        BadInputError: it is not json.
    """
    from transformers.utils import cached_file

    try:
        path = cached_file(source, filename, _raise_exceptions_for_missing_entries=False)
        return json.loads(Path(path).read_text(encoding="utf-8")) if path else None
    except OSError:
        return None
    except ValueError as problem:
        raise BadInputError(
            f"{filename} in {source} is not valid json: {problem}", hint="copy or download the folder again"
        ) from problem


def processor_settings(source: str) -> dict[str, Any] | None:
    """What the folder's image processor does; transformers keeps it in one of two files."""
    settings = read_json(source, "preprocessor_config.json")
    if settings is None:
        settings = (read_json(source, "processor_config.json") or {}).get("image_processor")
    return settings
