"""`jdmctl distill`: a one-step student from a multi-step teacher; and the divergences that it may descend."""

from __future__ import annotations

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


def distill(
    recipe: Annotated[str, typer.Argument(metavar="[RECIPE]", help="tiny/distill, a file, or a run folder.")] = "",
    teacher: Annotated[
        str,
        typer.Option("--teacher", "--pretrained_model_name_or_path", help="Pipeline: folder, hub name or tiny."),
    ] = "",
    student: Annotated[
        str, typer.Option(help="One-step pipeline to go on from instead of the teacher: folder, hub name or tiny.")
    ] = "",
    data: TrainDataOption = "",
    divergence: Annotated[str, typer.Option(help="reverse-kl, js ...; jdmctl divergences lists them.")] = "",
    gan_weight: Annotated[float | None, typer.Option(min=0, help="Of a critic's verdict; 0 is without.")] = None,
    guidance_scale: Annotated[float | None, typer.Option(min=0, help="Of the teacher.")] = None,
    trainable: Annotated[
        Literal["", "lora", "full"], typer.Option(help="lora: the student is left as a LoRA of its teacher.")
    ] = "",
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
    """Make a one-step student of a teacher (Diff-Instruct, DMD, and f-distill for other divergences).

    Say what by a recipe, or by --teacher and --data alone; other options change the recipe. What comes out is an
    ordinary StableDiffusionPipeline that draws in one step, or a LoRA that makes the teacher's pipeline do so.
    """
    changes: dict[str, Any] = {
        "model.teacher": teacher,
        "model.student": student,
        **data_changes(data),
        "objective.divergence": divergence,
        "objective.gan_weight": gan_weight,
        "objective.guidance_scale": guidance_scale,
        "student.trainable": trainable,
        **training_changes(num_steps, batch_size, learning_rate, precision, seed, eight_bit, track),
    }
    given = {key: value for key, value in changes.items() if value not in ("", None)}
    with Output(mode(as_json, quiet)) as out:
        planned, folder = plan(recipe, given, overrides, output, resume, command="distill")
        if dry_run:
            show(recipe, planned, device, out)
        else:
            train_and_tell(planned, folder, device, resume, out)


def divergences(as_json: JsonOption = False) -> None:
    """List what a student may descend towards its teacher, and how much a sample of each density ratio counts."""
    import torch

    from jdmctl.objectives.divergence import aliases, divergence_names, load_divergence
    from jdmctl.recipe_kinds import SCORE_DIVERGENCES

    ratios = torch.tensor([0.1, 1.0, 10.0], dtype=torch.float64)
    columns = ["name", "also", *(f"h({ratio:g})" for ratio in ratios)]
    rows = []
    for name in divergence_names():
        found = load_divergence(name.replace("NUMBER", "0.5"))
        weights = found.log_weight(ratios.log()).exp().tolist()
        rows.append(dict(zip(columns, [name, ", ".join(aliases(name)), *(f"{w:.3g}" for w in weights)], strict=True)))
    rows += [dict.fromkeys(columns, "") | {"name": name, "also": "a distance of scores"} for name in SCORE_DIVERGENCES]
    out = Output(mode(as_json))
    out.table(rows, columns)
    out.note("h(r): weight of a sample that the teacher finds r times as likely as the student does (NUMBER at 0.5)")
