"""A headless chromium, told what to do over its debugging protocol (Chrome DevTools Protocol)."""

import base64
import itertools
import json
import os
import shutil
import socket
import struct
import subprocess
import time
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import pytest

_PATIENCE_S = 90


def program() -> str:
    """The browser; skips the test where there is none."""
    return shutil.which("chromium") or shutil.which("google-chrome") or pytest.skip("no chromium")


@contextmanager
def opened(address: str, folder: Path):
    """A page on that address; skips the test where there is no chromium."""
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-port=0", "--window-size=1100,900"]
    process = subprocess.Popen(
        [program(), *flags, f"--user-data-dir={folder}", address], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        port = wait_for(lambda: _port(folder))
        with WebSocket(int(port), wait_for(lambda: _page(port, address))) as wire:
            yield Page(wire)
    finally:
        process.kill()
        process.wait()


class Page:
    def __init__(self, wire) -> None:
        self._wire, self._numbers = wire, itertools.count(1)

    def evaluate(self, script: str):
        answer = self._call("Runtime.evaluate", expression=script, returnByValue=True)
        return answer["result"].get("value")

    def screenshot(self, file: Path) -> None:
        file.write_bytes(base64.b64decode(self._call("Page.captureScreenshot")["data"]))

    def _call(self, method: str, **parameters):
        number = next(self._numbers)
        self._wire.send(json.dumps({"id": number, "method": method, "params": parameters}).encode())
        while True:
            message = json.loads(self._wire.receive())
            if message.get("id") == number:
                return message["result"]


class WebSocket:
    """As much of RFC 6455 as the protocol needs: whole messages to and from this machine."""

    def __init__(self, port: int, address: str) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=_PATIENCE_S)
        key, path = base64.b64encode(os.urandom(16)).decode(), address.split(str(port), 1)[1]
        self._socket.sendall(
            f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
        )
        self._stream = self._socket.makefile("rb")
        while self._stream.readline().strip():
            pass

    def __enter__(self):
        return self

    def __exit__(self, *error) -> None:
        self._socket.close()

    def send(self, message: bytes) -> None:
        length = len(message)
        size = struct.pack(">B", 0x80 | length) if length < 126 else struct.pack(">BH", 0x80 | 126, length)
        self._socket.sendall(b"\x81" + size + bytes(4) + message)  # a mask of zeros

    def receive(self) -> bytes:
        message, last = b"", False
        while not last:
            first, length = self._stream.read(2)
            if length >= 126:
                length = struct.unpack(">H", self._stream.read(2))[0] if length == 126 else self._long()
            last, message = bool(first & 0x80), message + self._stream.read(length)
        return message

    def _long(self) -> int:
        return struct.unpack(">Q", self._stream.read(8))[0]


def wait_for(condition):
    """What `condition` gives once it gives anything."""
    end = time.monotonic() + _PATIENCE_S
    while time.monotonic() < end:
        if found := condition():
            return found
        time.sleep(0.2)
    raise AssertionError("it did not happen in time")


def _port(folder: Path) -> str:
    file = folder / "DevToolsActivePort"
    return file.read_text().split("\n")[0] if file.is_file() else ""


def _page(port: str, address: str) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/json") as answer:
        pages = [page for page in json.load(answer) if page["type"] == "page" and page["url"].startswith(address)]
    return pages[0]["webSocketDebuggerUrl"] if pages else ""
