"""The page on which a person chooses: two pictures, four buttons (needs the extra `ui`)."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

from jdmctl.errors import JdmError
from jdmctl.feedback.session import Choice, Session

_HEIGHT_PX = 480
_HOUR, _LARGEST_UPLOAD = 3600, 1024  # seconds; bytes
_CSS = ".image-frame img { width: 100%; height: 100%; object-fit: contain }"  # small pictures are enlarged
_QUESTION = "Which picture do you prefer for this text?"


def build(session: Session) -> Any:
    """A gradio page on a session. Raises JdmError without gradio."""
    gradio = _gradio()
    with gradio.Blocks(title="jdmctl: which is better?", analytics_enabled=False, delete_cache=(_HOUR, _HOUR)) as page:
        text = gradio.Markdown()
        with gradio.Row():
            left, right = (
                gradio.Image(label=side, interactive=False, type="filepath", buttons=[], height=_HEIGHT_PX)
                for side in "ab"
            )
        with gradio.Row():
            labels: tuple[tuple[str, Choice | None], ...] = (
                ("a is better", "a"),
                ("they are equal", "tie"),
                ("b is better", "b"),
                ("skip", None),
            )
            buttons = [(gradio.Button(label), choice) for label, choice in labels]
        position = gradio.State(-1)
        shown = [text, left, right, position]

        def show() -> tuple[Any, ...]:
            try:
                number, pair = session.current()
            except JdmError as problem:
                raise gradio.Error(f"{problem}. {problem.hint}") from problem
            if pair is None:
                return f"## Done\nThat was all of {session.total} pairs. You can close this page.", None, None, -1
            title = f"{_QUESTION} ({session.num_before + number + 1} of {session.total})\n## {_plain(pair.prompt)}"
            return title, str(pair.image_a), str(pair.image_b), number

        def chosen(choice: Choice | None) -> Any:
            def click(number: int) -> tuple[Any, ...]:
                try:
                    session.choose(number, choice)
                except JdmError as problem:
                    raise gradio.Error(f"{problem}. {problem.hint}") from problem
                return show()

            return click

        for button, choice in buttons:
            button.click(chosen(choice), [position], shown, api_name=f"choose_{choice or 'nothing'}")
        page.load(show, None, shown, api_name="show")
    return page


def require_ready(port: int) -> None:
    """Raises JdmError without gradio, or if the port is taken: told before pictures are drawn."""
    _gradio()
    with socket.socket() as one:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # one that was just left is free
        try:
            one.bind(("127.0.0.1", port))
        except (OSError, OverflowError) as problem:
            raise JdmError(f"port {port} cannot be had: {problem}", hint="give another: --port 7861") from problem


def serve(session: Session, pictures: Path, port: int, wait: bool = True) -> Any:
    """Show the page on this machine only, until Ctrl-C; without `wait` return (app, address, shares)."""
    gradio = _gradio()
    page = build(session)
    theme = gradio.themes.Default(font=["sans-serif"], font_mono=["monospace"])  # others are fetched from the net
    return page.launch(
        server_name="127.0.0.1",
        server_port=port,
        share=False,
        theme=theme,
        css=_CSS,
        footer_links=[],
        quiet=True,
        max_file_size=_LARGEST_UPLOAD,  # the page takes none, but its server would
        allowed_paths=[str(pictures.resolve())],
        prevent_thread_lock=not wait,
    )


def _gradio() -> Any:
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    try:
        import gradio
    except ImportError as problem:
        raise JdmError("the page needs gradio, which is not installed", hint="pip install 'jdmctl[ui]'") from problem
    return gradio


def _plain(text: str) -> str:
    """A prompt as text, whatever marks are in it."""
    return "".join(f"\\{letter}" if letter in "\\`*_{}[]()#+-.!|<>$~" else letter for letter in text)
