"""`jdmctl add-control`: teach a one-step student a control that its teacher never knew."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from jdmctl.cli.options import (
    BatchSizeOption,
    DeviceOption,
    DryRunOption,
    EightBitOption,
    JsonOption,
    LearningRateOption,
    NumStepsOption,
    PrecisionOption,
    QuietOption,
    ResumeOption,
    RunOption,
    SeedOption,
    SetOption,
    TrackOption,
    TrainDataOption,
)
from jdmctl.cli.output import Output, mode
from jdmctl.cli.training import data_changes, plan, show, train_and_tell, training_changes

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
    data: TrainDataOption = "",
    divergence: Annotated[str, typer.Option(help="From the teacher; jdmctl divergences lists them.")] = "",
    method: Annotated[str, typer.Option(help="jdm; or nct, dsm, dmd-control, implicit, redistill.")] = "",
    init: Annotated[
        str, typer.Option("--init", "--controlnet_model_name_or_path", help="ControlNet to start from.")
    ] = "",
    num_steps: NumStepsOption = None,
    batch_size: BatchSizeOption = None,
    learning_rate: LearningRateOption = None,
    lr_schedule: Annotated[
        str, typer.Option("--lr-schedule", "--lr_scheduler", help="constant, or linear: falls to 0.")
    ] = "",
    lr_warmup_steps: Annotated[
        int | None, typer.Option("--lr-warmup-steps", "--lr_warmup_steps", help="Updates until the full rate.")
    ] = None,
    precision: PrecisionOption = "",
    eight_bit: EightBitOption = False,
    track: TrackOption = "",
    seed: SeedOption = None,
    overrides: SetOption = [],  # noqa: B006
    output: RunOption = None,
    resume: ResumeOption = False,
    dry_run: DryRunOption = False,
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
        **data_changes(data),
        "method": method,
        "objective.divergence": divergence,
        **training_changes(num_steps, batch_size, learning_rate, precision, seed, eight_bit, track),
        "training.lr_schedule": lr_schedule,
        "training.lr_warmup_steps": lr_warmup_steps,
    }
    given = {key: value for key, value in changes.items() if value not in ("", None, [])}
    with Output(mode(as_json, quiet)) as out:
        planned, folder = plan(recipe, given, overrides, output, resume, init)
        if dry_run:
            show(recipe, planned, device, out)
        else:
            train_and_tell(planned, folder, device, resume, out)


def _control(name: str, teacher: str) -> dict[str, Any]:
    options = _WORLD_OPTIONS.get(name) if teacher == "tiny" else None
    return {"name": name, "options": options} if options else {"name": name}
