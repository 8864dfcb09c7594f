"""From a finished run's recipe to what an export needs: each product's contract, and pictures to compare with."""

from __future__ import annotations

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
from jdmctl.export.check import Reference
from jdmctl.export.code import Origin
from jdmctl.export.contract import Contract, one_step_call
from jdmctl.export.licenses import read_license
from jdmctl.export.products import Kind, Product
from jdmctl.families.folders import pipeline_variant, variant_of
from jdmctl.families.student_forms import hub_file, student_form
from jdmctl.recipe import Recipe
from jdmctl.sampling import draw, eight_bit
from jdmctl.weights import tensor_names

_PROMPT, _SEEDS = "", (0, 7)


def build_export_family(recipe: Recipe, run: Path, device: str) -> Any:
    """The student as a finished run left it, with its branches. Raises JdmError for weights that cannot be had."""
    return build_trained(recipe, run, {name: run / folder for name, folder in recipe.branch_folders.items()}, device)


def build_products(recipe: Recipe, run: Path, family: Any, license: str = "") -> list[Product]:
    """The student, its LoRA and the control branches that a finished run left, each with its contract.

    Raises:
        BadInputError: a student that its pipeline's schedulers cannot call as it must be, or a T2I-Adapter.
    """
    if adapters := [control.name for control in recipe.controls if control.branch == "t2i_adapter"]:
        raise BadInputError(
            f"{adapters[0]} has a T2I-Adapter, which export does not know",
            hint=f"{run / recipe.branch_folders[adapters[0]]} is a T2IAdapter of diffusers already: use it as it is",
        )
    folders: dict[str, Kind] = {}
    if recipe.student_folder:
        folders[recipe.student_folder] = "student" if recipe.student_folder == "student" else "student_lora"
    folders |= dict.fromkeys(recipe.branch_folders.values(), "controlnet")
    contract = _contract(recipe, family, license)
    of_control = {recipe.branch_folders[control.name]: control for control in recipe.controls}
    products = []
    for folder, kind in folders.items():
        values = contract.to_dict() | {"beside": tuple(other for other in folders if other != folder)}
        if folder in of_control:
            control = of_control[folder]
            values |= {"control": control.name, "extractor": control_defaults(control.name) | control.options}
            if control.init not in ("student", "dsm"):
                values["made_from"] = (*contract.made_from, _public_name(control.init))
        products.append(Product(run / folder, kind, Contract(**values), family.backbone_class.__name__))
    return products


def build_origin(recipe: Recipe, family: Any, is_public: bool = False) -> Origin:
    """What a run's products are put on in plain diffusers.

    Of a folder of one's own a public origin tells the name alone: a card need not tell where somebody keeps it. Of a
    file of a hub repository it tells both names; the other origin tells where it was downloaded to.
    """
    is_whole = recipe.student_folder == "student"
    form, path = ("pipeline", "student") if is_whole else student_form(type(family), _source(recipe))
    base = resolve(recipe.model.teacher, "teacher")
    scheduler = family.one_step_scheduler()
    own = family.student_config if form == "pipeline" else family.sampler_config
    before = type(scheduler).from_config(dict(own)).config
    changes = {
        key: value for key, value in scheduler.config.items() if not key.startswith("_") and value != before[key]
    }
    variant = "" if is_whole else _variant(form, path)
    base_variant = pipeline_variant(base)
    config = family.checkpoint_config(tensor_names(Path(path))) if form == "checkpoint" else {}
    file = ""
    if is_public:
        repository, file = hub_file(_source(recipe))
        path = repository or _address(str(path), recipe.model.student)
        base = _address(base, recipe.model.teacher)
    return Origin(
        str(path), file, form, base, family.backbone_class.__name__, family.subfolder, variant, base_variant, config,
        changes,
    )  # fmt: skip


def build_reference(recipe: Recipe, family: Any, dtype: torch.dtype, device: str) -> Reference:
    """What the run draws, its trained weights rounded to `dtype`, which changes `family`.

    The condition is the student's own plain picture.
    """
    is_whole = recipe.student_folder == "student"
    with torch.no_grad():
        for name, parameter in family.student.named_parameters():
            if is_whole or name.startswith("branches.") or ".lora_" in name:
                parameter.copy_(parameter.to(dtype))
    prompts, seeds = [_PROMPT] * len(_SEEDS), list(_SEEDS)
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):  # as the check draws
        condition = eight_bit(draw(family, prompts[:1], [1])) if recipe.controls else None
        repeated = condition if condition is None else condition.expand(len(seeds), -1, -1, -1)
        images = draw(family, prompts, seeds, dict.fromkeys(recipe.branch_folders, repeated), batch_size=1)
    return Reference(prompts, seeds, condition, images, device)


def hub_name(recipe: Recipe) -> str:
    """On the hub, of what a run started from; nothing where that is a folder."""
    source = _source(recipe)
    return "" if Path(source).exists() else "/".join(source.split("/")[:2])


def _source(recipe: Recipe) -> str:
    """Folder, file or hub name of what a run started from: its student, or the teacher of a new one."""
    model = recipe.model
    return resolve(model.student, "student") if model.student else resolve(model.teacher, "teacher")


def _contract(recipe: Recipe, family: Any, license: str) -> Contract:
    origin = _public_name(recipe.model.student or recipe.model.teacher)
    scheduler, timestep = family.one_step_scheduler(), family.pipeline_timestep
    pipeline = _pipeline(family.pipeline_class.__name__, bool(recipe.controls))
    call = one_step_call(scheduler, timestep, pipeline) | family.call_options
    if recipe.controls:
        call |= {"controlnet_conditioning_scale": 1.0}
    settings = {key: value for key, value in scheduler.config.items() if not key.startswith("_")}
    told = (license, "") if license else _license(_source(recipe), hub_name(recipe))
    return Contract(
        student=recipe.name if recipe.student_folder == "student" else origin,
        made_from=(origin,),
        pipeline=pipeline,
        timestep=timestep,
        scheduler={"_class_name": type(scheduler).__name__} | settings,
        call=call,
        prediction=scheduler.config.get("prediction_type", family.student.prediction),
        resolution_px=family.resolution_px,
        license=told[0],
        license_link=told[1],
        jdmctl=__version__,
    )


def _pipeline(name: str, has_controls: bool) -> str:
    """The diffusers class to draw with; nothing if it has none for a control of this family."""
    import diffusers

    wanted = name.replace("Pipeline", "ControlNetPipeline") if has_controls else name
    return wanted if wanted in dir(diffusers) else ""


def _public_name(model: str) -> str:
    """A hub name as it is, of a folder or file only its own name."""
    return Path(model).name if Path(model).exists() else model


def _address(path: str, given: str) -> str:
    is_own = Path(path).exists() and given.partition("/")[0] != "tiny"
    return f"./{Path(path).name}" if is_own else path


def _variant(form: str, path: str | Path) -> str:
    """Of a student's weights; a file has none."""
    if form == "backbone":
        return variant_of(Path(path).glob("*.safetensors"))
    return pipeline_variant(path) if form == "pipeline" else ""


def _license(source: str, repository: str) -> tuple[str, str]:
    """The licence in a model's own card and where its text is, or nothing; `repository` is its hub name if any."""
    try:
        card = Path(hf_hub_download(repository, "README.md") if repository else Path(source, "README.md"))
        return read_license(metadata_load(card) or {}, repository) if card.is_file() else ("", "")
    except (HfHubHTTPError, LocalEntryNotFoundError, HFValidationError, OSError, ValueError):
        return "", ""
