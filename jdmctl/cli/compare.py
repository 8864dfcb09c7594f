"""`jdmctl compare`: every way of teaching a one-step student a control or a taste, side by side."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from jdmctl.cli.evaluate import keep
from jdmctl.cli.options import (
    DEFAULT_FEATURES,
    FeaturesOption,
    HeldOutOption,
    JsonOption,
    NumOption,
    QuietOption,
    ReferenceOption,
    ResultsOption,
    SplitOption,
    require_data,
    require_world,
)
from jdmctl.cli.output import Output, mode
from jdmctl.cli.planned import show
from jdmctl.errors import BadInputError

if TYPE_CHECKING:
    from jdmctl.comparison.cells import Entry
    from jdmctl.comparison.heldout import Asked
    from jdmctl.comparison.report import Arena
    from jdmctl.comparison.searches import MorePasses


def compare(
    recipes: Annotated[list[str], typer.Argument(help="tiny/canny, a file, or a run folder; one a control.")],
    method: Annotated[
        list[str],
        typer.Option(
            metavar="METHOD[@VARIANT][:SEEDS]",
            help="jdm, nct, dsm, dmd-control, implicit, redistill; for rewards jdm, reward-only, reward-l2, "
            "diff-instruct++; may be repeated; default jdm and dsm, for rewards without controls jdm and reward-only.",
        ),
    ] = [],  # noqa: B006
    overrides: Annotated[
        list[str],
        typer.Option("--set", metavar="[METHOD[@VARIANT]:]KEY=VALUE", help="Change every recipe, or one method's."),
    ] = [],  # noqa: B006
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Folder of cells and report; default runs/compare-NAME."),
    ] = None,
    budget_minutes: Annotated[float, typer.Option(min=0, help="Train no longer than this; 0 scores what is there.")] = (
        float("inf")
    ),
    teacher_steps: Annotated[str, typer.Option(help="Steps of the teacher with dsm's ControlNet.")] = "10,25,50",
    goal: Annotated[
        float | None,
        typer.Option(help="Headline that minutes are counted to, as 0.82; default the first run's best, less 2 %."),
    ] = None,
    best_of: Annotated[str, typer.Option(help="First reward: also the best of so many pictures, as 4,16.")] = "",
    refine_steps: Annotated[str, typer.Option(help="First reward: also noise refined (ReNO), in steps.")] = "",
    data: HeldOutOption = None,
    reference: ReferenceOption = None,
    features: FeaturesOption = DEFAULT_FEATURES,
    split: SplitOption = "test",
    num: NumOption = 500,
    results: ResultsOption = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the cells, then stop.")] = False,
    device: Annotated[
        str,
        typer.Option(
            help="cpu, cuda, cuda:1 ..., to train and to draw on; by default trained on a GPU if there is one, and "
            "drawn on the CPU."
        ),
    ] = "",
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Train what is missing, score it on the same held-out pictures, and write compare.json and report.html.

    The same command again goes on where it stopped. A report with missing cells is valid and names them. Of several
    recipes the geometric means of the ratios are told too.
    """
    from jdmctl.comparison.heldout import Asked
    from jdmctl.evaluation.results import require_place
    from jdmctl.training.device import find_device

    with Output(mode(as_json, quiet)) as out:
        require_world(split, data)
        require_data(data, reference, features)
        common, of_method = _split(overrides)
        entries = _entries(method or _usual(recipes), of_method)
        from jdmctl.comparison.searches import MorePasses

        more = MorePasses(
            _numbers("--teacher-steps", teacher_steps), _numbers("--best-of", best_of),
            _numbers("--refine-steps", refine_steps),
        )  # fmt: skip
        arenas = [replace(arena, goal=goal) for arena in _arenas(recipes, common, entries, output)]
        if goal is not None:
            _require_one_headline(arenas, goal)
        if more.best_of or more.refine_steps:
            _require_rewards(arenas)
        show(arenas, out)
        if not dry_run:
            asked = Asked(data, reference, features, split, num, find_device(device or "cpu"))
            require_place(results)
            _require_same_setup(results, arenas, asked, more)
            _run(arenas, budget_minutes, device, asked, more, results, out)


def _usual(recipes: list[str]) -> list[str]:
    """The methods that are compared if none is named: those of controls, unless no recipe has any."""
    from jdmctl.recipe_files import load_recipe

    loaded = [load_recipe(recipe) for recipe in recipes]
    if any(recipe.controls for recipe in loaded):
        return ["jdm", "dsm"]
    return ["jdm", "reward-only"] if any(recipe.rewards for recipe in loaded) else ["jdm"]


def _entries(methods: list[str], changes: dict[str, list[str]]) -> list[Entry]:
    """Raises BadInputError for a method that is named twice, and for changes of one that is not compared."""
    from jdmctl.comparison.cells import Entry

    entries = [Entry.parse(text, changes) for text in methods]
    labels = [entry.label for entry in entries]
    if twice := next((label for label in labels if labels.count(label) > 1), ""):
        raise BadInputError(
            f"--method {twice} is given twice",
            hint=f"say its seeds once, --method {twice}:3, or call one of them {twice.partition('@')[0]}@NAME",
        )
    if unused := changes.keys() - set(labels):
        raise BadInputError(f"--set is for {min(unused)}, which is not compared", hint=f"add --method {min(unused)}")
    return entries


