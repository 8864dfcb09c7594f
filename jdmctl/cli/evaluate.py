"""`jdmctl eval`: scores of runs, students or finished pictures, on held-out pictures."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from jdmctl.cli.options import (
    DEFAULT_FEATURES,
    FeaturesOption,
    HeldOutOption,
    JsonOption,
    NumOption,
    QuietOption,
    ReferenceOption,
    ResultsOption,
    ScoringDeviceOption,
    SplitOption,
)
from jdmctl.cli.output import Output, mode
from jdmctl.errors import BadInputError

if TYPE_CHECKING:
    from jdmctl.comparison.heldout import Asked
    from jdmctl.evaluation.results import Row


def evaluate(
    targets: Annotated[
        list[Path], typer.Argument(help="Runs (one recipe, several seeds), a one-step pipeline, or a picture folder.")
    ],
    data: HeldOutOption = None,
    reference: ReferenceOption = None,
    features: FeaturesOption = DEFAULT_FEATURES,
    control: Annotated[
        list[str], typer.Option(help="For a picture folder: what its pictures were to obey in those of --data.")
    ] = [],  # noqa: B006
    split: SplitOption = "test",
    num: NumOption = 500,
    compose: Annotated[bool, typer.Option("--compose", help="Use the branches of all runs together.")] = False,
    baselines: Annotated[bool, typer.Option(help="Also score what the runs have to beat.")] = True,
    label: Annotated[str, typer.Option(help="What to call the runs' method in the rows.")] = "",
    pictures: Annotated[Path | None, typer.Option(help="PNG of the first requests and answers, to be written.")] = None,
    results: ResultsOption = None,
    device: ScoringDeviceOption = "cpu",
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Score adherence, distance to true pictures, prompts, variety and looks; the same numbers each time.

    Runs are scored on the embedded world's held-out scenes, or on the pictures of --data. A pipeline is scored without
    control. The pictures of a folder, made by any program, are scored as they are; with --data, picture by picture.
    """
    from jdmctl.comparison.contest import Entrant, score_pictures, score_pipeline, score_runs
    from jdmctl.comparison.heldout import Asked
    from jdmctl.evaluation.results import require_place
    from jdmctl.training.device import find_device

    options = {
        "--data": data, "--reference": reference, "--features": features if data or reference else "",
        "--control": " --control ".join(control), "--split": "" if data or reference else split, "--num": num,
        "--device": device if device != "cpu" else "",
    }  # fmt: skip
    given = [f"{key} {value}" for key, value in options.items() if value]
    command = " ".join(["jdmctl eval", *map(str, targets), *given])
    command += f' --label "{label}"' if label else ""
    command += (" --compose" if compose else "") + ("" if baselines else " --no-baselines")
    first = targets[0]
    with Output(mode(as_json, quiet)) as out:
        asked = Asked(data, reference, features, split, num, find_device(device or "cpu"))
        _check(targets, asked, control)
        require_place(results)
        if (first / "recipe.yaml").is_file():
            entrant = Entrant.of(targets, compose, label)
            rows = score_runs(entrant, asked, baselines, command, out.note, pictures)
        elif (first / "model_index.json").is_file():
            rows = score_pipeline(first, asked, command, out.note)
        else:
            rows = score_pictures(first, asked, control, command)
        publish(rows, results, out)


def _check(targets: list[Path], asked: Asked, control: list[str]) -> None:
    """Raises BadInputError for targets and options that do not go together."""
    for target in targets:
        if not target.is_dir():
            raise BadInputError(f"no folder {target}", hint="give a run, a pipeline or a folder of pictures")
    others = [target for target in targets if not (target / "recipe.yaml").is_file()]
    if others and len(targets) > 1:
        raise BadInputError(f"{others[0]} is not a run, and only runs are scored together", "give one at a time")
    if others and not (others[0] / "model_index.json").is_file():
        if not (asked.data or asked.reference):
            raise BadInputError(
                f"there is nothing to compare the pictures of {others[0]} with",
                hint="give --data FOLDER (pictures that they answer) or --reference FOLDER (others like them)",
            )
        if control and not asked.data:
            raise BadInputError("--control needs the pictures that were to be obeyed", "give --data FOLDER")
    elif control:
        raise BadInputError("--control is for a folder of pictures; a run knows its own", "leave it out")


def publish(rows: list[Row], results: Path | None, out: Output) -> None:
    """Show rows, and keep them where the user says."""
    from dataclasses import asdict

    from jdmctl.evaluation.results import table

    out.result({"rows": [asdict(row) for row in rows]}, table(rows))
    keep(rows, results)


def keep(rows: list[Row], results: Path | None) -> None:
    """Put rows into a results file, and their table wherever README.md, docs/results.md or docs/NAME.md asks for it."""
    from jdmctl.evaluation.results import fill, merge, read, write
    from jdmctl.training.atomic import write_text

    if results:
        everything = merge(read(results), rows)
        write(results, everything)
        docs = results.parent.with_suffix(".md")
        for document in (docs, docs.with_name(f"{results.stem}.md"), Path("README.md")):
            if document.exists() and f"<!-- results: {results.stem}" in (text := document.read_text(encoding="utf-8")):
                write_text(document, fill(text, results.stem, everything))
