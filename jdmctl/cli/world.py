"""`jdmctl world`: build the embedded world, or one of your own pictures."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from jdmctl.cli.evaluate import publish
from jdmctl.cli.options import (
    MAX_TRAINING_SEED,
    DeviceOption,
    JsonOption,
    NumOption,
    QuietOption,
    ResultsOption,
    SplitOption,
)
from jdmctl.cli.output import Output, mode
from jdmctl.errors import BadInputError

app = typer.Typer(
    name="world",
    help="Small worlds: a teacher, a one-step student, judges and ControlNets as ordinary folders.",
    no_args_is_help=True,
)


@app.command()
def build(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the finished world.")] = Path("world"),
    pictures: Annotated[
        Path | None, typer.Option(help="A folder of captioned images (metadata.jsonl); default: rendered scenes.")
    ] = None,
    budget: Annotated[float, typer.Option(min=0.0005, help="Share of the full training to spend.")] = 1.0,
    seed: Annotated[int, typer.Option(min=0, max=MAX_TRAINING_SEED, help="Of every stage.")] = 0,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Train everything from nothing; the same command again goes on where a build was stopped."""
    from jdmctl.tinyworld.make import build_world
    from jdmctl.tinyworld.source import captioned_folder
    from jdmctl.tinyworld.world import rendered

    with Output(mode(as_json, quiet)) as out:
        source = rendered if pictures is None else lambda split: captioned_folder(pictures, split)
        report = build_world(source, output, budget, seed, out.note, pictures)
        width = max(map(len, report))
        lines = "\n".join(f"{name.ljust(width)}  {value:.4f}" for name, value in report.items())
        out.result({"world": str(output), "report": report}, f"{lines}\nworld: {output}")
        out.note(
            "how near to true pictures teacher and students come, and how often they draw what is asked, takes "
            f"minutes to measure: JDMCTL_WORLD={shlex.quote(str(output))} jdmctl world report"
        )


@app.command()
def form(
    name: Annotated[str, typer.Argument(help="sdxl, pixart or sd3.")],
    budget: Annotated[float, typer.Option(min=0.0005, help="Share of the full training to spend.")] = 1.0,
    seed: Annotated[int, typer.Option(min=0, max=MAX_TRAINING_SEED, help="Of every stage.")] = 0,
    device: DeviceOption = "",
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Train the world's teacher and one-step student once more as another family: tiny/forms/NAME in recipes.

    The same command again goes on where a build was stopped.
    """
    from jdmctl.tinyworld.world import FORM_NAMES

    if name not in FORM_NAMES:
        raise BadInputError(f"the world has no form {name}", hint=f"there are {', '.join(FORM_NAMES)}")
    from jdmctl.tinyworld.forms.make import build_form

    with Output(mode(as_json, quiet)) as out:
        folder, numbers = build_form(name, budget, seed, out.note, out.event, device)
        lines = "\n".join(f"{key.ljust(20)}  {value:.4f}" for key, value in numbers.items())
        out.result({"form": str(folder), "report": numbers}, f"{lines}\nform: {folder}")


@app.command()
def report(
    split: SplitOption = "test",
    num: NumOption = 500,
    student: Annotated[
        list[str] | None,
        typer.Option(help="One-step student of the world's teacher, a folder or a LoRA; by default the world's own."),
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Times that each draws, from other noise.")] = 3,
    results: ResultsOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Measure the world's teacher and its one-step students: stated attributes, Frechet distance, variety."""
    from jdmctl.comparison.contest import world_rows
    from jdmctl.comparison.heldout import Asked
    from jdmctl.evaluation.results import require_place
    from jdmctl.tinyworld.world import own_students

    students = student or own_students()
    words = ["jdmctl", "world", "report", "--split", split, "--num", str(num), "--seeds", str(seeds)]
    words += [word for one in students for word in ("--student", one)]
    with Output(mode(as_json, quiet)) as out:
        require_place(results)
        rows = world_rows(Asked(split=split, num=num), students, range(seeds), shlex.join(words), out.note)
        publish(rows, results, out)