def _arenas(recipes: list[str], overrides: list[str], entries: list[Entry], output: Path | None) -> list[Arena]:
    """The cells of each recipe; a change of a control that only other recipes have is not for this one.

    Raises BadInputError if two recipes would share a folder.
    """
    from jdmctl.comparison.cells import plan
    from jdmctl.comparison.report import Arena
    from jdmctl.recipe_files import load_recipe

    controls = {recipe: {control.name for control in load_recipe(recipe).controls} for recipe in recipes}
    known = {f"controls.{name}." for names in controls.values() for name in names}
    arenas = []
    for recipe, names in controls.items():
        others = tuple(known - {f"controls.{name}." for name in names})
        own = [replace(e, changes=tuple(c for c in e.changes if not c.startswith(others))) for e in entries]
        folder = Path("runs", f"compare-{Path(recipe).stem}")
        if output:
            folder = output / Path(recipe).stem if len(recipes) > 1 else output
        cells = plan(recipe, [change for change in overrides if not change.startswith(others)], own, folder)
        arenas.append(Arena(recipe, folder, tuple(cells)))
    _require_apart(arenas)
    return arenas


def _require_apart(arenas: list[Arena]) -> None:
    """Raises BadInputError if two recipes would share a folder: cells of the first would pass for the second's."""
    owners: dict[Path, str] = {}
    for arena in arenas:
        owner = owners.setdefault(arena.folder, arena.recipe)
        if owner != arena.recipe:
            raise BadInputError(
                f"{owner} and {arena.recipe} would both be trained in {arena.folder}",
                hint=f"copy one to a file of another name: jdmctl recipes copy {arena.recipe} NAME.yaml",
            )


def _require_one_headline(arenas: list[Arena], goal: float) -> None:
    """Raises BadInputError for a goal that is no number, or of several recipes, each of a headline of its own."""
    if len(arenas) > 1 or not math.isfinite(goal):
        raise BadInputError(
            f"--goal {goal:g} is of one recipe's headline, and there are {len(arenas)}"
            if len(arenas) > 1
            else f"--goal {goal:g} is no number",
            hint=f"give it for one: jdmctl compare {arenas[0].recipe} --goal 0.8",
        )


def _require_rewards(arenas: list[Arena]) -> None:
    """Raises BadInputError if nothing can be searched for: told before anything is trained."""
    own = [arena.cells[0].recipe for arena in arenas]
    if not any(recipe.rewards and not recipe.controls for recipe in own):
        raise BadInputError(
            f"--best-of and --refine-steps search for what a reward likes: {', '.join(a.recipe for a in arenas)} has "
            "none, or has controls too",
            hint="leave them out, or compare a recipe with rewards alone, as tiny/align",
        )


def _require_same_setup(results: Path | None, arenas: list[Arena], asked: Asked, more: MorePasses) -> None:
    """Raises BadInputError if rows could not go into a file, as far as is known before anything is trained."""
    from jdmctl.comparison.scoring import methods
    from jdmctl.evaluation.results import require_same_setup

    if not results:
        return
    made = {
        (asked.name, "+".join(control.name for control in arena.cells[0].recipe.controls), method)
        for arena in arenas
        for method in methods(arena.cells, more)
    }
    require_same_setup(results, made, asked.number, asked.setup)


def _run(
    arenas: list[Arena],
    budget_minutes: float,
    device: str,
    asked: Asked,
    more: MorePasses,
    results: Path | None,
    out: Output,
) -> None:
    import shlex
    import sys
    from dataclasses import asdict

    from jdmctl.comparison.means import mean_rows
    from jdmctl.comparison.report import report
    from jdmctl.comparison.spent import in_short
    from jdmctl.comparison.training import complete, require_same
    from jdmctl.evaluation.results import table

    cells = sorted((cell for arena in arenas for cell in arena.cells), key=lambda cell: cell.number)
    require_same(cells)
    complete(cells, budget_minutes * 60, device, out.note)
    command = shlex.join(["jdmctl", *sys.argv[1:]])
    reports = [report(arena, asked, more, command, out.note) for arena in arenas]
    rows = [row for one in reports for row in one.scored.rows]
    if len(arenas) > 1:
        seeds = {one.method: one.seeds for one in reports[0].scored.drawn}
        scored = [one.scored for one in reports]
        rows += mean_rows([one.scenes for one in scored], [one.compared for one in scored], seeds, command)
    spent = [row for one in reports for row in one.spent]
    missing = [f"{arena.recipe} {name}" for arena in arenas for name in arena.missing]
    costs = {arena.recipe: one.costs for arena, one in zip(arenas, reports, strict=True)}
    record = {
        "rows": [asdict(row) for row in [*rows, *spent]],
        "costs": {name: {method: asdict(cost) for method, cost in found.items()} for name, found in costs.items()},
        "missing": missing,
        "reports": [str(one.file) for one in reports],
    }
    tables = [table(rows), *(["", table(in_short(spent)), ""] if spent else [])]
    out.result(record, "\n".join([*tables, *(str(one.file) for one in reports)]))
    keep([*rows, *spent], results)
    if missing:
        out.note(f"missing: {', '.join(missing)}; the same command again goes on with them")


def _numbers(option: str, text: str) -> list[int]:
    words = [word.strip() for word in text.split(",") if word.strip()]
    if not all(word.isdecimal() and int(word) > 0 for word in words):
        raise BadInputError(f"{option} {text}: not numbers above 0", hint="write them as 10,25,50")
    return [int(word) for word in words]


def _split(overrides: list[str]) -> tuple[list[str], dict[str, list[str]]]:
    """Overrides for all, and by method. Raises BadInputError for those of a method that there is not."""
    from jdmctl.comparison.cells import require_method

    common: list[str] = []
    of_method: dict[str, list[str]] = {}
    for text in overrides:
        head, colon, rest = text.partition(":")
        if colon and re.fullmatch(r"[\w+-]+(@[\w.-]+)?", head):  # no KEY=VALUE begins so
            require_method(head.partition("@")[0])
            of_method.setdefault(head, []).append(rest)
        else:
            common.append(text)
    return common, of_method
