"""WebDataset: tar files in which members of one name are a sample."""

from __future__ import annotations

import glob
import hashlib
import json
import os
import re
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jdmctl.data.arrays import keep_arrays, read_arrays
from jdmctl.data.folders import files_below, of_split
from jdmctl.data.formats import CONDITION
from jdmctl.data.metadata import is_whole, problems_error
from jdmctl.data.options import ReadOptions
from jdmctl.data.pictures import SUFFIXES, Packed
from jdmctl.data.rows import identity_of
from jdmctl.errors import BadInputError, JdmError

_PICTURES = tuple(suffix[1:] for suffix in SUFFIXES)
_TEXTS = ("txt", "caption", "json")
_KEYS = ("caption", "text", "prompt")  # of a .json member
_MEMBER = re.compile(r"((?:.*/|)[^.]+)[.]([^/]*)")  # sample's name, kind: as webdataset's own readers split them

Span = tuple[int, int]  # where a member's bytes begin, how many they are


class ShardRows:
    """Samples of tar files in the order in which they lie there, each at hand at once.

    A tar file has no table of contents: the first time, all headers and captions of a shard are read (two seeks a
    sample, no pictures) and where things lie is kept in the cache, 16 bytes a member and the names; after that a
    sample costs one seek. On a network disk the first reading takes long; a shard that changed is read again. The
    shards must be local and not compressed, since otherwise nothing can be found without reading all before it.
    """

    def __init__(self, shards: Sequence[Path], options: ReadOptions, name: str) -> None:
        self._image, self._text_key = options.image_column, options.text_column
        tables, problems = [], []
        for shard in shards:
            table, wrong = _table_of(shard, options)
            tables.append(table)
            problems += [f"{shard.name}: {text}" for text in wrong]
        if problems:
            raise problems_error(name, problems, "write these samples again, or leave them out")
        filled = [(shard, table) for shard, table in zip(shards, tables, strict=True) if len(table["name"])]
        if not filled:
            raise BadInputError(f"{name} has no samples", hint="a sample is a picture and a caption: a.jpg and a.txt")
        self._shards, tables = [shard for shard, _ in filled], [table for _, table in filled]
        self._shard = np.repeat(np.arange(len(tables)), [len(table["name"]) for table in tables])
        first = {column for column in tables[0] if column.startswith(CONDITION)}
        self.conditions = tuple(sorted(first.intersection(*tables)))
        columns = ("name", "text", "image", "is_json", *self.conditions)
        self._columns = {column: np.concatenate([table[column] for table in tables]) for column in columns}

    def __len__(self) -> int:
        return len(self._shard)

    def text(self, index: int) -> str:
        return _caption(self._read(index, "text"), self._columns["is_json"][index], self._text_key)

    def picture(self, index: int, column: str = "") -> Packed:
        return Packed(self._name(index), self._read(index, column or "image"))

    def repeats(self, index: int) -> int:
        return 1

    def shown(self, index: int) -> tuple[int, bytes]:
        return index, bytes(self._columns["name"][index])

    def identity(self) -> str:
        return f"{identity_of(self._shards)} {self._image}"

    def _name(self, index: int) -> str:
        return f"{self._shards[self._shard[index]]}: {self._columns['name'][index].decode()}"

    def _read(self, index: int, column: str) -> bytes:
        return _read(self._shards[self._shard[index]], self._columns[column][index].tolist())


def read_shards(path: str, options: ReadOptions) -> ShardRows:
    """A tar file, a folder of them, or a pattern such as `data/{000..127}.tar`.

    A sample is a picture (.jpg, .png, .webp ...) and a caption of the same name: .txt, .caption, or .json with
    `caption`, `text` or `prompt`. `options.image_column` and `text_column` name other kinds of members, or the key
    of the json. Condition pictures are members `a.conditioning_image.png` or `a.conditioning_image_canny.png`. Of a
    folder the shards of `options.split` are read, as their names tell it.

    Raises BadInputError for shards that are missing, damaged or compressed, and with all samples that are not whole.
    """
    return ShardRows(_expand(path, options.split), options, path)


def _expand(path: str, split: str) -> list[Path]:
    if "://" in path or path.startswith("pipe:"):
        raise BadInputError(
            f"{path} is not on this machine: its samples could not be found without reading all before them",
            hint="download the shards, or name the data set as it is called on the hub",
        )
    folder = Path(path)
    if folder.is_dir():
        shards = sorted((file for file in files_below(folder) if file.suffix == ".tar"), key=str)
        names = list(map(str, of_split(folder, shards, split)))
    elif split != "train":
        raise BadInputError(
            f"{path} says itself which shards are meant, so there is no use for split {split!r}",
            hint="leave it out, or give the folder of the shards",
        )
    elif "{" in path and not folder.exists():
        names = _braces(path)
    elif glob.has_magic(path) and not folder.exists():
        names = sorted(glob.glob(path))
    else:
        names = [path]
    missing = [f"no file {name}" for name in names if not Path(name).is_file()]
    if missing:
        raise problems_error(path, missing, "download these shards, or leave them out of the pattern")
    if not names:
        raise BadInputError(f"{path}: no .tar file there", hint="check the path")
    return [Path(name) for name in names]


def _braces(path: str) -> list[str]:
    try:
        from webdataset.shardlists import expand_urls
    except ImportError as problem:
        raise JdmError(
            f"{path}: patterns with braces need the library webdataset",
            hint="pip install 'jdmctl[data]', or give the folder of the shards",
        ) from problem
    return list(expand_urls(path))


