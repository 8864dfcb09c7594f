"""`jdmctl compare`: every way of controlling a one-step student, side by side."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from jdmctl.cli.evaluate import NumOption, SplitOption
from jdmctl.cli.options import DeviceOption, JsonOption, QuietOption
from jdmctl.cli.output import Output, mode
from jdmctl.errors import BadInputError

if TYPE_CHECKING:
    from jdmctl.comparison.cells import Cell
    from jdmctl.comparison.heldout import Asked


def compare(
    recipe: Annotated[str, typer.Argument(help="tiny/canny, a file, or a run folder.")],
    method: Annotated[
        list[str],
        typer.Option(
            metavar="METHOD[@VARIANT][:SEEDS]",
            help="jdm, nct, dsm, dmd-control, implicit, redistill; may be repeated.",
        ),
    ] = ["jdm", "dsm"],  # noqa: B006
    overrides: Annotated[
        list[str],
        typer.Option("--set", metavar="[METHOD[@VARIANT]:]KEY=VALUE", help="Change every recipe, or one method's."),
    ] = [],  # noqa: B006
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Folder of the cells and the report; default runs/compare-NAME."),
    ] = None,
    budget_minutes: Annotated[float, typer.Option(min=0, help="Train no longer than this; 0 scores what is there.")] = (
        float("inf")
    ),
    teacher_steps: Annotated[str, typer.Option(help="Steps of the teacher with dsm's ControlNet.")] = "10,25,50",
    data: Annotated[
        Path | None, typer.Option(help="Folder of held-out captioned pictures; the embedded world has its own.")
    ] = None,
    reference: Annotated[
        Path | None, typer.Option(help="Folder of pictures to measure distances to; default: every other of --data.")
    ] = None,
    features: Annotated[
        str, typer.Option(help="With --data: inception, or a vision model of transformers, for distances.")
    ] = "openai/clip-vit-base-patch32",
    split: SplitOption = "test",
    num: NumOption = 500,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the cells, then stop.")] = False,
    device: DeviceOption = "",
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Train what is missing, score it on the same held-out pictures, and write compare.json and report.html.

    The same command again goes on where it stopped. A report with missing cells is valid and names them.
    """
    from jdmctl.comparison.cells import Entry, plan
    from jdmctl.comparison.heldout import Asked

    with Output(mode(as_json, quiet)) as out:
        common, of_method = _split(overrides)
        entries = [Entry.parse(text, of_method) for text in method]
        unused = of_method.keys() - {entry.label for entry in entries}
        if unused:
            raise BadInputError(
                f"--set is for {min(unused)}, which is not compared", hint=f"add --method {min(unused)}"
            )
        steps = _numbers(teacher_steps)
        folder = output or Path("runs", f"compare-{Path(recipe).stem}")
        cells = plan(recipe, common, entries, folder)
        _show(cells, out)
        if not dry_run:
            asked = Asked(data, reference, features, split, num)
            _run(cells, folder, budget_minutes, device, asked, steps, recipe, out)


def _show(cells: list[Cell], out: Output) -> None:
    """What there is, and what the rest will take: counted operations at the speed of the cells that are done."""
    from jdmctl.comparison.estimate import estimate

    out.note("counting what each method's updates cost")
    costs = estimate(cells)
    rows = [
        {
            "cell": cell.name,
            "state": cell.state,
            "updates": cell.recipe.training.num_steps,
            "TFLOP": "" if found.flops is None else f"{found.flops / 1e12:.0f}",
            "minutes so far": f"{found.seconds_so_far / 60:.1f}",
            "minutes to go": "?" if found.seconds_left is None else f"{found.seconds_left / 60:.0f}",
        }
        for cell, found in ((cell, costs[cell.name]) for cell in cells)
    ]
    out.table(rows, list(rows[0]))


def _run(
    cells: list[Cell],
    folder: Path,
    budget_minutes: float,
    device: str,
    asked: Asked,
    teacher_steps: list[int],
    recipe: str,
    out: Output,
) -> None:
    import shlex
    import sys
    from dataclasses import asdict

    from jdmctl.comparison.cost import cell_cost
    from jdmctl.comparison.page import page
    from jdmctl.comparison.scoring import score
    from jdmctl.comparison.training import complete, require_same
    from jdmctl.evaluation.results import table, write
    from jdmctl.training.atomic import write_text

    require_same(cells)
    complete(cells, budget_minutes * 60, device, out.note)
    command = shlex.join(["jdmctl", *sys.argv[1:]])
    scenes, drawn, rows = score(cells, asked, teacher_steps, command, out.note)
    write(folder / "compare.json", rows)
    report = folder / "report.html"
    costs = {cell.label: cell_cost(cell) for cell in cells if cell.is_done and cell.number == 0 and not cell.is_given}
    title = f"{recipe}: ways of controlling a one-step student"
    write_text(report, page(title, cells, costs, scenes, drawn, rows))
    missing = [cell.name for cell in cells if not cell.is_done]
    record = {
        "rows": [asdict(row) for row in rows],
        "costs": {method: asdict(cost) for method, cost in costs.items()},
        "missing": missing,
        "report": str(report),
    }
    out.result(record, f"{table(rows)}\n{report}")
    if missing:
        out.note(f"missing: {', '.join(missing)}; the same command again goes on with them")


def _numbers(text: str) -> list[int]:
    words = [word.strip() for word in text.split(",") if word.strip()]
    if not all(word.isdecimal() and int(word) > 0 for word in words):
        raise BadInputError(f"--teacher-steps {text}: not numbers of steps", hint="write them as 10,25,50")
    return [int(word) for word in words]


def _split(overrides: list[str]) -> tuple[list[str], dict[str, list[str]]]:
    """Overrides for all, and by method."""
    from jdmctl.recipe import METHODS

    common: list[str] = []
    of_method: dict[str, list[str]] = {}
    for text in overrides:
        head, colon, rest = text.partition(":")
        if colon and head.partition("@")[0] in METHODS:
            of_method.setdefault(head, []).append(rest)
        else:
            common.append(text)
    return common, of_method
