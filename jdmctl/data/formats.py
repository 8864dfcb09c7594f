"""The door to captioned pictures: which format a path is of, and its rows. Readers are imported on use."""

from __future__ import annotations

import glob
import re
from collections import Counter
from collections.abc import Mapping
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jdmctl.errors import BadInputError

if TYPE_CHECKING:
    from jdmctl.data.options import ReadOptions
    from jdmctl.data.rows import Rows

FORMATS = {  # name -> reader of a path
    "imagefolder": "imagefolder:read_imagefolder",
    "maps": "conditionfolder:read_maps",
    "controlnet": "controlnet:read_controlnet",
    "videox": "videox:read_videox",
    "kohya": "kohya:read_kohya",
    "parquet": "tables:read_parquet",
    "saved": "tables:read_saved",
    "hub": "tables:read_hub",
    "webdataset": "shards:read_shards",
}
CONDITION = "conditioning_image"  # the column's name in diffusers; `conditioning_image_canny` where there are several
WITH_CONDITIONS = ("imagefolder", "controlnet", "videox", "parquet", "saved", "hub", "webdataset")  # and pictures
PLAIN = ("imagefolder", "maps", "controlnet", "videox", "kohya")  # readers that take a path and nothing else
_OPTIONS = {  # of ReadOptions, those that a reader heeds, as recipes call them
    "parquet": ("image_column", "text_column", "split", "streaming"),
    "hub": ("image_column", "text_column", "split", "streaming"),
    "saved": ("image_column", "text_column", "split"),
    "webdataset": ("image_column", "text_column", "split"),
}
_UNREAD = {  # by sources that read no pictures or maps, of a recipe's data
    "prompts": ("format", *_OPTIONS["hub"]),
    "tiny": ("path", "format", *_OPTIONS["hub"]),
}
_ELSEWHERE = ("hub", "webdataset")  # which may be anywhere
_FILES = (".json", ".jsonl", ".csv", ".parquet", ".arrow", ".tar", ".gz", ".zst", ".zip")  # and pictures and captions
_HUB_NAME = re.compile(r"\w[\w.-]*/[\w-][\w.-]*")
_KNOWN = "metadata.jsonl with pictures or maps, prompt.json, VideoX json, captions beside pictures, parquet, tar shards"


def open_rows(path: str, options: ReadOptions, format: str = "") -> Rows:
    """The rows of a data set, of the format that is found by looking if none is given.

    Raises BadInputError where there is nothing, nothing known, or rows are wrong, and for options that the format has
    no use for.
    """
    name = require_there(path, format)
    require_options(name, options)
    if name == "maps":
        raise BadInputError(
            f"{path} holds condition maps and no pictures", hint="train on the maps: --set data.source=conditions"
        )
    module, _, reader = FORMATS[name].partition(":")
    read = getattr(import_module(f"jdmctl.data.{module}"), reader)
    if name in PLAIN:
        return read(Path(path))
    return read(path if name in _ELSEWHERE else Path(path), options)


def require_there(path: str, format: str = "") -> str:
    """The format of a data set, whose rows are not read. Raises BadInputError where nothing is, or nothing known."""
    name = format or find_format(path)
    if name == "hub" and find_spec("datasets") is None:  # a path that is misspelt looks like a name there
        raise BadInputError(
            f"no folder {path}, and no file either; from the hub it needs the library datasets",
            hint="check the path, or pip install 'jdmctl[data]'",
        )
    if name not in _ELSEWHERE and not Path(path).exists():
        raise BadInputError(f"no folder {path}, and no file either", hint="check the path")
    return name


def require_options(format: str, options: ReadOptions) -> None:
    """Raises BadInputError for options that a format has no use for."""
    asked = {"image_column": options.image_column, "text_column": options.text_column}
    asked |= {"split": "" if options.split == "train" else options.split, "streaming": str(options.stream or "")}
    useless = [name for name, value in asked.items() if value and name not in _OPTIONS.get(format, ())]
    if useless:
        of = (f"{name} is for {', '.join(one for one in _OPTIONS if name in _OPTIONS[one])}" for name in useless)
        raise BadInputError(
            f"the format {format} has no use for {' and '.join(f'{name} {asked[name]!r}' for name in useless)}",
            hint=f"leave it out; {'; '.join(of)}",
        )


