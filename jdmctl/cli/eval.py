"""`jdmctl eval`: what a run learned, on scenes of its world, beside what it is compared with."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from jdmctl.cli.options import DeviceOption, JsonOption, QuietOption
from jdmctl.cli.output import Output, mode
from jdmctl.errors import BadInputError

if TYPE_CHECKING:
    from jdmctl.cli.studio import Studio
    from jdmctl.evaluation.contenders import Arena, Contender
    from jdmctl.evaluation.marks import Exam
    from jdmctl.evaluation.results import Row

_NUM_STEPS = 25  # of the multi-step baseline


def evaluate(
    runs: Annotated[list[str], typer.Argument(metavar="RUN_FOLDER...", help="Several are composed.")],
    scenes: Annotated[int, typer.Option(min=2, help="How many of the split.")] = 500,
    seed: Annotated[list[int], typer.Option(min=0, help="May be repeated.")] = [0, 1, 2],  # noqa: B006
    split: Annotated[Literal["val", "test"], typer.Option(help="Choose on val, report on test.")] = "test",
    pictures: Annotated[
        Path | None, typer.Option(help="The captioned images that the world was built from; default: its scenes.")
    ] = None,
    baselines: Annotated[bool, typer.Option(help="Also the world's own ControlNets.")] = True,
    method: Annotated[str, typer.Option(help="What to call the run in tables.")] = "JDM",
    write: Annotated[str, typer.Option(metavar="NAME", help="Merge into docs/results/NAME.json and tables.")] = "",
    device: DeviceOption = "",
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Adherence, distances, prompt accuracy and diversity, each with its 95% interval over scenes.

    `metric / other` is the ratio to another method on the same scenes; `gap closed` is how much of the way from the
    student without control to the codec's round trip of the true pictures a score has come.
    """
    import torch

    from jdmctl.cli.studio import Studio
    from jdmctl.evaluation import results
    from jdmctl.evaluation.report import Report

    with Output(mode(as_json, quiet)) as out:
        studio = Studio.of_runs([Path(run) for run in runs], device or ("cuda" if torch.cuda.is_available() else "cpu"))
        arena, exam = _exam(studio, split, scenes, seed, pictures)
        report = Report(
            world=f"{pictures.name if pictures else 'scenes'} {split}",
            control=" + ".join(studio.controls),
            seeds=seed,
            n=len(arena.texts),
            command=shlex.join(["jdmctl", *sys.argv[1:]]),
        )
        rows: list[Row] = []
        marks = {}
        for contender in _contenders(studio, arena, method, baselines):
            out.note(f"judging {contender.name}, {contender.passes} passes")
            marks[contender.name] = exam.mark(contender.images)
            rows += report.values(contender.name, contender.passes, marks[contender.name])
        headlines = [f"{name} {control.headline}" for name, control in studio.controls.items()]
        rows += report.comparisons(method, marks, headlines)
        out.result({"rows": [vars(row) for row in rows]}, results.listing(rows))
        if write:
            for path in _publish(write, rows):
                out.note(f"written to {path}")


def _exam(studio: Studio, split: str, scenes: int, seeds: list[int], folder: Path | None) -> tuple[Arena, Exam]:
    """The scenes of a split, and what judges pictures of them."""
    import torch

    from jdmctl.evaluation.contenders import Arena
    from jdmctl.evaluation.marks import Exam
    from jdmctl.tinyworld.judge import Judge
    from jdmctl.tinyworld.source import captioned_folder
    from jdmctl.tinyworld.world import samples

    judge = Judge.load(_world(studio))
    asked, reference = (
        samples(name) if folder is None else captioned_folder(folder, name) for name in (split, "reference")
    )
    number = min(scenes, len(asked))
    images = asked.image(slice(0, number))
    conditions = {
        name: torch.cat([control.condition(part.to(studio.device)).cpu() for part in images.split(100)])
        for name, control in studio.controls.items()
    }
    exam = Exam(
        conditions=conditions,
        scorers=studio.controls,
        features=judge.features,
        reference=judge.features(reference.image(slice(None))),
        classify=judge.shown,
        stated=judge.classes(asked.stated[:number, 0]),
    )
    return Arena(studio.family, [asked.text(i) for i in range(number)], images, conditions, seeds), exam


def _contenders(studio: Studio, arena: Arena, method: str, baselines: bool) -> Iterator[Contender]:
    import json

    yield from arena.references()
    yield arena.student(method)
    world = _world(studio)
    folders = {name: world / f"controlnet_{name}" for name in studio.controls}
    if baselines and all(folder.is_dir() for folder in folders.values()):
        chosen = json.loads((world / "report.json").read_text(encoding="utf-8"))
        guidance = max(chosen[f"{folder.name} guidance"] for folder in folders.values())
        yield from arena.controlnets(folders, _NUM_STEPS, guidance)


def _publish(name: str, rows: list[Row]) -> list[Path]:
    """Merge rows into docs/results/NAME.json and remake its tables; the files that were written."""
    from jdmctl.evaluation import results

    path = Path("docs", "results", f"{name}.json")
    merged = results.merge(results.read(path), rows)
    results.write(path, merged)
    written = [path]
    for document in (Path("docs", "results.md"), Path("README.md")):
        if document.is_file() and f"<!-- results: {name} " in (text := document.read_text(encoding="utf-8")):
            document.write_text(results.fill(text, name, merged), encoding="utf-8")
            written.append(document)
    return written


def _world(studio: Studio) -> Path:
    """The folder of the world that the student is part of. Raises BadInputError if there is none."""
    from jdmctl.build import resolve

    world = Path(resolve(studio.student, "student")).parent
    if not (world / "classifier").is_dir():
        raise BadInputError(
            f"the student {studio.student} belongs to no world: there is no {world / 'classifier'} to judge with",
            hint="build a world of your pictures: jdmctl world build --pictures FOLDER",
        )
    return world
