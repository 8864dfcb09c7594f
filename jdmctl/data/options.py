"""What a reader may be told beyond the path."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class ReadOptions:
    """Each matters only to formats that have such a thing."""

    cache: Path  # where tables are unpacked, and what lies where in archives is kept
    image_column: str = ""  # "": found by its usual names
    text_column: str = ""
    split: str = "train"
    stream: int = 0  # fetch the first so many rows only; 0 is all, downloaded whole
