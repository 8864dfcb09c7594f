"""metrics.jsonl: what a run tells of itself, a line each; a full disk and a killed process leave it readable."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jdmctl.training.atomic import append_whole, writing


def add_record(file: Path, record: Mapping[str, Any]) -> None:
    """Append one line, in place of what a killed process left half-written. Raises JdmError if it cannot be written."""
    with writing(file):
        descriptor = os.open(file, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o666)
        try:
            size = os.fstat(descriptor).st_size
            if size and os.pread(descriptor, 1, size - 1) != b"\n":
                os.ftruncate(descriptor, file.read_bytes().rfind(b"\n") + 1)
            append_whole(descriptor, (json.dumps(record) + "\n").encode())
        finally:
            os.close(descriptor)


def read_records(file: Path) -> list[dict[str, Any]]:
    """All that can be read, none if there is no file: a line that was cut short once is left out."""
    content = file.read_text(encoding="utf-8", errors="replace") if file.exists() else ""
    return [record for line in content.split("\n") if (record := _record(line))]


def _record(line: str) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) else None
