"""Arrays that can be made again, kept on disk so that they need not be."""

from __future__ import annotations

import contextlib
import os
import tempfile
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np

DAMAGED = (OSError, ValueError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error)  # what reading raises


def read_arrays(file: Path) -> dict[str, np.ndarray] | None:
    """None where they are absent, or damaged."""
    try:
        with np.load(file, allow_pickle=False) as archive:
            return dict(archive)
    except DAMAGED:
        return None


def keep_arrays(file: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes an .npz that appears whole or not at all; where nothing can be written, nothing is."""
    unfinished = None
    with contextlib.suppress(OSError):
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=file.parent, suffix=".part", delete=False) as stream:
                unfinished = Path(stream.name)
                np.savez(stream, **arrays)  # type: ignore[arg-type]  # allow_pickle would be an array before numpy 2.1
            os.replace(unfinished, file)
        finally:
            if unfinished:
                unfinished.unlink(missing_ok=True)
