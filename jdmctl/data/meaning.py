"""What `--data PATH` is taken for; `jdmctl data inspect` says the same."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from jdmctl.data.formats import find_format
from jdmctl.data.imagefolder import picture_columns
from jdmctl.errors import BadInputError


class Meaning(NamedTuple):
    """In a recipe's words."""

    source: str  # images, conditions or prompts
    path: str
    format: str = ""


def meaning_of(path: str, format: str = "") -> Meaning:
    """A list of prompts, or rows of a format, whose ready-made conditions are taken where they are sure to be.

    A metadata.jsonl means its folder. Raises BadInputError as `find_format` does, for no path, and for another list of
    pictures.
    """
    if not path:
        raise BadInputError("no data set is named: its path is empty", hint="give a folder, a file, or a hub name")
    place = Path(path)
    if format in ("", "imagefolder") and place.name == "metadata.jsonl" and place.is_file():
        path = str(place.parent)
    elif not format and place.suffix in (".txt", ".jsonl"):
        if found := picture_columns(place):
            raise BadInputError(
                f"{path} lists pictures ({', '.join(found)}), so it is no list of prompts",
                hint="call it metadata.jsonl, beside the pictures, and give their folder; "
                f"for its captions alone: --set data.source=prompts --set data.path={path}",
            )
        return Meaning("prompts", path)
    name = format or find_format(path)
    has_conditions = name in ("controlnet", "maps") or (
        name == "imagefolder" and len(picture_columns(Path(path, "metadata.jsonl"))) > 1
    )
    return Meaning("conditions" if has_conditions else "images", path, name)
