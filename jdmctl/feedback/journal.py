"""A file of choices that grows line by line and never loses one."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jdmctl.errors import BadInputError
from jdmctl.feedback.pairs import FIELDS
from jdmctl.training.atomic import append_whole, writing

_BEGINNING = b'{"prompt": '


class Journal:
    """Appends choices to a .jsonl file and knows those that are in it.

    A line that a killed process or a full disk left half-written was never confirmed: it is cut off.

    Raises:
        BadInputError: the file holds something else than choices; it is left as it is.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if self.path.suffix != ".jsonl":
            raise BadInputError(f"{path} does not end in .jsonl", hint="for example --output choices.jsonl")
        self.records: list[dict[str, Any]] = []
        if self.path.exists():
            self._read()

    def add(self, record: Mapping[str, Any]) -> None:
        """One line, on the disk before this returns; of a line that does not fit nothing stays.

        Raises JdmError if it cannot be written.
        """
        line = (json.dumps(record, ensure_ascii=False) + "\n").encode()
        with writing(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            file = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
            try:
                fcntl.flock(file, fcntl.LOCK_EX)  # another page may write to the same file
                append_whole(file, line)
            finally:
                os.close(file)
        self.records.append(dict(record))

    def _read(self) -> None:
        content = self.path.read_bytes()
        whole, _, tail = content.rpartition(b"\n")
        for number, line in enumerate(whole.split(b"\n"), start=1):
            if line.strip():
                self.records.append(self._record(line, number))
        if not tail.strip():
            return
        with writing(self.path):
            if _is_cut_short(tail):
                os.truncate(self.path, len(content) - len(tail))
                return
            self.records.append(self._record(tail, 0))
            with self.path.open("ab") as file:
                file.write(b"\n")

    def _record(self, line: bytes, number: int) -> dict[str, Any]:
        try:
            record = json.loads(line)
        except ValueError:
            record = None
        if not isinstance(record, dict) or not set(FIELDS) <= record.keys():
            raise BadInputError(
                f"{self.path} is no list of choices: line {number or 'last'} is {line[:60].decode(errors='replace')!r}",
                hint="give another --output",
            )
        return record


def _is_cut_short(line: bytes) -> bool:
    """Whether this can be the beginning of one of our lines, and not all of it."""
    try:
        json.loads(line)
    except ValueError:
        return line.startswith(_BEGINNING[: len(line)])
    return False
