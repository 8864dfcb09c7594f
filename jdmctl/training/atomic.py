"""Folders, files and lines that appear whole or not at all, whatever happens while they are written."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from safetensors import SafetensorError

from jdmctl.errors import JdmError

_MARK = ".partial"
_ASIDE = ".aside"


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """Write into the folder that is yielded; it takes `folder`'s place only once everything is on the disk.

    Raises JdmError if the disk is full or not writable; nothing is left behind then, and what was there stays. It lies
    hidden beside its place where a process is killed right between its going and the new one's coming; the next call
    puts it back, or `put_back` does.
    """
    place = Path(os.path.realpath(folder))  # "." has no name of its own, and a link stays
    partial, aside = (place.with_name(f".{place.name}{mark}") for mark in (_MARK, _ASIDE))
    try:
        with writing(folder):
            _put_back(aside, place)
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
            yield partial
            for path in sorted(partial.rglob("*")):
                _to_disk(path)
            _to_disk(partial)
            _replace(place, partial, aside)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def put_back(folder: Path) -> None:
    """Give what a killed process laid aside in `folder`, and did not replace, its name again. Raises JdmError."""
    for aside in folder.glob(f".*{_ASIDE}"):
        place = aside.with_name(aside.name[1:].removesuffix(_ASIDE))
        with writing(place), suppress(FileNotFoundError):  # another process of the run was first
            _put_back(aside, place)


def _put_back(aside: Path, place: Path) -> None:
    if aside.exists() and not place.exists():
        aside.rename(place)


def _replace(place: Path, partial: Path, aside: Path) -> None:
    """Lay the old one aside, and put the new one in its place; whatever fails, what is done of that is undone.

    The folder that the command runs in is emptied and filled: one put in its place would leave whoever stands in it
    nowhere. The old one ends as `partial`, so that what lies aside is always whole.
    """
    shutil.rmtree(aside, ignore_errors=True)  # of a process that was killed once the new one was in place
    moves = [(place, aside)] if place.is_dir() else []
    moves.append((partial, place))
    if place.is_dir() and place.samefile(Path.cwd()):
        aside.mkdir()
        moves = [(path, aside / path.name) for path in place.iterdir()]
        moves += [(path, place / path.name) for path in partial.iterdir()]
    try:
        for source, target in moves:
            source.rename(target)
        _to_disk(place.parent)
    except BaseException:
        for source, target in reversed(moves):
            if not os.path.lexists(source):
                target.rename(source)
        with suppress(OSError):  # it is there and empty only of the folder that the command runs in
            aside.rmdir()
        raise
    if aside.exists():
        aside.rename(partial)


@contextmanager
def writing(target: Path) -> Iterator[None]:
    """Turns what the system says when `target` cannot be written into a JdmError."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise _could_not_write(target, error) from error


@contextmanager
def whole_file(file: Path) -> Iterator[Path]:
    """Write to the path that is yielded; it takes `file`'s place as a folder does in `whole_folder`.

    Raises JdmError as that does.
    """
    partial = file.with_name(f".{file.name}{_MARK}")
    try:
        with writing(file):
            file.parent.mkdir(parents=True, exist_ok=True)
            yield partial
            _to_disk(partial)
            partial.replace(file)
    finally:
        with suppress(OSError):  # of a folder that is a file, or cannot be written to
            partial.unlink(missing_ok=True)


def write_text(file: Path, text: str) -> None:
    """Replace a small file at once. Raises JdmError as `whole_folder` does."""
    with whole_file(file) as partial:
        partial.write_text(text, encoding="utf-8")


def require_writable(file: Path) -> None:
    """Before hours go into a file: raises JdmError if it could not be written. Its folder is made."""
    probe = file.with_name(f".{file.name}.probe")
    with writing(file):
        file.parent.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()


def append_whole(descriptor: int, line: bytes) -> None:
    """Add to a file that is open for appending, on the disk before this returns; of what does not fit nothing stays.

    Raises OSError.
    """
    before = os.fstat(descriptor).st_size
    try:
        if os.write(descriptor, line) != len(line):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        os.fsync(descriptor)
    except OSError:
        os.ftruncate(descriptor, before)
        raise


def remove_partial(folder: Path) -> None:
    """Clear what a killed process left in `folder`, half-written or replaced; `put_back` comes first."""
    for path in (*folder.glob(f".*{_MARK}"), *folder.glob(f".*{_ASIDE}")):
        shutil.rmtree(path, ignore_errors=True)


def _to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _could_not_write(target: Path, error: Exception) -> JdmError:
    is_full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    is_full = is_full or "No space left" in str(error) or "File too large" in str(error)
    if is_full:
        return JdmError(
            f"the disk is full: could not save {target}",
            hint="free some space and try again; a training run goes on with --resume",
        )
    return JdmError(f"could not save {target}: {error}", hint="check that the folder can be written to")
