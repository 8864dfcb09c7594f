"""The files below a folder: through links to other folders, and those of one split."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from jdmctl.errors import BadInputError

_SPLITS = {  # by words in names, as the library `datasets` tells them
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}


def files_below(folder: Path) -> Iterator[Path]:
    """All files in a folder and below it, but for what systems leave there: hidden ones, and a Mac's `__MACOSX`.

    Links to folders are followed, but not back to one that the file is in.
    """
    for place, inner, names in os.walk(folder, followlinks=True):
        here = Path(place)
        above = {path.resolve() for path in (here, *here.parents)}
        inner[:] = [name for name in inner if is_shown(name) and (here / name).resolve() not in above]
        yield from (here / name for name in filter(is_shown, names))


def is_shown(name: str) -> bool:
    """Whether a file or folder of that name was put there by a person: `.ipynb_checkpoints` and `._a.png` were not."""
    return not name.startswith(".") and name != "__MACOSX"


def of_split(folder: Path, files: Iterable[Path], split: str) -> list[Path]:
    """Of files below a folder those of a split, which a word in a file's name tells, or in that of a folder around it.

    Where no name tells it, a file is to train on. Raises BadInputError, with the splits that are there, for another.
    """
    found: dict[str, list[Path]] = {}
    for file in files:
        told = filter(None, map(_told, reversed(file.relative_to(folder).parts)))
        found.setdefault(next(told, "train"), []).append(file)
    wanted = found.get(_told(split), [])
    if wanted or not found:
        return wanted
    raise BadInputError(
        f"{folder} has no files of split {split!r}, but of {', '.join(found)}",
        hint=f"--set data.split={next(iter(found))}, or name the files themselves",
    )


def _told(name: str) -> str:
    """The split that a name tells, "" for none."""
    words = re.findall("[a-z]+", name.lower())
    return next((split for split, known in _SPLITS.items() if not set(known).isdisjoint(words)), "")