def _table_of(shard: Path, options: ReadOptions) -> tuple[dict[str, np.ndarray], list[str]]:
    """Where everything lies in a shard, and what is wrong there; from the cache if the shard is as it was."""
    state = shard.stat()
    wanted = [str(shard.resolve()), state.st_size, state.st_mtime_ns, options.image_column, options.text_column, 3]
    file = options.cache / "shards" / f"{hashlib.sha256(json.dumps(wanted).encode()).hexdigest()[:32]}.npz"
    if kept := read_arrays(file):
        return kept, []
    table, problems = _index(shard, options)
    if not problems:
        keep_arrays(file, table)
    return table, problems


def _index(shard: Path, options: ReadOptions) -> tuple[dict[str, np.ndarray], list[str]]:
    names: list[bytes] = []
    columns: dict[str, list[Any]] = {"image": [], "text": [], "is_json": []}
    others: list[dict[str, Span]] = []
    problems = []
    for name, members, twice in _samples(shard):
        if twice:
            problems.append(f"{name}: two samples of this name in a row, both with .{', .'.join(sorted(twice))}")
            continue
        image = _first(members, (options.image_column,) if options.image_column else _PICTURES)
        text = _first(members, (options.text_column, "json") if options.text_column else _TEXTS)
        if not (image and text):
            lacks = " and ".join(what for what, kind in (("picture", image), ("caption", text)) if not kind)
            problems.append(f"{name}: no {lacks}, only .{', .'.join(sorted(members))}")
            continue
        try:
            _caption(_read(shard, members[text]), text == "json", options.text_column)
        except (ValueError, RecursionError) as problem:
            problems.append(f"{name}.{text}: {problem}")
            continue
        names.append(name.encode())
        columns["image"].append(members[image])
        columns["text"].append(members[text])
        columns["is_json"].append(text == "json")
        others.append({kind.split(".")[0]: span for kind, span in members.items() if kind.startswith(CONDITION)})
    table = {key: np.array(values) for key, values in columns.items()} | {"name": np.array(names, dtype="S")}
    for column in set().union(*others):
        without = [names[number].decode() for number, kinds in enumerate(others) if column not in kinds]
        problems += [f"{name}: no {column}, which other samples have" for name in without]
        if not without:
            table[column] = np.array([kinds[column] for kinds in others])
    return table, problems


def _read(shard: Path, span: Span) -> bytes:
    with shard.open("rb") as stream:
        stream.seek(span[0])
        return stream.read(span[1])


def _caption(content: bytes, is_json: bool, key: str) -> str:
    """Raises ValueError for what is not UTF-8, json without a caption, or a caption with half a character."""
    text = content.decode("utf-8-sig")
    if not is_json:
        return text.strip()
    row = json.loads(text)
    keys = [key] if key else _KEYS
    found = [row[key] for key in keys if isinstance(row, dict) and isinstance(row.get(key), str)]
    if not found:
        has = ", ".join(row) if isinstance(row, dict) else type(row).__name__
        raise ValueError(f"no {' or '.join(keys)}, but {has} (data.text_column names another)")
    if not is_whole(found[0]):
        raise ValueError(f"{found[0]!r} has half a character")
    return found[0]


def _first(members: dict[str, Span], kinds: Sequence[str]) -> str:
    return next((kind for kind in kinds if kind in members), "")


def _samples(shard: Path) -> Iterator[tuple[str, dict[str, Span], set[str]]]:
    """Name, members by kind, and the kinds that are there twice, of neighbours of one name."""
    size, current = os.path.getsize(shard), ""
    members: dict[str, Span] = {}
    twice: set[str] = set()
    for member in _members(shard):
        split = _MEMBER.fullmatch(member.name)
        if not member.isreg() or not split or Path(member.name).name.startswith("__"):
            continue
        if member.offset_data + member.size > size:
            raise BadInputError(f"{shard} is cut short: {member.name} is not all there", hint="copy it again")
        if split[1] != current:
            if members:
                yield current, members, twice
            current, members, twice = split[1], {}, set()
        kind = split[2].lower()
        if kind in members:
            twice.add(kind)
        members[kind] = (member.offset_data, member.size)
    if members:
        yield current, members, twice


def _members(shard: Path) -> Iterator[tarfile.TarInfo]:
    try:
        # of a name that is not UTF-8 the odd bytes are written out, so that it can be kept and told
        with tarfile.open(shard, "r:", encoding="utf-8", errors="backslashreplace") as archive:
            yield from archive
            _require_end(shard, archive.offset)
    except (tarfile.TarError, EOFError) as problem:
        with shard.open("rb") as stream:
            is_packed = stream.read(4).startswith((b"\x1f\x8b", b"BZh", b"\xfd7zX", b"\x28\xb5\x2f\xfd"))
        if is_packed:
            raise BadInputError(
                f"{shard} is compressed, so no sample in it can be found without unpacking all before it",
                hint="unpack it to a plain .tar first (gunzip, zstd -d); pictures are compressed anyway",
            ) from problem
        raise BadInputError(f"{shard} is not a whole tar file: {problem}", hint="copy it again") from problem


def _require_end(shard: Path, offset: int) -> None:
    """Raises BadInputError unless zeros follow the last member that was found: tarfile takes all else for the end."""
    size = os.path.getsize(shard)
    if size < offset + tarfile.BLOCKSIZE:
        raise BadInputError(f"{shard} is cut short: the zeros that end a tar file are missing", hint="copy it again")
    with shard.open("rb") as stream:
        stream.seek(offset)
        while part := stream.read(2**20):
            if part.count(0) < len(part):
                raise BadInputError(
                    f"{shard} is not a whole tar file: of its {size} bytes, those after {offset} cannot be read",
                    hint="copy it again; if several were joined to one, give them as they were",
                )
