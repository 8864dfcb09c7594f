"""`jdmctl world`: build the embedded world, or one of your own pictures."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from jdmctl.cli.options import JsonOption, QuietOption
from jdmctl.cli.output import Output, mode

if TYPE_CHECKING:
    from jdmctl.evaluation.results import Row

SplitOption = Annotated[Literal["val", "test"], typer.Option(help="val to choose by, test to report.")]
NumOption = Annotated[int, typer.Option(min=20, help="Scenes.")]
ResultsOption = Annotated[
    Path | None,
    typer.Option(help="File of rows, docs/results/NAME.json; README.md and docs/results.md show them."),
]

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
    seed: Annotated[int, typer.Option(help="Of every stage.")] = 0,
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


@app.command()
def score(
    runs: Annotated[list[Path], typer.Argument(help="Run folders of one recipe with different seeds.")],
    split: SplitOption = "test",
    num: NumOption = 500,
    compose: Annotated[bool, typer.Option(help="Use the branches of all runs together.")] = False,
    baselines: Annotated[bool, typer.Option(help="Also score what the runs have to beat.")] = True,
    results: ResultsOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Score runs on the embedded world's held-out scenes, beside no control and ordinary ControlNets."""
    from jdmctl.tinyworld.contest import score_runs

    command = f"jdmctl world score {' '.join(map(str, runs))} --split {split} --num {num}"
    command += (" --compose" if compose else "") + ("" if baselines else " --no-baselines")
    with Output(mode(as_json, quiet)) as out:
        _publish(score_runs(runs, split, num, compose, baselines, command, out.note), results, out)


@app.command()
def report(
    split: SplitOption = "test",
    num: NumOption = 500,
    results: ResultsOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Measure the world's own teacher and one-step student: stated attributes, Frechet distance, variety."""
    from jdmctl.tinyworld.contest import world_rows

    with Output(mode(as_json, quiet)) as out:
        rows = world_rows(split, num, f"jdmctl world report --split {split} --num {num}", out.note)
        _publish(rows, results, out)


def _publish(rows: list[Row], results: Path | None, out: Output) -> None:
    """Show rows; put them into a results file, and their table wherever README.md or docs/results.md asks for it."""
    from dataclasses import asdict

    from jdmctl.evaluation.results import fill, merge, read, table, write
    from jdmctl.training.atomic import write_text

    if results:
        everything = merge(read(results), rows)
        write(results, everything)
        for document in (results.parent.with_suffix(".md"), Path("README.md")):
            if document.exists() and f"<!-- results: {results.stem}" in (text := document.read_text(encoding="utf-8")):
                write_text(document, fill(text, results.stem, everything))
    out.result({"rows": [asdict(row) for row in rows]}, table(rows))