def problem_of_unread(source: str, given: Mapping[str, Any]) -> str:
    """What is wrong with what a recipe says of its data, if its source has no use for some of it."""
    useless = [f"{name} {given[name]!r}" for name in _UNREAD.get(source, ()) if name in given]
    return f"source {source!r} has no use for {' and '.join(useless)}: leave it out" if useless else ""


def require_format(name: str) -> None:
    """Raises BadInputError for a name, other than none, that is not a format's."""
    if name and name not in FORMATS:
        raise BadInputError(f"no format named {name!r}", hint=f"there are {', '.join(FORMATS)}")


def find_format(path: str) -> str:
    """A name of FORMATS. Raises BadInputError, with what is there, if it is none of them."""
    place = Path(path)
    if place.is_dir():
        return _of_folder(place)
    if place.is_file():
        return _of_file(place)
    if path.endswith(".tar") and ("{" in path or "://" in path or glob.has_magic(path)) or path.startswith("pipe:"):
        return "webdataset"
    if _HUB_NAME.fullmatch(path) and not _is_named_as_a_file(place):
        return "hub"
    raise BadInputError(f"no folder {path}, and no file either", hint="check the path; on the hub it is owner/name")


def is_known(path: str) -> bool:
    """Whether `find_format` finds one."""
    try:
        find_format(path)
    except BadInputError:
        return False
    return True


def _is_named_as_a_file(place: Path) -> bool:
    """Names on the hub may have a dot, as in prompts-2.47M."""
    from jdmctl.data.kohya import CAPTIONS
    from jdmctl.data.pictures import SUFFIXES

    return place.suffix.lower() in (*SUFFIXES, *CAPTIONS, *_FILES)


def _of_folder(folder: Path) -> str:
    from jdmctl.data.folders import files_below, is_shown
    from jdmctl.data.imagefolder import picture_columns
    from jdmctl.data.videox import is_list

    if (folder / "metadata.jsonl").is_file():
        columns = picture_columns(folder / "metadata.jsonl")
        return "maps" if columns and "file_name" not in columns else "imagefolder"
    if (folder / "prompt.json").is_file():
        return "controlnet"
    if (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file():
        return "saved"
    if any(is_list(file) for file in folder.glob("*.json") if is_shown(file.name)):
        return "videox"
    kinds = Counter(file.suffix.lower() for file in files_below(folder) if file.is_file())
    if kinds[".tar"]:
        return "webdataset"
    if kinds[".parquet"]:
        return "parquet"
    from jdmctl.data.kohya import CAPTIONS
    from jdmctl.data.pictures import SUFFIXES

    has_repeats = any(re.fullmatch(r"\d+_.+", inner.name) for inner in folder.iterdir() if inner.is_dir())
    if any(kinds[suffix] for suffix in SUFFIXES) and (has_repeats or any(kinds[suffix] for suffix in CAPTIONS)):
        return "kohya"
    found = ", ".join(f"{number} {suffix or 'without suffix'}" for suffix, number in kinds.most_common(4))
    raise BadInputError(
        f"{folder} is no data set that is known; it holds {found or 'nothing'}",
        hint=f"known are: {_KNOWN}. Pictures alone need captions: a.txt beside a.png",
    )


def _of_file(file: Path) -> str:
    from jdmctl.data.videox import is_list

    if file.suffix == ".tar" or ".tar." in file.name:
        return "webdataset"
    if file.suffix == ".parquet":
        return "parquet"
    if file.suffix == ".json":
        return "videox" if is_list(file) else "controlnet"
    raise BadInputError(f"{file} is no data set that is known", hint=f"known are: {_KNOWN}")
