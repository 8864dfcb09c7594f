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


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """Write into the folder that is yielded; it takes `folder`'s place only once everything is on the disk.

    Raises JdmError if the disk is full or not writable; nothing is left behind then, and what was there stays.
    """
    place = Path(os.path.abspath(folder))  # "." has no name of its own
    partial = place.with_name(f".{place.name}{_MARK}")
    try:
        with writing(folder):
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
            yield partial
            for path in sorted(partial.rglob("*")):
                _to_disk(path)
            _to_disk(partial)
            _replace(place, partial)
            _to_disk(place.parent)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _replace(folder: Path, partial: Path) -> None:
    """The folder that the command runs in is filled: one put in its place would leave whoever stands in it nowhere."""
    if folder.exists() and folder.samefile(Path.cwd()):
        for path in folder.iterdir():
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        for path in partial.iterdir():
            path.rename(folder / path.name)
        return
    if folder.exists():
        shutil.rmtree(folder)
    partial.rename(folder)


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
    """Clear what a killed process left half-written in `folder`."""
    for path in folder.glob(f".*{_MARK}"):
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
