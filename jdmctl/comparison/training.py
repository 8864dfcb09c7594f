"""Trains the cells of a comparison, each by its ordinary command in a process of its own."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from jdmctl.comparison.cells import Cell
from jdmctl.errors import BadInputError
from jdmctl.recipe_files import load_recipe, to_yaml
from jdmctl.training.atomic import write_text
from jdmctl.training.run import RECIPE_FILE


def require_same(cells: Sequence[Cell]) -> None:
    """Raises BadInputError if a cell's folder holds a run of another recipe than is asked for now."""
    for cell in cells:
        if (cell.folder / RECIPE_FILE).is_file() and load_recipe(cell.folder) != cell.recipe:
            raise BadInputError(
                f"{cell.folder} holds a run of another recipe",
                hint="give the options that it was made with, delete it, or choose another --output",
            )


@contextmanager
def _interrupted_by_sigterm() -> Iterator[None]:
    """SIGTERM is as Ctrl-C."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@_interrupted_by_sigterm()
def complete(cells: Sequence[Cell], budget_seconds: float, device: str, say: Callable[[str], None]) -> None:
    """Train what is missing, in order, until the budget is spent.

    A cell that is cut off, by Ctrl-C and SIGTERM too, is saved and goes on next time. One that fails is told, and the
    next is tried.
    """
    ends = time.monotonic() + budget_seconds
    for cell in cells:
        left = ends - time.monotonic()
        if cell.is_done or left <= 0:
            continue
        say(f"training {cell.name}")
        process = subprocess.Popen(_command(cell, device), stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
        try:
            code = process.wait(timeout=left if left < float("inf") else None)
        except subprocess.TimeoutExpired:
            say(f"{cell.name}: the budget is spent; the same command again goes on with it")
        else:
            if code:
                say(f"{cell.name} failed (exit code {code}); the report will say that it is missing")
        finally:
            process.terminate()  # it saves its state; of Ctrl-C it knows already
            process.wait()


def _command(cell: Cell, device: str) -> list[str]:
    words = [sys.executable, "-m", "jdmctl.cli.child", cell.recipe.command]
    words += ["--device", device] if device else []
    if (cell.folder / RECIPE_FILE).is_file():  # it was begun; without a checkpoint, it begins anew
        return [*words, str(cell.folder), "--resume"]
    recipe = cell.folder.with_suffix(".yaml")
    write_text(recipe, to_yaml(cell.recipe))
    return [*words, str(recipe), "--output", str(cell.folder)]
