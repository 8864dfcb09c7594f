"""Checks of weight files before anything is loaded from them, and fingerprints of them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from jdmctl.errors import MissingWeightsError

PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")


def require_safetensors(path: str | Path) -> list[Path]:
    """The safetensors files at `path`, a file or a folder, each with a whole header and all its bytes.

    Raises:
        MissingWeightsError: there is none, one is cut short, or the weights are only there as a
            pickle, which can run any code when it is opened and is therefore never read.
    """
    path = Path(path)
    if not path.exists():
        raise MissingWeightsError(f"no weights at {path}", hint="check the path")
    files = sorted(path.glob("[!.]*.safetensors")) if path.is_dir() else [path]
    if not files:
        _refuse_pickles(sorted(path.iterdir()))
        raise MissingWeightsError(
            f"no *.safetensors file in {path}", hint="is the folder complete? copy or download it again"
        )
    _refuse_pickles(files)
    for file in files:
        _check_whole(file)
    return files


def require_possible(source: str) -> None:
    """Raises MissingWeightsError if nothing is at `source`, and nothing on the hub can have that name."""
    folders = source.count("/")
    is_path = folders < 2 if source.endswith(".safetensors") else folders > 1
    if (is_path or source.startswith((".", "~", "/"))) and not Path(source).exists():
        raise MissingWeightsError(
            f"no folder or file {source}", hint=f"check the path; from here it is {Path(source).absolute()}"
        )


def tensor_names(file: Path) -> list[str]:
    """The names of a safetensors file's tensors; only its header is read."""
    from safetensors import safe_open

    with safe_open(file, framework="np") as opened:
        return list(opened.keys())


@dataclass(frozen=True)
class Header:
    """What a safetensors file says of itself: tensor name -> shape, and its metadata."""

    shapes: Mapping[str, tuple[int, ...]]
    metadata: Mapping[str, str]


def read_header(file: str | Path) -> Header:
    """The header of a safetensors file; no weights are read. Raises MissingWeightsError as `require_safetensors`."""
    from safetensors import safe_open

    (path,) = require_safetensors(file)
    with safe_open(path, framework="np") as opened:
        shapes = {name: tuple(opened.get_slice(name).get_shape()) for name in opened.keys()}  # noqa: SIM118
        return Header(shapes, opened.metadata() or {})


def fingerprint(path: str | Path) -> str:
    """sha256 of a file, or of the names and contents of all files below a folder."""
    path = Path(path)
    digest = hashlib.sha256()
    for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
        if file.is_file():
            digest.update(str(file.relative_to(path)).encode() + b"\0")
            with file.open("rb") as stream:
                digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()


def _refuse_pickles(files: list[Path]) -> None:
    for file in files:
        if file.suffix in PICKLE_SUFFIXES:
            raise MissingWeightsError(
                f"{file} is a pickle, which can run any code when it is opened: refused",
                hint="save the weights again as safetensors (save_pretrained does)",
            )


def _check_whole(file: Path) -> None:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="np"):
            pass
    except (SafetensorError, OSError) as problem:
        raise MissingWeightsError(
            f"{file} is not a whole safetensors file ({file.stat().st_size} bytes: {problem})",
            hint="copy or download it again",
        ) from problem
