"""`jdmctl eval`: scores of runs, students or finished pictures, on held-out pictures."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

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
    require_data,
    require_world,
)
from jdmctl.cli.output import Output, mode
from jdmctl.errors import BadInputError, JdmError

if TYPE_CHECKING:
    from jdmctl.comparison.contest import Entrant
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
    option: Annotated[
        list[str], typer.Option(metavar="NAME.KEY=VALUE", help="For a picture folder: of a control.")
    ] = [],  # noqa: B006
    label: Annotated[str, typer.Option(help="What to call it in the rows: the method of runs, else the folder.")] = "",
    pictures: Annotated[Path | None, typer.Option(help="PNG of the first requests and answers, to be written.")] = None,
    results: ResultsOption = None,
    device: ScoringDeviceOption = "cpu",
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Score adherence, distance to true pictures, prompts, variety and looks; the same numbers each time.

    Runs are scored on the embedded world's held-out scenes, or on the pictures of --data. A pipeline is scored without
    control. The pictures of a folder, made by any program, are scored as they are; with --data, picture by picture:
    of the same file names, if all have them, else in order.
    """
    from jdmctl.build_check import check_model
    from jdmctl.cli.sample import parse_options
    from jdmctl.cli.studio import model_of
    from jdmctl.comparison.contest import Entrant, score_pictures, score_pipeline, score_runs
    from jdmctl.comparison.heldout import Asked
    from jdmctl.evaluation.results import require_place
    from jdmctl.training.atomic import writing
    from jdmctl.training.device import find_device

    given = {
        "--data": data, "--reference": reference, "--features": features if data or reference else "",
        "--split": "" if data or reference else split, "--num": num, "--device": device if device != "cpu" else "",
        "--label": label,
    }  # fmt: skip
    words = [str(word) for key, value in given.items() if value for word in (key, value)]
    words += [word for name in control for word in ("--control", name)]
    words += [word for text in option for word in ("--option", text)]
    words += [*(["--compose"] if compose else []), *([] if baselines else ["--no-baselines"])]
    command = shlex.join(["jdmctl", "eval", *map(str, targets), *words])
    first = targets[0]
    with Output(mode(as_json, quiet)) as out:
        asked = Asked(data, reference, features, split, num, find_device(device or "cpu"))
        of_runs = {"--compose": compose, "--no-baselines": not baselines, "--pictures": pictures is not None}
        _check(targets, asked, control, [name for name, is_given in of_runs.items() if is_given])
        controls = _controls(control, parse_options(option))
        require_place(results)
        _require_picture(pictures)
        method, picture = label or first.resolve().name, None
        if (first / "recipe.yaml").is_file():
            entrant = Entrant.of(targets, compose, label)
            if results:
                _require_same_setup(results, entrant, asked, baselines)
            rows, picture = score_runs(entrant, asked, baselines, command, out.note, pictures is not None)
        elif (first / "model_index.json").is_file():
            for text in check_model(model_of(str(first), student_time=1.0)):
                out.warning(text)
            rows = score_pipeline(first, asked, method, command, out.note)
        else:
            rows = score_pictures(first, asked, controls, method, command)
        publish(rows, results, out)
        if pictures and picture:
            with writing(pictures):
                picture.save(pictures)


def _require_same_setup(results: Path, entrant: Entrant, asked: Asked, baselines: bool) -> None:
    """Raises BadInputError if rows could not go into a file, as far as is known before anything is drawn."""
    from jdmctl.comparison.contest import BASELINES
    from jdmctl.evaluation.results import require_same_setup
    from jdmctl.tinyworld.world import world_name

    world = asked.name if asked.data else world_name(entrant.recipe.model.teacher)
    controls = dict.fromkeys(control.name for recipe in entrant.recipes for control in recipe.controls)
    made = {(world, "+".join(controls), method) for method in (entrant.method, *(BASELINES if baselines else ()))}
    require_same_setup(results, made, asked.number, asked.setup)


def _require_picture(place: Path | None) -> None:
    """Raises JdmError if a picture could not be written there."""
    from jdmctl.data.pictures import SUFFIXES
    from jdmctl.training.atomic import require_writable

    if place and place.suffix.lower() not in SUFFIXES:
        raise BadInputError(f"--pictures {place}: its name does not say what kind of picture it is", "name it NAME.png")
    if place:
        require_writable(place)


def _controls(names: list[str], options: Mapping[str, Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """Each control with its options. Raises JdmError for options that it does not take, or that are missing."""
    from jdmctl.controls.base import check_control_options

    if unknown := sorted(options.keys() - set(names)):
        raise BadInputError(f"--option {unknown[0]}: there is no such --control", hint=f"add --control {unknown[0]}")
    for name in names:
        given = options.get(name, {})
        check_control_options(name, given)
        try:
            check_control_options(name, given, is_whole=True)
        except JdmError as problem:
            raise BadInputError(str(problem), hint=f"add --option {name}.KEY=VALUE") from problem
    return {name: options.get(name, {}) for name in names}


def _check(targets: list[Path], asked: Asked, control: list[str], of_runs: list[str]) -> None:
    """Raises BadInputError for targets and options that do not go together."""
    for target in targets:
        if not target.is_dir():
            raise BadInputError(f"no folder {target}", hint="give a run, a pipeline or a folder of pictures")
    others = [target for target in targets if not (target / "recipe.yaml").is_file()]
    if others and len(targets) > 1:
        raise BadInputError(f"{others[0]} is not a run, and only runs are scored together", "give one at a time")
    if others and of_runs:
        raise BadInputError(f"{of_runs[0]} is for runs, and {others[0]} is none", hint="leave it out")
    require_world(asked.split, asked.data, asked.reference)
    if others and not (others[0] / "model_index.json").is_file():
        if not (asked.data or asked.reference):
            raise BadInputError(
                f"there is nothing to compare the pictures of {others[0]} with",
                hint="give --data FOLDER (pictures that they answer) or --reference FOLDER (others like them)",
            )
        if control and not asked.data:
            raise BadInputError("--control needs the pictures that were to be obeyed", "give --data FOLDER")
        return
    require_data(asked.data, asked.reference, asked.features)
    if control:
        raise BadInputError("--control is for a folder of pictures; a run knows its own", "leave it out")


def publish(rows: list[Row], results: Path | None, out: Output) -> None:
    """Show rows, and keep them where the user says."""
    from dataclasses import asdict

    from jdmctl.evaluation.results import table

    out.result({"rows": [asdict(row) for row in rows]}, table(rows))
    keep(rows, results)


def keep(rows: list[Row], results: Path | None) -> None:
    """Put rows into a results file, and their table wherever README.md, docs/results.md or docs/NAME.md asks for it."""
    from jdmctl.evaluation.results import fill, has_place, merge, read, write
    from jdmctl.training.alone import alone
    from jdmctl.training.atomic import write_text

    if not results:
        return
    folder = results.absolute().parent
    with alone(folder, wait=True):  # another command may put its own rows there
        everything = merge(read(results), rows)
        write(results, everything)
        for document in (Path(f"{folder}.md"), folder.parent / f"{results.stem}.md", Path("README.md")):
            if document.exists() and has_place(text := document.read_text(encoding="utf-8"), results.stem):
                write_text(document, fill(text, results.stem, everything, folder))
