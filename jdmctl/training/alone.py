"""One process at a time in a folder: whoever works there holds it until it ends, however it ends."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from jdmctl.errors import JdmError
from jdmctl.training.atomic import writing


@contextmanager
def alone(folder: Path, *, wait: bool = False) -> Iterator[None]:
    """Hold a folder, which is made if it is not there; `wait` for whoever holds it, or raise.

    The system lets go of it when the process ends, by kill -9 too; nothing is written. On a file system that knows no
    locks, as some network ones, nobody is kept out.

    Raises JdmError if another process holds it, or if it cannot be made.
    """
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder, os.O_RDONLY)
    try:
        _lock(descriptor, folder, wait)
        yield
    finally:
        os.close(descriptor)


def _lock(descriptor: int, folder: Path, wait: bool) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError as error:
        raise JdmError(
            f"another jdmctl is at work in {folder}", hint="wait until it ends, or choose another --output"
        ) from error
    except OSError:  # no locks here
        return
