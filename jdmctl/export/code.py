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
    form: str = "pipeline"
    base: str = ""  # pipeline that a student in another form is put into: its teacher's
    backbone: str = ""  # diffusers class of the network
    part: str = "unet"  # what the pipeline calls it
    variant: str = ""  # in which the weights at `path` are there alone, as fp16
    base_variant: str = ""  # likewise those at `base`
    scheduler: dict[str, Any] = field(default_factory=dict)  # settings that its own scheduler config has otherwise


def setup(products: Sequence[Product], at: str, origin: Origin, files: Mapping[str, str] | None = None) -> list[str]:
    """Lines that make `pipe`; `at` is where the export lies.

    With `files`, product -> single file, these are read instead of the folders; `read_single_file` must then be there,
    which takes a file and the folder whose config it has.
    """
    import diffusers

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
        body += [line.format(o=origin, variant=_asking(origin.variant)) for line in _BACKBONE[origin.form]]
        parts.append(f"{origin.part}={origin.part}")
    is_pipeline = origin.form == "pipeline"
    address, variant = (origin.path, origin.variant) if is_pipeline else (origin.base, origin.base_variant)
    given = ", ".join([f'"{address}"{_asking(variant)}', *parts])
    body.append(f"pipe = {contract.pipeline}.from_pretrained({given})")
    takes_lora = hasattr(getattr(diffusers, contract.pipeline), "load_lora_weights")
    if origin.form == "lora" and takes_lora:
        body += [f'pipe.load_lora_weights("{origin.path}")', "pipe.fuse_lora()", "pipe.unload_lora_weights()"]
    elif origin.form == "lora":
        body += [line.format(file=origin.path, part=origin.part) for line in _MERGE]
    settings = "".join(f", {key}={value!r}" for key, value in origin.scheduler.items())
    body.append(f"pipe.scheduler = {scheduler}.from_config(pipe.scheduler.config{settings})")
    for product in products:
        if product.kind == "student_lora":
            inside = files.get(product.name, f"{product.name}/{LORA_FILE}")
            theirs = [f'pipe.load_lora_weights("{at}", weight_name="{inside}")']
            ours = [line.format(file=f"{at}/{inside}", part=origin.part) for line in _MERGE]
            body += theirs if takes_lora else ours
    head = ["import torch", f"from diffusers import {', '.join(sorted(classes))}"]
    head += ["from safetensors.torch import load_file"] if any("load_file(" in line for line in body) else []
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


def _asking(variant: str) -> str:
    return f', variant="{variant}"' if variant else ""


_BACKBONE = {
    "backbone": ('{o.part} = {o.backbone}.from_pretrained("{o.path}"{variant})',),
    "weights": (
        '{o.part} = {o.backbone}.from_config({o.backbone}.load_config("{o.base}", subfolder="{o.part}"))',
        '{o.part}.load_state_dict(load_file("{o.path}"))',
    ),
    "checkpoint": ('{o.part} = {o.backbone}.from_single_file("{o.path}", config="{o.base}", subfolder="{o.part}")',),
}
# For pipelines without load_lora_weights, PixArt's: a LoRA added to the weights, alpha being its rank.
_MERGE = (
    'lora = load_file("{file}")',
    'for layer in {{key.partition(".lora_")[0] for key in lora}}:',
    '    up, down = (lora[f"{{layer}}.lora_{{side}}.weight"].float() for side in "BA")',
    '    pipe.{part}.get_submodule(layer.removeprefix("{part}.")).weight.data += up @ down',
)
