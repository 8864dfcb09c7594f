"""From a finished run's recipe to what an export needs: each product's contract, and pictures to compare with."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from huggingface_hub.repocard import metadata_load

from jdmctl import __version__
from jdmctl.build import build_trained, resolve
from jdmctl.controls.base import control_defaults
from jdmctl.errors import BadInputError
from jdmctl.export.card import read_license
from jdmctl.export.check import Reference
from jdmctl.export.contract import Contract, is_flow, one_step_scheduler
from jdmctl.export.products import Kind, Product
from jdmctl.families.folders import read_config
from jdmctl.recipe import Recipe
from jdmctl.sampling import draw, eight_bit

_PROMPT, _SEEDS = "", (0, 7)


def student_source(recipe: Recipe) -> str:
    """Folder or hub name of the pipeline that a run started from: its student, or the teacher of a new one."""
    model = recipe.model
    return resolve(model.student, "student") if model.student else resolve(model.teacher, "teacher")


def hub_name(recipe: Recipe) -> str:
    """On the hub, of the pipeline that a run started from; nothing where that is a folder."""
    source = student_source(recipe)
    return "" if Path(source).exists() else source


def student_address(recipe: Recipe) -> str:
    """What to load the student from in an example: a card need not tell where somebody keeps a folder."""
    source = student_source(recipe)
    given = recipe.model.student
    return source if hub_name(recipe) or given.partition("/")[0] == "tiny" else f"./{Path(source).name}"


def default_device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def build_products(recipe: Recipe, run: Path, license: str = "") -> list[Product]:
    """The student, its LoRA and the control branches that a finished run left, each with its contract.

    Raises:
        BadInputError: the student's pipeline has no counterpart in diffusers that takes these products.
        MissingWeightsError: the student's folder is not there to read its configs from.
    """
    folders: dict[str, Kind] = {}
    if recipe.student_folder:
        folders[recipe.student_folder] = "student" if recipe.student_folder == "student" else "student_lora"
    folders |= dict.fromkeys(recipe.branch_folders.values(), "controlnet")
    source = str(run / "student") if "student" in folders else student_source(recipe)
    contract = _contract(recipe, source, license)
    of_control = {folder: name for name, folder in recipe.branch_folders.items()}
    products = []
    for folder, kind in folders.items():
        values = contract.to_dict() | {"beside": tuple(other for other in folders if other != folder)}
        if folder in of_control:
            name = of_control[folder]
            control = next(control for control in recipe.controls if control.name == name)
            values |= {"control": name, "extractor": control_defaults(name) | control.options}
            if control.init not in ("student", "dsm"):
                values["made_from"] = (*contract.made_from, _public_name(control.init))
        products.append(Product(run / folder, kind, Contract(**values)))
    return products


def build_reference(recipe: Recipe, run: Path, dtype: torch.dtype, device: str) -> Reference:
    """What the run draws, its trained weights rounded to `dtype`; the condition is the student's own plain picture."""
    branches = {name: run / folder for name, folder in recipe.branch_folders.items()}
    family = build_trained(recipe, run, branches, device)
    is_whole = recipe.student_folder == "student"
    with torch.no_grad():
        for name, parameter in family.student.named_parameters():
            if is_whole or name.startswith("branches.") or ".lora_" in name:
                parameter.copy_(parameter.to(dtype))
    prompts, seeds = [_PROMPT] * len(_SEEDS), list(_SEEDS)
    condition = None
    if branches:
        condition = eight_bit(draw(family, prompts[:1], [1]))
        repeated = condition.expand(len(seeds), -1, -1, -1)
        images = draw(family, prompts, seeds, dict.fromkeys(branches, repeated), batch_size=1)
    else:
        images = draw(family, prompts, seeds, batch_size=1)
    return Reference(student_source(recipe), prompts, seeds, condition, images, device)


def _contract(recipe: Recipe, source: str, license: str) -> Contract:
    index, own = (
        read_config(source, None, "model_index.json"),
        read_config(source, "scheduler", "scheduler_config.json"),
    )
    steps, time = own.get("num_train_timesteps", 1000), recipe.model.student_time
    timestep = round(time * (steps if is_flow(own) else steps - 1))
    origin = _public_name(recipe.model.student or recipe.model.teacher)
    scheduler, call = one_step_scheduler(own, timestep)
    call |= {"guidance_scale": 1.0}
    if recipe.controls:
        call |= {"controlnet_conditioning_scale": 1.0}
    return Contract(
        student=recipe.name if recipe.student_folder == "student" else origin,
        made_from=(origin,),
        pipeline=_pipeline(index["_class_name"], bool(recipe.controls)),
        timestep=timestep,
        scheduler=scheduler,
        call=call,
        prediction="flow" if is_flow(own) else own.get("prediction_type", "epsilon"),
        resolution_px=_resolution(source, index),
        license=license or _license(student_source(recipe)),
        jdmctl=__version__,
    )


def _pipeline(name: str, has_controls: bool) -> str:
    import diffusers

    plain = name.replace("ControlNetPipeline", "Pipeline")
    wanted = plain.replace("Pipeline", "ControlNetPipeline") if has_controls else plain
    if wanted not in dir(diffusers):
        raise BadInputError(
            f"diffusers has no {wanted}, which the export would run in", hint="pip install -U diffusers"
        )
    return wanted


def _resolution(source: str, index: Mapping[str, Any]) -> int | None:
    """The denoiser's own size times what the VAE shrinks, as diffusers' pipelines take it by default."""
    part = next((name for name in ("unet", "transformer") if name in index), None)
    size = read_config(source, part, "config.json").get("sample_size") if part else None
    if not isinstance(size, int) or "vae" not in index:
        return None
    widths = read_config(source, "vae", "config.json").get("block_out_channels")
    return size * 2 ** (len(widths) - 1) if widths else None


def _public_name(student: str) -> str:
    """A hub name as it is, of a folder only its own name: a card need not tell where somebody keeps it."""
    return Path(student).name if Path(student).exists() else student


def _license(source: str) -> str:
    """The licence in the student's own model card, or nothing."""
    try:
        card = Path(source, "README.md") if Path(source).exists() else hf_hub_download(source, "README.md")
        return read_license(metadata_load(card) or {}) if Path(card).is_file() else ""
    except (HfHubHTTPError, LocalEntryNotFoundError, HFValidationError, OSError, ValueError):
        return ""
