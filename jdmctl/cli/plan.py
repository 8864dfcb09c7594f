"""`jdmctl plan`: what a run will hold in memory, before anything is downloaded."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from jdmctl.cli.options import JsonOption, SetOption
from jdmctl.cli.output import Output, mode
from jdmctl.cli.training import tell_of_model

if TYPE_CHECKING:
    from jdmctl.build_plan import MemoryPlan

GIB = 2**30


def plan(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", help="A name such as tiny/canny, a file, or a run.")],
    overrides: SetOption = [],  # noqa: B006
    fit: Annotated[int, typer.Option(min=0, help="Say which switches would make it fit a GPU of so many GiB.")] = 0,
    as_json: JsonOption = False,
) -> None:
    """Show what a run will hold where, on which GPUs it fits, and which switches would make it fit.

    Networks are built of their configurations and one update of each phase is played without data: nothing is
    downloaded, no memory is taken. What a GPU's own libraries take is set aside as 1 GiB, an assumption.
    """
    from jdmctl.build_plan import GPU_SIZES, plan_memory, suggestions
    from jdmctl.recipe_files import load_recipe

    out = Output(mode(as_json))
    given = load_recipe(recipe, overrides)
    tell_of_model(given, out)
    found = plan_memory(given)
    record: dict[str, Any] = {"recipe": recipe, **_record(found), "switches": []}
    lines = [*_table(found), f"fits a GPU of: {_sizes(found) or 'none of ' + ', '.join(map(str, GPU_SIZES))} GiB"]
    if fit and not found.fits(fit):
        with_all = found
        for switches, with_all in suggestions(given, lambda chosen: load_recipe(recipe, [*overrides, *chosen]), fit):
            record["switches"].append({"set": list(switches), **_record(with_all)})
            lines.append(f"with {' '.join(f'--set {one}' for one in switches)}: {with_all.peak / GIB:.2f} GiB")
        lines.append(f"{'this fits' if with_all.fits(fit) else 'even so it does not fit'} {fit} GiB")
    out.result(record, "\n".join(lines))
    for note in found.notes:
        out.note(note)


def _record(found: MemoryPlan) -> dict[str, Any]:
    from jdmctl.build_plan import GPU_SIZES

    return {
        "weights_bytes": dict(found.weights),
        "optimizer_bytes": found.optimizer,
        "average_bytes": found.average,
        "working_bytes": {name: {"gradients": one.gradients, "peak": one.peak} for name, one in found.working.items()},
        "peak_bytes": found.peak,
        "fits_gib": [size for size in GPU_SIZES if found.fits(size)],
        "notes": list(found.notes),
    }


def _table(found: MemoryPlan) -> list[str]:
    rows = [(f"weights: {name}", size) for name, size in found.weights.items()]
    rows += [("optimizer (AdamW)", found.optimizer), ("moving average", found.average), ("held throughout", found.held)]
    for name, one in found.working.items():
        doing = "validating" if name == "validation" else f"updating {name.replace('_', ' ')}"
        rows.append((f"while {doing}", one.peak))
    rows.append(("peak", found.peak))
    width = max(len(name) for name, _ in rows)
    return [f"{name.ljust(width)}  {size / GIB:9.3f} GiB" for name, size in rows]


def _sizes(found: MemoryPlan) -> str:
    from jdmctl.build_plan import GPU_SIZES

    return ", ".join(str(size) for size in GPU_SIZES if found.fits(size))
