"""`jdmctl align`: a one-step student that people like better, without a new distillation."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

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


def align(
    recipe: Annotated[
        str,
        typer.Argument(
            metavar="[RECIPE]", help="tiny/align, a file, or a run folder: with --reward, what it left goes on."
        ),
    ] = "",
    student: Annotated[str, typer.Option(help="One-step pipeline: folder, hub name or tiny.")] = "",
    teacher: Annotated[
        str,
        typer.Option("--teacher", "--pretrained_model_name_or_path", help="Pipeline that the student was made from."),
    ] = "",
    reward: Annotated[
        list[str],
        typer.Option(metavar="NAME[=FOLDER]", help="To be pleased; jdmctl rewards lists them; may be repeated."),
    ] = [],  # noqa: B006
    heldout: Annotated[
        list[str], typer.Option(metavar="NAME[=FOLDER]", help="A reward that only watches; may be repeated.")
    ] = [],  # noqa: B006
    data: TrainDataOption = "",
    trainable: Annotated[Literal["", "lora", "full"], typer.Option(help="What of the student: lora or full.")] = "",
    guidance_scale: Annotated[float | None, typer.Option(min=0, help="Of the teacher.")] = None,
    guidance: Annotated[Literal["", "coupled", "decoupled"], typer.Option(help="Within fidelity, or beside it.")] = "",
    divergence: Annotated[str, typer.Option(help="From the teacher; jdmctl divergences lists them.")] = "",
    num_steps: NumStepsOption = None,
    batch_size: BatchSizeOption = None,
    learning_rate: LearningRateOption = None,
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
    """Adapt a one-step student to rewards, while its teacher keeps it from fooling them.

    Say what by a recipe, or by --student, --teacher, --reward and --data alone; other options change the recipe. A
    reward's other options go by --set rewards.NAME.options.KEY=VALUE. A recipe with controls and rewards trains both.
    """
    changes: dict[str, Any] = {
        "model.student": student,
        "model.teacher": teacher,
        "rewards": _rewards(reward),
        "heldout_rewards": _rewards(heldout),
        **data_changes(data),
        "student.trainable": trainable,
        "objective.guidance": guidance,
        "objective.guidance_scale": guidance_scale,
        "objective.divergence": divergence,
        **training_changes(num_steps, batch_size, learning_rate, precision, seed, eight_bit, track),
    }
    given = {key: value for key, value in changes.items() if value not in ("", None, [])}
    with Output(mode(as_json, quiet)) as out:
        planned, folder = plan(recipe, given, overrides, output, resume, command="align")
        if dry_run:
            show(recipe, planned, device, out)
        else:
            train_and_tell(planned, folder, device, resume, out)


def _rewards(texts: list[str]) -> list[dict[str, Any]]:
    """NAME=FOLDER each; of several with one name, the folder's own name is the label."""
    pairs = [text.partition("=")[::2] for text in texts]
    names = [name for name, _ in pairs]
    return [
        {"name": name}
        | ({"options": {"folder": folder}} if folder else {})
        | ({"label": Path(folder).name} if folder and names.count(name) > 1 else {})
        for name, folder in pairs
    ]
