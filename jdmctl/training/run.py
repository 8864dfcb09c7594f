"""A run folder from its beginning to the weights it leaves behind.

recipe.yaml  metrics.jsonl  curve.png  previews/  checkpoints/  controlnet/; tensorboard/ if it is asked for
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs
from safetensors.torch import load_file, save_file

from jdmctl.errors import JdmError
from jdmctl.training.atomic import whole_folder, write_text
from jdmctl.training.checkpoint import Checkpoints
from jdmctl.training.device import find_device
from jdmctl.training.loop import fit
from jdmctl.training.observer import Measure, RunObserver
from jdmctl.training.plan import BatchSource, Settings, Stage
from jdmctl.training.state import Stateful
from jdmctl.training.tracking import EventFiles

RECIPE_FILE = "recipe.yaml"
# The others wait while one process validates, draws previews and saves, which may outlast NCCL's own ten minutes. Where
# one has died there is nothing to wait for: a launcher ends the others.
_PATIENCE = timedelta(hours=6)


@dataclass(frozen=True)
class Run:
    """Everything that a run needs, made and ready."""

    recipe: str  # the resolved recipe, as text
    stages: Sequence[Stage]
    batches: BatchSource
    settings: Settings
    validation: Measure
    extra: Mapping[str, Stateful]
    products: Mapping[str, Callable[[Path], None]]  # folder name -> writes the weights into it
    is_tracked: bool = False  # by event files for TensorBoard
    beside: Mapping[str, str] = field(default_factory=dict)  # file name -> text, written with the recipe


def make_accelerator(device: str, precision: str) -> Accelerator:
    """On a device, or by default on a GPU if there is one. Raises JdmError if that device is not there."""
    if device:
        find_device(device)
    if device.startswith("cuda:"):
        os.environ["ACCELERATE_TORCH_DEVICE"] = device
    is_cpu = device == "cpu" or not (torch.cuda.is_available() or torch.backends.mps.is_available())
    group = InitProcessGroupKwargs(timeout=_PATIENCE)
    return Accelerator(cpu=is_cpu, mixed_precision="bf16" if precision == "bf16" else "no", kwargs_handlers=[group])


def require_new(folder: Path, command: str = "") -> None:
    """Raises JdmError if something is already there; `command` is the one that goes on with a run."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        is_run = command and (folder / RECIPE_FILE).is_file()
        go_on = f"go on with it: jdmctl {command} {folder} --resume, or " if is_run else ""
        raise JdmError(f"{folder} is already there", hint=f"{go_on}choose another --output")


def require_resumable(folder: Path) -> None:
    """Raises JdmError if no run was started there."""
    if not (folder / RECIPE_FILE).is_file():
        raise JdmError(
            f"nothing to resume: {folder} holds no run",
            hint="leave out --resume to start one, or give the run's folder",
        )


def train(
    run: Run,
    folder: Path,
    accelerator: Accelerator,
    show: Callable[[Mapping[str, Any]], None],
    resume: bool = False,
) -> dict[str, Any]:
    """Train in `folder` and write its products from the best averaged weights.

    Returns what came out: the products' folders, the best validation's values and the calibrated weights.
    """
    metadata = {"jdmctl_recipe": run.recipe}
    checkpoints = Checkpoints(folder / "checkpoints", metadata)

    def keep_recipe() -> None:
        if accelerator.is_main_process:
            for name, text in {**run.beside, RECIPE_FILE: run.recipe}.items():
                write_text(folder / name, text)

    with closing(EventFiles(folder / "tensorboard")) if run.is_tracked else nullcontext() as events:
        state = fit(
            run.stages,
            run.batches,
            run.settings,
            accelerator=accelerator,
            checkpoints=checkpoints,
            observer=RunObserver(folder, run.validation, show, events),
            extra=run.extra,
            resume=resume,
            on_ready=keep_recipe,  # what cannot go on is refused before its recipe is replaced
        )
    extra = {key: item.state_dict() for key, item in run.extra.items()}
    of_products = metadata | {f"jdmctl_{key}": json.dumps(value) for key, value in extra.items()}
    if accelerator.is_main_process:
        state.load_average(checkpoints, checkpoints.folder / state.best["name"])
        with state.average.applied():
            for name, write in run.products.items():
                with whole_folder(folder / name) as partial:
                    write(partial)
                    _add_metadata(partial, of_products)
    accelerator.wait_for_everyone()
    best = {key: value for key, value in state.best.items() if key not in ("score", "score_error", "peak")}
    products = {name: str(folder / name) for name in run.products}
    return {"products": products, "best": best, "halted": state.halted, **extra}


def _add_metadata(folder: Path, metadata: Mapping[str, str]) -> None:
    """Let weights say how they were made."""
    for file in folder.rglob("*.safetensors"):
        save_file(load_file(file), file, metadata={"format": "pt", **metadata})
