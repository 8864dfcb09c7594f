"""The one place that prints. Results go to stdout; progress, notes and hints go to stderr.

Human output is for people at a terminal; `--json` writes one JSON object a line; `--quiet` leaves only results.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from rich.progress import TaskID

    from jdmctl.errors import JdmError

Mode = Literal["human", "json", "quiet"]


def mode(as_json: bool = False, quiet: bool = False) -> Mode:
    return "json" if as_json else "quiet" if quiet else "human"


class Output:
    """`with Output(mode) as out:` closes a live progress bar whatever happens."""

    def __init__(self, mode: Mode = "human"):
        self.mode = mode
        self._live: _Live | None = None
        self._has_warned = False  # of what a training's steps warn of

    def __enter__(self) -> Output:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._close()

    def result(self, record: Mapping[str, Any], text: str) -> None:
        """What the command was asked for: `text` for people, `record` under --json."""
        self._close()
        print(json.dumps(record) if self.mode == "json" else text, flush=True)

    def table(self, rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> None:
        """Rows as aligned columns, or a JSON object each."""
        if self.mode == "json":
            for row in rows:
                print(json.dumps(row))
            return
        cells = [[column.replace("_", " ") for column in columns]]
        cells += [[str(row[column]) for column in columns] for row in rows]
        widths = [max(len(line[i]) for line in cells) for i in range(len(columns))]
        for line in cells if self.mode == "human" else cells[1:]:
            print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())

    def note(self, text: str) -> None:
        """Something worth knowing on the way."""
        if self.mode == "human":
            self._stderr(text)

    def warning(self, text: str) -> None:
        self._stderr(f"warning: {text}")

    def error(self, problem: JdmError) -> None:
        """A user's mistake: one sentence and a hint."""
        self._stderr(f"error: {problem}" + (f"\nhint: {problem.hint}" if problem.hint else ""))

    def event(self, record: Mapping[str, Any]) -> None:
        """One record of a running training; see `jdmctl.training.plan.Observer`."""
        if self.mode == "json":
            print(json.dumps(record), flush=True)
        elif "warning" in record and not (self._has_warned and record["event"] == "step"):
            self._has_warned = self._has_warned or record["event"] == "step"
            self.warning(f"{record['stage']} {record['step']}: {record['warning']}")
        if self.mode == "human" and sys.stderr.isatty():
            self._live = self._live or _Live()
            self._live.show(record)
        elif self.mode == "human":
            self._stderr(_line(record))

    def _stderr(self, text: str) -> None:
        if self._live:
            self._live.print(text)
        else:
            print(text, file=sys.stderr, flush=True)

    def _close(self) -> None:
        if self._live:
            self._live.stop()
            self._live = None


class _Live:
    """At a terminal: a bar for each stage, and the latest numbers below."""

    def __init__(self) -> None:
        from rich.console import Console, Group
        from rich.live import Live
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
        from rich.text import Text

        self._console = Console(stderr=True)
        self._bars = Progress(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
        self._stages: dict[str, TaskID] = {}
        self._numbers, self._adherence = Text(), ""
        self._live = Live(Group(self._bars, self._numbers), console=self._console)
        self._live.start()

    def show(self, record: Mapping[str, Any]) -> None:
        if record["event"] == "validation":
            self._adherence = _adherence(record)
            self.print(_line(record))
            return
        stage = record["stage"]
        if stage not in self._stages:
            self._stages[stage] = self._bars.add_task(stage, total=record["num_steps"])
        self._bars.update(self._stages[stage], completed=record["step"])
        self._numbers.plain = ", ".join(filter(None, [_numbers(record), self._adherence]))

    def print(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False)

    def stop(self) -> None:
        self._live.stop()


def _line(record: Mapping[str, Any]) -> str:
    """A record as one plain line."""
    if record["event"] == "validation":
        return f"{record['stage']} {record['step']}: {_adherence(record)}"
    return f"{record['stage']} {record['step']}/{record['num_steps']}: {_numbers(record)}"


def _numbers(record: Mapping[str, Any]) -> str:
    """Gradient norms and energies by control, the fake score's loss, speed and time left."""
    parts = []
    for key, value in record.items():
        if key.endswith("_update_norm"):
            continue
        name, _, kind = key.rpartition("_")
        if kind == "norm":
            energy = record.get(f"{name}_energy")
            parts.append(f"{name} {value:.3g}" + (f" (energy {energy:.4g})" if energy is not None else ""))
        elif kind == "loss":
            parts.append(f"{name.replace('_', ' ')} loss {value:.4g}")
    minutes, seconds = divmod(int(record["seconds_left"]), 60)
    parts += [f"{record['samples_per_second']:.1f} samples/s", f"{minutes}:{seconds:02d} left"]
    return ", ".join(parts)


def _adherence(record: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value:.4f}" for name, value in record["adherence"].items())
