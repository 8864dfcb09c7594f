"""Ctrl-C and termination requests, kept until the loop has a moment to save."""

from __future__ import annotations

import signal
import threading
import time
from types import FrameType
from typing import Any

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_ONE_REQUEST = 2.0  # seconds: a scheduler signals all processes, and torchrun hands its own signal on to each


class StopRequest:
    """Inside the block, the first signal only sets `received`; a second one of its kind acts at once, as usual.

    What follows within two seconds belongs to the first.
    """

    def __init__(self) -> None:
        self.received = False
        self._since: dict[int, float] = {}  # signal -> when it came first
        self._usual: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            self._usual = {number: signal.signal(number, self._remember) for number in _SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._usual.items():
            signal.signal(number, handler)

    def _remember(self, number: int, frame: FrameType | None) -> None:
        self.received, now = True, time.monotonic()
        if now - self._since.setdefault(number, now) > _ONE_REQUEST:
            signal.signal(number, self._usual[number])
            signal.raise_signal(number)
