"""Exported files drawn with in a fresh process by plain diffusers, and compared with what the run draws."""

from __future__ import annotations

import inspect
import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from jdmctl.errors import JdmError
from jdmctl.export import plain
from jdmctl.export.code import Origin, setup
from jdmctl.export.contract import Contract
from jdmctl.export.products import Product

LIMIT = 1 / 255  # what a picture of 8 bits cannot show


@dataclass(frozen=True)
class Reference:
    """What the run itself draws, with exported precision, in float32."""

    prompts: Sequence[str]
    seeds: Sequence[int]
    condition: Tensor | None  # [1, 3, H, W] in [0, 1], of 8 bits, the same for every control
    images: Tensor  # [B, 3, H, W] in [0, 1]
    device: str = "cpu"


def differences(
    exported: Path, products: Sequence[Product], origin: Origin, files: Mapping[str, str], reference: Reference
) -> dict[str, float]:
    """Largest difference to the reference, in [0, 1], for the folders and, if there are any, for the single files.

    `files` is product -> its single file's name within the export.

    Raises:
        JdmError: plain diffusers cannot draw with them.
    """
    contract = products[0].contract
    variants = {"folders": setup(products, str(exported), origin)}
    if files:
        variants["single files"] = setup(products, str(exported), origin, files)
    with tempfile.TemporaryDirectory() as scratch:
        condition, output = Path(scratch, "condition.npy"), Path(scratch, "drawn.npz")
        if reference.condition is not None:
            np.save(condition, reference.condition.numpy())
        job = {
            "variants": variants,
            "timestep": contract.timestep,
            "call": contract.call,
            "condition": str(condition) if reference.condition is not None else None,
            "condition_argument": condition_argument(contract),
            "num_conditions": sum(product.kind == "controlnet" for product in products),
            "prompts": list(reference.prompts),
            "seeds": list(reference.seeds),
            "device": reference.device,
            "output": str(output),
        }
        _run(job, Path(scratch, "job.json"))
        with np.load(output) as drawn:
            theirs = {name: torch.from_numpy(drawn[name]).permute(0, 3, 1, 2) for name in variants}
    return {name: (images - reference.images).abs().max().item() for name, images in theirs.items()}


def condition_argument(contract: Contract) -> str:
    """What a pipeline calls its condition: `image`, or `control_image` where that means something else."""
    import diffusers

    known = inspect.signature(getattr(diffusers, contract.pipeline).__call__).parameters
    return "control_image" if "control_image" in known else "image"


def _run(job: Mapping[str, Any], file: Path) -> None:
    file.write_text(json.dumps(job), encoding="utf-8")
    done = subprocess.run([sys.executable, "-P", plain.__file__, str(file)], capture_output=True, text=True)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise JdmError(f"plain diffusers cannot draw with what was exported: {last}", hint="--no-check skips this")
