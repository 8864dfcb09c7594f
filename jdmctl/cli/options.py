"""Options that several commands share, declared once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from jdmctl.errors import BadInputError

MAX_SEED = 2**63 - 1  # torch's
MAX_TRAINING_SEED = 2**32 - 1  # numpy's, which is seeded too

JsonOption = Annotated[bool, typer.Option("--json", help="Write JSON lines to stdout.")]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="Write results only.")]
DeviceOption = Annotated[str, typer.Option(help="cpu, cuda, cuda:1 ...; by default a GPU if there is one.")]
SetOption = Annotated[
    list[str],
    typer.Option("--set", metavar="KEY=VALUE", help="Change a value of the recipe; may be repeated."),
]

# --- of commands that train ---------------------------------------------------------------------

TrainDataOption = Annotated[
    str,
    typer.Option(
        "--data", "--train_data_dir", help="Captioned pictures in any known layout, file of prompts, or tiny."
    ),
]
NumStepsOption = Annotated[int | None, typer.Option("--num-steps", "--max_train_steps", help="Updates of the student.")]
BatchSizeOption = Annotated[
    int | None, typer.Option("--batch-size", "--train_batch_size", help="Of one update, over all processes.")
]
LearningRateOption = Annotated[float | None, typer.Option("--learning-rate", "--learning_rate", help="Of the student.")]
PrecisionOption = Annotated[str, typer.Option("--precision", "--mixed_precision", help="fp32 (no) or bf16.")]
EightBitOption = Annotated[
    bool, typer.Option("--use-8bit-adam", "--use_8bit_adam", help="AdamW's moments in 8 bits, by bitsandbytes.")
]
TrackOption = Annotated[
    Literal["", "none", "tensorboard"],
    typer.Option("--track", "--report_to", help="tensorboard: numbers and previews in its files too."),
]
SeedOption = Annotated[int | None, typer.Option(min=0, max=MAX_TRAINING_SEED, help="Of everything random.")]
RunOption = Annotated[
    Path | None, typer.Option("--output", "-o", "--output_dir", help="Run folder; default runs/NAME.")
]
ResumeOption = Annotated[bool, typer.Option("--resume", help="Go on exactly from the last checkpoint.")]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Show the recipe and sizes, then stop.")]

# --- of commands that score ---------------------------------------------------------------------

HeldOutOption = Annotated[
    Path | None,
    typer.Option("--data", help="Held-out captioned pictures, any layout; the embedded world has its own."),
]
ReferenceOption = Annotated[
    Path | None, typer.Option(help="Pictures to measure distances to; default: every other of --data.")
]
FeaturesOption = Annotated[
    str, typer.Option(help="With --data, for distances: inception, or a vision model of transformers.")
]
SplitOption = Annotated[Literal["val", "test"], typer.Option(help="val to choose by, test to report.")]
NumOption = Annotated[int, typer.Option(min=8, help="Pictures.")]
ScoringDeviceOption = Annotated[
    str, typer.Option("--device", help="cpu, cuda, cuda:1 ..., to draw and to look on; by default the CPU.")
]
ResultsOption = Annotated[
    Path | None,
    typer.Option(help="File of rows, docs/results/NAME.json; README.md and docs/results.md show them."),
]
DEFAULT_FEATURES = "openai/clip-vit-base-patch32"


def require_seeds(first: int, num: int) -> None:
    """Raises BadInputError if the last of so many seeds in a row is none."""
    if first + num - 1 > MAX_SEED:
        raise BadInputError(
            f"there are no {num} seeds from {first} on: the largest is {MAX_SEED}",
            hint=f"--seed {max(0, MAX_SEED - num + 1)} at most",
        )


def require_world(split: str, *folders: Path | None) -> None:
    """Raises BadInputError for a split of the embedded world beside folders of the user's."""
    if split != "test" and any(folders):
        raise BadInputError("--split is of the embedded world; --data and --reference have none", hint="leave it out")


def require_data(data: Path | None, reference: Path | None, features: str) -> None:
    """Raises BadInputError for what is of no use without --data: the embedded world has its own."""
    useless = {"--reference": reference is not None, "--features": features != DEFAULT_FEATURES}
    if data is None and (names := [name for name, is_given in useless.items() if is_given]):
        raise BadInputError(
            f"{' and '.join(names)}: without --data it is scored on the embedded world, which has its own",
            hint="give --data FOLDER, or leave it out",
        )
