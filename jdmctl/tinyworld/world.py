"""The shipped world: where its folders are, and its pictures by split."""

from __future__ import annotations

import functools
import os
from pathlib import Path

from jdmctl.errors import MissingWeightsError
from jdmctl.tinyworld.source import Pictures, scenes

NUM_PICTURES = {"train": 12_000, "reference": 2_000, "val": 600, "test": 1_000}


def world_folder() -> Path:
    """The folder with teacher/, student/, depth/ ...: the shipped one, or another by JDMCTL_WORLD.

    Raises:
        MissingWeightsError: there is no world in it.
    """
    folder = Path(os.environ.get("JDMCTL_WORLD") or Path(__file__).parent / "weights")
    if not (folder / "student" / "model_index.json").exists():
        raise MissingWeightsError(
            f"no embedded world in {folder}", hint="build one: jdmctl world build, or unset JDMCTL_WORLD"
        )
    return folder


def cache_folder() -> Path:
    """Where rendered scenes and extracted conditions are kept: JDMCTL_CACHE, or jdmctl/ in the user's cache."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("JDMCTL_CACHE") or Path(base, "jdmctl"))


@functools.cache
def samples(split: str, num: int = 0) -> Pictures:
    """The first `num` scenes of a split (0: all), rendered once and cached on disk; 100 or more a second."""
    return scenes(split, num or NUM_PICTURES[split], cache_folder() / "scenes")
