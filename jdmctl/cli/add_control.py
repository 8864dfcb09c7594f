"""`jdmctl add-control`: teach a one-step student a control that its teacher never knew."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from jdmctl.cli.options import DeviceOption, JsonOption, QuietOption, SetOption
from jdmctl.cli.output import Output, mode
from jdmctl.errors import RecipeError

if TYPE_CHECKING:
    from jdmctl.recipe import Recipe

# What the embedded world has for controls that need networks of their own.
_WORLD_OPTIONS = {"depth": {"network": "tiny/depth", "scorer": "tiny/depth_heldout"}}


def add_control(
    recipe: Annotated[str, typer.Argument(metavar="[RECIPE]", help="tiny/canny, a file, or a run folder.")] = "",
    student: Annotated[str, typer.Option(help="One-step pipeline: folder, hub name or tiny.")] = "",
    teacher: Annotated[
        str,
        typer.Option("--teacher", "--pretrained_model_name_or_path", help="Pipeline that the student was made from."),
    ] = "",
    control: Annotated[list[str], typer.Option(help="Control to learn; may be repeated.")] = [],  # noqa: B006
    data: Annotated[
        str, typer.Option("--data", "--train_data_dir", help="Folder with metadata.jsonl, file of prompts, or tiny.")
    ] = "",
    method: Annotated[str, typer.Option(help="jdm; to compare with: nct, dsm, dmd-control or implicit.")] = "",
    init: Annotated[
        str, typer.Option("--init", "--controlnet_model_name_or_path", help="ControlNet to start from.")
    ] = "",
    num_steps: Annotated[
        int | None, typer.Option("--num-steps", "--max_train_steps", help="Updates of the student.")
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option("--batch-size", "--train_batch_size", help="Of one update, over all processes.")
    ] = None,
    learning_rate: Annotated[
        float | None, typer.Option("--learning-rate", "--learning_rate", help="Of the student.")
    ] = None,
    lr_schedule: Annotated[
        str, typer.Option("--lr-schedule", "--lr_scheduler", help="constant, or linear: falls to 0.")
    ] = "",
    lr_warmup_steps: Annotated[
        int | None, typer.Option("--lr-warmup-steps", "--lr_warmup_steps", help="Updates until the full rate.")
    ] = None,
    precision: Annotated[str, typer.Option("--precision", "--mixed_precision", help="fp32 (no) or bf16.")] = "",
    seed: Annotated[int | None, typer.Option(min=0, help="Of everything random.")] = None,
    overrides: SetOption = [],  # noqa: B006
    output: Annotated[
        Path | None, typer.Option("--output", "-o", "--output_dir", help="Run folder; default runs/NAME.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on exactly from the last checkpoint.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the recipe and sizes, then stop.")] = False,
    device: DeviceOption = "",
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Teach a one-step student a control (Joint Distribution Matching).

    Say what by a recipe, or by --student, --teacher, --control and --data alone; other options change the recipe.
    The branch is saved as an ordinary diffusers ControlNet in the run folder.
    """
    changes = {
        "model.student": student,
        "model.teacher": teacher,
        "controls": [_control(name, teacher) for name in control],
        **_data(data),
        "method": method,
        "training.num_steps": num_steps,
        "training.batch_size": batch_size,
        "training.learning_rate": learning_rate,
        "training.lr_schedule": lr_schedule,
        "training.lr_warmup_steps": lr_warmup_steps,
        "training.precision": "fp32" if precision == "no" else precision,
        "seed": seed,
    }
    given = {key: value for key, value in changes.items() if value not in ("", None, [])}
    with Output(mode(as_json, quiet)) as out:
        plan, folder = _plan(recipe, given, init, overrides, output, resume)
        if dry_run:
            _show(plan, device, out)
        else:
            _run(plan, folder, device, resume, out)


def _plan(
    name: str, changes: dict[str, Any], init: str, overrides: Sequence[str], output: Path | None, resume: bool
) -> tuple[Recipe, Path]:
    """The recipe to run and the folder to run it in; a resumed run keeps its own recipe, but for the changes."""
    from jdmctl.recipe_files import load_recipe, parse_recipe, read_values, set_value
    from jdmctl.training.run import RECIPE_FILE, require_resumable

    folder, source = output, name
    if resume:
        if not folder:
            folder = Path(name) if not name or Path(name).is_dir() else Path("runs", load_recipe(name).name)
        require_resumable(folder)
        source = str(folder / RECIPE_FILE)
    if source:
        values = read_values(source)
    elif changes:
        source = "the recipe made from these options"
        names = [control["name"] for control in changes.get("controls", [])]
        values = {"name": "-".join(names) or "run", "model": {}, "data": {}}
    else:
        raise RecipeError("there is nothing to train", hint="give a recipe: jdmctl recipes ls   lists them")
    for path, value in changes.items():
        set_value(values, path, value)
    for number in range(len(values.get("controls", [])) if init else 0):
        set_value(values, f"controls.{number}.init", init)
    recipe = parse_recipe(values, overrides, source)
    return recipe, folder or Path("runs", recipe.name)


def _control(name: str, teacher: str) -> dict[str, Any]:
    options = _WORLD_OPTIONS.get(name) if teacher == "tiny" else None
    return {"name": name, "options": options} if options else {"name": name}


def _data(data: str) -> dict[str, str]:
    """Which kind of data a path is."""
    if data in ("", "tiny"):
        return {"data.source": data}
    source, metadata = "images", Path(data, "metadata.jsonl")
    if Path(data).is_file() or Path(data).suffix in (".txt", ".jsonl"):
        source = "prompts"
    elif metadata.is_file():
        with metadata.open(encoding="utf-8", errors="replace") as lines:
            first = lines.readline()
        source = "conditions" if '"conditioning_image' in first else "images"
    return {"data.source": source, "data.path": data}


def _show(recipe: Recipe, device: str, out: Output) -> None:
    from jdmctl.build import count_parameters
    from jdmctl.recipe_files import to_yaml

    counts = count_parameters(recipe, device or "cpu")
    lines = [f"{role.replace('_', ' ')}: {number / 1e6:.2f} M parameters" for role, number in counts.items()]
    record = {"event": "plan", "recipe": recipe.model_dump(mode="json"), "parameters": counts}
    out.result(record, to_yaml(recipe) + "\n" + "\n".join(lines))


def _run(recipe: Recipe, folder: Path, device: str, resume: bool, out: Output) -> None:
    from jdmctl.build_run import build_run
    from jdmctl.recipe_files import to_yaml
    from jdmctl.training.run import make_accelerator, require_new, train

    if not resume:
        require_new(folder)
    accelerator = make_accelerator(device, recipe.training.precision)
    accelerator.wait_for_everyone()  # no process may write before all have looked at the folder
    if accelerator.is_main_process:
        out.note(to_yaml(recipe))
    run = build_run(recipe, accelerator)
    done = train(run, folder, accelerator, out.event, resume)
    if accelerator.is_main_process:
        record = {"event": "done", "run": str(folder), "num_processes": accelerator.num_processes, **done}
        products = "\n".join(done["products"].values())
        out.result(record, products)
        out.note(f"previews are in {folder / 'previews'}; draw some more: jdmctl sample {folder}")
