"""Pictures with a caption file beside each, in the folders of kohya-ss's sd-scripts."""

from __future__ import annotations

import re
from pathlib import Path

from jdmctl.data.folders import files_below
from jdmctl.data.metadata import problems_error, read_text
from jdmctl.data.pictures import SUFFIXES
from jdmctl.data.rows import ListedRows
from jdmctl.errors import BadInputError

CAPTIONS = (".caption", ".txt")
_REPEATED = re.compile(r"(\d+)_(.+)")


def read_kohya(folder: Path) -> ListedRows:
    """`a.png` with `a.caption` or `a.txt`, also in capitals, in the folder or below it, in the order of their paths.

    The first line of a caption file counts. A folder called `10_sks dog` is shown ten times an epoch (`0_` never),
    and its pictures without a caption file have the caption `sks dog` (github.com/kohya-ss/sd-scripts,
    docs/train_README-en.md).

    Raises BadInputError with all pictures that have no caption, or one that is not UTF-8.
    """
    files, texts, times, problems = [], [], [], []
    for file in sorted(file for file in files_below(folder) if file.suffix.lower() in SUFFIXES and file.is_file()):
        named = _REPEATED.fullmatch(file.parent.name)
        if named and int(named[1]) == 0:
            continue
        try:
            caption = _caption(file)
        except BadInputError as problem:
            problems.append(str(problem))
            continue
        if caption is None and not named:
            problems.append(f"{file.relative_to(folder)}: no {file.stem}.txt or {file.stem}.caption beside it")
        files.append(file)
        texts.append(named[2] if caption is None and named else caption or "")
        times.append(int(named[1]) if named else 1)
    if problems:
        raise problems_error(folder, problems, "write a caption file beside each picture, a.txt for a.png")
    if not files:
        raise BadInputError(f"{folder} holds no pictures", hint="give a folder with PNG, JPEG or WebP files")
    return ListedRows(folder, files, texts, times=times)


def _caption(picture: Path) -> str | None:
    for suffix in (*CAPTIONS, *map(str.upper, CAPTIONS)):
        file = picture.with_suffix(suffix)
        if file.is_file():
            return next(iter(read_text(file).splitlines()), "").strip()
    return None
