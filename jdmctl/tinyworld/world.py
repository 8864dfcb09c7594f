"""The world in use, the shipped one or one of the user's pictures: where its folders are, its pictures by split."""

from __future__ import annotations

import contextlib
import functools
import json
import os
from collections.abc import Iterator
from pathlib import Path

from jdmctl.errors import MissingWeightsError
from jdmctl.tinyworld.source import Pictures, captioned_folder, scenes

SHIPPED = Path(__file__).parent / "weights"
SOURCE_FILE = "pictures.json"  # in a world of the user's own: which folder its pictures are in
FORM_NAMES = ("sdxl", "pixart", "sd3")
NUM_PICTURES = {"train": 12_000, "reference": 2_000, "val": 600, "test": 1_000}


def world_folder() -> Path:
    """The folder with teacher/, student/, depth/ ...: the shipped one, or another by JDMCTL_WORLD.

    Raises:
        MissingWeightsError: there is no world in it.
    """
    folder = Path(os.environ.get("JDMCTL_WORLD") or SHIPPED)
    if not (folder / "student" / "model_index.json").exists():
        raise MissingWeightsError(
            f"no embedded world in {folder}", hint="build one: jdmctl world build, or unset JDMCTL_WORLD"
        )
    return folder


def own_students() -> list[str]:
    """What recipes call the one-step students that the world in use came with."""
    return [f"tiny/{name}" for name in ("student", "student_lora") if (world_folder() / name).exists()]


@contextlib.contextmanager
def in_use(folder: Path) -> Iterator[None]:
    """The world in `folder` is the one in use, whatever JDMCTL_WORLD says."""
    before = os.environ.get("JDMCTL_WORLD")
    os.environ["JDMCTL_WORLD"] = str(folder)
    samples.cache_clear()
    try:
        yield
    finally:
        os.environ.pop("JDMCTL_WORLD")
        if before is not None:
            os.environ["JDMCTL_WORLD"] = before
        samples.cache_clear()


def cache_folder() -> Path:
    """Where rendered scenes and extracted conditions are kept: JDMCTL_CACHE, or jdmctl/ in the user's cache."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("JDMCTL_CACHE") or Path(base, "jdmctl"))


def form_folder(name: str) -> Path:
    """Where another form of the world in use is built; the shipped world's own folder belongs to the package."""
    world = world_folder()
    return (cache_folder() if world == SHIPPED else world) / "forms" / name


def built_form(path: str) -> Path:
    """The folder of NAME/teacher or NAME/student.

    Raises:
        MissingWeightsError: that form is not built yet, or there is none such.
    """
    name, _, role = path.partition("/")
    if name not in FORM_NAMES:
        raise MissingWeightsError(f"the world has no form {name}", hint=f"there are {', '.join(FORM_NAMES)}")
    folder = form_folder(name) / role
    if not (folder / "model_index.json").exists():
        raise MissingWeightsError(
            f"the world's form {name} is not built yet", hint=f"build it: jdmctl world form {name}"
        )
    return folder


def is_of_world(path: str) -> bool:
    """Whether a recipe's path means a folder of the world in use."""
    return path.partition("/")[0] == "tiny"


def world_name(model: str = "tiny") -> str:
    """What results call the world in use; of a recipe's model that is another form of it, with the form's name."""
    folder = world_folder()
    name = "tiny" if folder == SHIPPED else folder.name
    return f"{name} {model.split('/')[2]}" if model.startswith("tiny/forms/") else name


@functools.cache
def samples(split: str, num: int = 0) -> Pictures:
    """`num` pictures of a split (0: all).

    Scenes are rendered once, 100 or more a second, and cached on disk; fewer are not the first of more (see `render`).
    A world of other pictures knows their folder: the first of it, fewer if it has fewer, with the labels that the
    world's classifier was trained on, whatever has become of the folder.
    """
    world = world_folder()
    source = world / SOURCE_FILE
    if source.exists():
        folder = Path(json.loads(source.read_text(encoding="utf-8"))["folder"])
        pictures = captioned_folder(folder, split, vocabulary=_judged_words(world))
        return pictures.first(num) if num else pictures
    return rendered(split, num)


def _judged_words(world: Path) -> list[str] | None:
    """Those that a classifier tells of a folder's pictures, in the order of its labels; None where there is none."""
    config = world / "classifier" / "config.json"
    if not config.is_file():
        return None
    labels = json.loads(config.read_text(encoding="utf-8"))["id2label"]  # {"0": "red: no", "1": "red: yes", ...}
    return list(dict.fromkeys(labels[str(i)].rpartition(": ")[0] for i in range(len(labels))))


def rendered(split: str, num: int = 0) -> Pictures:
    """Scenes of a split, whatever world is in use."""
    return scenes(split, num or NUM_PICTURES[split], cache_folder() / "scenes")
