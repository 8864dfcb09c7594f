"""Plain diffusers code that draws with exported files: what the model card shows, and what the check runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from jdmctl.export.products import LORA_FILE, Product


@dataclass(frozen=True)
class Origin:
    """The pipeline that a run's products are put on: where it lies, and how it comes together (student_forms)."""

    path: str  # of the student: folder, file or hub name
    file: str = ""  # where that is a hub name and the student one file of it
    form: str = "pipeline"
    base: str = ""  # pipeline that a student in another form is put into: its teacher's
    backbone: str = ""  # diffusers class of the network
    part: str = "unet"  # what the pipeline calls it
    variant: str = ""  # in which the weights at `path` are there alone, as fp16
    base_variant: str = ""  # likewise those at `base`
    config: Mapping[str, Any] = field(default_factory=dict)  # of the network, where a checkpoint's own names tell it
    scheduler: dict[str, Any] = field(default_factory=dict)  # settings that its own scheduler config has otherwise

    @property
    def place(self) -> str:
        """The student's file or folder, in Python."""
        return f'hf_hub_download("{self.path}", "{self.file}")' if self.file else f'"{self.path}"'


def setup(products: Sequence[Product], at: str, origin: Origin, files: Mapping[str, str] | None = None) -> list[str]:
    """Lines that make `pipe`; `at` is where the export lies.

    With `files`, product -> single file, these are read instead of the folders; `read_single_file` must then be there,
    which takes a file and the folder whose config it has.
    """
    contract = products[0].contract
    files = files or {}
    scheduler = contract.scheduler["_class_name"]
    nets = [product for product in products if product.kind == "controlnet"]
    whole = any(product.kind == "student" for product in products)
    origin = Origin(f"{at}/student", scheduler=origin.scheduler) if whole else origin
    classes = {contract.pipeline, scheduler, *(net.config["_class_name"] for net in nets if net.name not in files)}
    parts = [f"controlnet={one_or_list(names_of(nets))}"] if nets else []
    body = []
    for name, net in zip(names_of(nets), nets, strict=True):
        folder = f'{net.config["_class_name"]}.from_pretrained("{at}", subfolder="{net.name}")'
        file = f'read_single_file("{at}/{files.get(net.name)}", "{at}/{net.name}")'
        body.append(f"{name} = {file if net.name in files else folder}")
    if origin.form in _BACKBONE:
        classes.add(origin.backbone)
        told = "".join(f", {key}={value!r}" for key, value in origin.config.items())
        known = {"o": origin, "place": origin.place, "variant": _asking(origin.variant), "told": told}
        body += [line.format(**known) for line in _BACKBONE[origin.form]]
        parts.append(f"{origin.part}={origin.part}")
    is_pipeline = origin.form == "pipeline"
    address, variant = (origin.path, origin.variant) if is_pipeline else (origin.base, origin.base_variant)
    given = ", ".join([f'"{address}"{_asking(variant)}', *parts])
    body.append(f"pipe = {contract.pipeline}.from_pretrained({given})")
    if origin.form == "lora":
        given = f'"{origin.path}", weight_name="{origin.file}"' if origin.file else f'"{origin.path}"'
        body += _lora(contract.pipeline, origin.part, given, origin.place, is_student=True)
    settings = "".join(f", {key}={value!r}" for key, value in origin.scheduler.items())
    body.append(f"pipe.scheduler = {scheduler}.from_config(pipe.scheduler.config{settings})")
    for product in products:
        if product.kind == "student_lora":
            inside = files.get(product.name, f"{product.name}/{LORA_FILE}")
            given = f'"{at}", weight_name="{inside}"'
            body += _lora(contract.pipeline, origin.part, given, f'"{at}/{inside}"')
    head = ["import torch", f"from diffusers import {', '.join(sorted(classes))}"]
    head += [f"from {module} import {name}" for name, module in _READERS.items() if f"{name}(" in "".join(body)]
    return [*head, *body]


def example(products: Sequence[Product], at: str, origin: Origin, condition_argument: str) -> str:
    """Code that draws one picture."""
    nets = [product for product in products if product.kind == "controlnet"]
    lines = setup(products, at, origin)
    first = next(i for i, line in enumerate(lines) if not line.startswith(("import", "from")))
    loader = ["from diffusers.utils import load_image"] if nets else []
    lines = [*lines[:first], *loader, "", *lines[first:]]
    arguments = ['"a prompt"']
    if nets:
        maps = [f'load_image("{net.contract.control}.png")' for net in nets]
        arguments.append(f"{condition_argument}={one_or_list(maps)}")
    arguments += [f"{key}={value}" for key, value in products[0].contract.call.items()]
    arguments.append("generator=torch.Generator().manual_seed(0)")
    return "\n".join([*lines, "image = pipe(", *(f"    {argument}," for argument in arguments), ").images[0]"])


def names_of(nets: Sequence[Product]) -> list[str]:
    """Variables of control branches."""
    return ["controlnet"] if len(nets) == 1 else [f"controlnet_{net.contract.control}" for net in nets]


def one_or_list(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"[{', '.join(words)}]"


def _lora(pipeline: str, part: str, given: str, place: str, is_student: bool = False) -> list[str]:
    """Lines that put a LoRA on `pipe`, a student's for good; `given` is for load_lora_weights, else `place` is read."""
    import diffusers

    if not hasattr(getattr(diffusers, pipeline), "load_lora_weights"):
        return [line.format(place=place, part=part) for line in _MERGE]
    merging = ["pipe.fuse_lora()", "pipe.unload_lora_weights()"] if is_student else []
    return [f"pipe.load_lora_weights({given})", *merging]


def _asking(variant: str) -> str:
    return f', variant="{variant}"' if variant else ""


_READERS = {"hf_hub_download": "huggingface_hub", "load_file": "safetensors.torch"}
_BACKBONE = {
    "backbone": ("{o.part} = {o.backbone}.from_pretrained({place}{variant})",),
    "weights": (
        '{o.part} = {o.backbone}.from_config({o.backbone}.load_config("{o.base}", subfolder="{o.part}"))',
        "{o.part}.load_state_dict(load_file({place}))",
    ),
    "checkpoint": ('{o.part} = {o.backbone}.from_single_file({place}, config="{o.base}", subfolder="{o.part}"{told})',),
}
# For pipelines without load_lora_weights, PixArt's: a LoRA added to the weights, alpha being its rank if it says none.
_MERGE = (
    "lora = load_file({place})",
    'for layer in {{key.partition(".lora_")[0] for key in lora if ".lora_" in key}}:',
    '    up, down = (lora[f"{{layer}}.lora_{{side}}.weight"].float() for side in "BA")',
    '    strength = lora.get(f"{{layer}}.alpha", len(down)) / len(down)',
    '    pipe.{part}.get_submodule(layer.removeprefix("{part}.")).weight.data += strength * up @ down',
)
