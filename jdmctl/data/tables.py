"""Tables of pictures and captions: parquet files, what `datasets` saved, data sets on the hub."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jdmctl.data.folders import files_below, of_split
from jdmctl.data.formats import CONDITION
from jdmctl.data.metadata import problems_error
from jdmctl.data.options import ReadOptions
from jdmctl.data.pictures import Packed, Picture
from jdmctl.data.rows import identity_of
from jdmctl.errors import BadInputError, JdmError, first_line

_IMAGE_NAMES = ("image", "jpg", "png", "webp", "jpeg", "img")
_TEXT_NAMES = ("text", "caption", "prompt", "txt")
_LOADING = (OSError, ValueError, KeyError, RuntimeError)  # what datasets raises for what it cannot find or read


class TableRows:
    """Rows of a memory-mapped Arrow table, so any row is at hand; its pictures stay packed until asked for."""

    def __init__(self, table: Any, name: str, options: ReadOptions) -> None:
        from datasets import Image

        self._name = name
        features = table.features
        self._image = _column(features, "image", options.image_column, _IMAGE_NAMES, _is_picture, name)
        self._text = _column(features, "text", options.text_column, _TEXT_NAMES, _is_string, name)
        self.conditions = tuple(
            column for column, kind in features.items() if column.startswith(CONDITION) and _is_picture(kind)
        )
        for column in (self._image, *self.conditions):
            if isinstance(features[column], Image):
                table = table.cast_column(column, Image(decode=False))
        self._columns = {
            column: table.select_columns([column]) for column in (self._text, self._image, *self.conditions)
        }
        self._require_whole()

    def __len__(self) -> int:
        return len(self._columns[self._text])

    def text(self, index: int) -> str:
        return self._columns[self._text][index][self._text]

    def picture(self, index: int, column: str = "") -> Picture:
        column = column or self._image
        found, name = self._columns[column][index][column], f"{self._name} row {index} ({column})"
        if isinstance(found, Mapping):
            found = found["path"] if found.get("bytes") is None else found["bytes"]
        if found is None:
            raise BadInputError(f"{name} is empty", hint="leave this row out")
        return Packed(name, found) if isinstance(found, bytes) else Path(found)

    def repeats(self, index: int) -> int:
        return 1

    def shown(self, index: int) -> int:
        return index

    def identity(self) -> str:
        files = [Path(part["filename"]) for part in self._columns[self._text].cache_files]
        return f"{identity_of(files) if files else f'{self._name} {len(self)}'} {self._image}"

    def _require_whole(self) -> None:
        """Raises BadInputError with all rows that have no caption or no picture."""
        if not len(self):
            raise BadInputError(f"{self._name} has no rows", hint="give another file or split")
        problems = []
        for column, rows in self._columns.items():
            values = rows.with_format("arrow")[:][column]
            if values.null_count:
                empty = [number for number, is_null in enumerate(values.is_null().to_pylist()) if is_null]
                problems += [f"row {number}: no {column!r}" for number in empty]
        if problems:
            raise problems_error(self._name, problems, "leave these rows out (datasets: table.filter), or fill them")


def read_parquet(path: Path, options: ReadOptions) -> TableRows:
    """A parquet file, or those below a folder that belong to a split, by their names (`train-00000-of-00002.parquet`).

    They are converted once to Arrow files in the cache, which takes about as much room again; `options.stream`
    converts the first rows only. Raises BadInputError for what is not parquet, or has no such columns.
    """
    where: dict[str, str | list[str]] = {"data_dir" if path.is_dir() else "data_files": str(path)}
    files = sorted(file for file in files_below(path) if file.suffix == ".parquet") if path.is_dir() else [path]
    if not files:
        raise BadInputError(f"{path} holds no .parquet file", hint="check the path")
    if path.is_dir() and len(files) > len(list(path.rglob("*.parquet"))):  # `datasets` does not follow links to folders
        where["data_files"] = [str(file.absolute()) for file in of_split(path, files, options.split)]
    return TableRows(_load("parquet", options, where, files), str(path), options)


def read_saved(path: Path, options: ReadOptions) -> TableRows:
    """A folder that `save_to_disk` of `datasets` wrote; of several splits `options.split`. Nothing is copied."""
    datasets = _library()
    with _told(f"{path} cannot be read as a saved data set", "save it again with save_to_disk"):
        loaded = datasets.load_from_disk(str(path))
    if isinstance(loaded, datasets.DatasetDict):
        if options.split not in loaded:
            raise BadInputError(
                f"{path} has no split {options.split!r}, but {', '.join(loaded)}",
                hint=f"--set data.split={next(iter(loaded), 'train')}",
            )
        loaded = loaded[options.split]
    return TableRows(loaded, str(path), options)


def read_hub(name: str, options: ReadOptions) -> TableRows:
    """A data set on the hub, downloaded once into the cache of `datasets`.

    With `options.stream` no more than the first rows of the split are fetched, once, and kept: a stream itself has no
    row 17 to come back to, which resuming a run needs. Raises BadInputError where the hub has no such thing.
    """
    return TableRows(_load(name, options, {}, []), f"{name} ({options.split})", options)


def _load(builder: str, options: ReadOptions, where: Mapping[str, Any], files: Sequence[Path]) -> Any:
    """What `load_dataset` makes of a hub name, or of local `files`, which it is told by `where`."""
    datasets = _library()
    split = "train" if "data_files" in where else options.split
    what, hint = f"{next(iter(where.values()), '')} cannot be read", "check the file, and data.split"
    if not files:
        what = f"no folder {builder}, and it cannot be had from the hub"
        hint = "check the name, data.split and the connection, or give a local folder"
    local = {"cache_dir": str(options.cache / "tables")} if files else {}
    with _told(what, hint):
        if options.stream:
            return _streamed(builder, split, options, where, files)
        return datasets.load_dataset(builder, split=split, **where, **local)


def _streamed(builder: str, split: str, options: ReadOptions, where: Mapping[str, Any], files: Sequence[Path]) -> Any:
    """The first rows as a table of their own in the cache; made in whole or not at all."""
    datasets = _library()
    key = json.dumps([builder, split, identity_of(files), options.stream])
    kept = options.cache / "streams" / hashlib.sha256(key.encode()).hexdigest()[:24]
    if not kept.is_dir():
        stream = datasets.load_dataset(builder, split=split, streaming=True, **where)
        for column, kind in (stream.features or {}).items():
            if isinstance(kind, datasets.Image):
                stream = stream.cast_column(column, datasets.Image(decode=False))
        kept.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=kept.parent, prefix=".partial") as partial:
            rows = datasets.Dataset.from_generator(
                _rows_of,
                gen_kwargs={"stream": stream, "num": options.stream},
                features=stream.features,
                cache_dir=partial,
                fingerprint=kept.name,
            )
            rows.save_to_disk(f"{partial}/whole")
            try:
                Path(partial, "whole").rename(kept)
            except OSError:
                if not kept.is_dir():  # else another process was first
                    raise
    return datasets.load_from_disk(str(kept))


def _rows_of(stream: Any, num: int) -> Any:
    yield from stream.take(num)


def _column(features: Any, what: str, asked: str, usual: Sequence[str], fits: Any, name: str) -> str:
    """Which column holds pictures, or captions."""
    listed = ", ".join(f"{column} ({_kind(kind)})" for column, kind in features.items())
    if asked:
        if asked in features and fits(features[asked]):
            return asked
        found = f"its {asked!r} is {_kind(features[asked])}" if asked in features else f"there is no {asked!r}"
        raise BadInputError(
            f"{name}: {found}, which cannot be the {what} column; it has {listed}",
            hint=f"name another: --set data.{what}_column=COLUMN",
        )
    fitting = [column for column, kind in features.items() if fits(kind) and not column.startswith(CONDITION)]
    named = [column for column in usual if column in fitting]
    if named or len(fitting) == 1:
        return (named or fitting)[0]
    raise BadInputError(
        f"{name}: which column is the {what}? It has {listed}",
        hint=f"name it: --set data.{what}_column={(fitting or ['COLUMN'])[0]}",
    )


def _kind(kind: Any) -> str:
    return getattr(kind, "dtype", None) or type(kind).__name__


def _is_picture(kind: Any) -> bool:
    """Pictures as such, as packed bytes, or as {"bytes", "path"}, which is how parquet files hold them."""
    from datasets import Image

    is_struct = isinstance(kind, Mapping) and {"bytes", "path"} >= set(kind) and "bytes" in kind
    return isinstance(kind, Image) or is_struct or getattr(kind, "dtype", "") in ("binary", "large_binary")


def _is_string(kind: Any) -> bool:
    return getattr(kind, "dtype", "") in ("string", "large_string")


class _told:
    """Turns what `datasets` raises into one sentence."""

    def __init__(self, what: str, hint: str) -> None:
        self._what, self._hint = what, hint

    def __enter__(self) -> None: ...

    def __exit__(self, kind: Any, problem: Any, trace: Any) -> None:
        if isinstance(problem, (*_LOADING, _library().exceptions.DatasetsError)):
            cause = problem.__cause__ or problem
            raise BadInputError(f"{self._what}: {first_line(cause)}", hint=self._hint) from problem


def _library() -> Any:
    try:
        import datasets
    except ImportError as problem:
        raise JdmError("tables of pictures need the library datasets", hint="pip install 'jdmctl[data]'") from problem
    return datasets
