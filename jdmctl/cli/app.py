"""The command line: names and their order. Nothing heavy is imported before a command runs."""

from __future__ import annotations

import errno
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Annotated

import typer

from jdmctl.cli import (
    add_control,
    align,
    compare,
    controls,
    data,
    distill,
    doctor,
    evaluate,
    export,
    inspect,
    plan,
    recipes,
    reward,
    rewards,
    sample,
    students,
    world,
)
from jdmctl.cli.output import Output
from jdmctl.errors import JdmError

app = typer.Typer(
    name="jdmctl",
    help="Teach a one-step image generator a control that its teacher never knew (Joint Distribution Matching).",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _tell_version(asked: bool) -> None:
    if asked:
        from jdmctl import __version__

        print(f"jdmctl {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_tell_version, is_eager=True, help="Say which version this is.")
    ] = False,
) -> None:
    """Takes what is said before any command."""


app.command("add-control")(add_control.add_control)
app.command("align")(align.align)
app.command("distill")(distill.distill)
app.command("sample")(sample.sample)
app.command("eval")(evaluate.evaluate)
app.command("compare")(compare.compare)
app.command("export")(export.export)
app.add_typer(world.app, name="world")
app.command("controls")(controls.controls)
app.command("divergences")(distill.divergences)
app.command("rewards")(rewards.rewards)
app.add_typer(reward.app, name="reward")
app.add_typer(recipes.app, name="recipes")
app.add_typer(data.app, name="data")
app.command("students")(students.students)
app.command("inspect")(inspect.inspect)
app.command("plan")(plan.plan)
app.command("doctor")(doctor.doctor)


@contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """Inside, SIGTERM ends a command as Ctrl-C does: what is half-written is removed. What follows it is ignored."""

    def end(number: int, frame: FrameType | None) -> None:
        signal.signal(number, signal.SIG_IGN)
        sys.exit(128 + number)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def main() -> None:
    """Run the command; a user's mistake becomes one sentence and a hint, a bug keeps its traceback."""
    try:
        with _ended_by_sigterm():
            app()
    except JdmError as error:
        if os.environ.get("JDMCTL_DEBUG") == "1":
            raise
        Output().error(error)
        sys.exit(error.exit_code)
    except OSError as error:  # wherever a name is looked for as a file
        if error.errno != errno.ENAMETOOLONG or os.environ.get("JDMCTL_DEBUG") == "1":
            raise
        name = str(error.filename)
        Output().error(
            JdmError(
                f"{name[:60]}... is too long for the name of a file: {len(name)} characters", hint="give a shorter name"
            )
        )
        sys.exit(1)
