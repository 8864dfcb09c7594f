"""The model card: what was made of what, how to run it in plain diffusers, what was measured. Nothing is guessed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData

from jdmctl.evaluation.results import Row, table
from jdmctl.export.contract import Contract
from jdmctl.export.licenses import license_entries
from jdmctl.export.products import Product, refusals
from jdmctl.training.records import read_records


def card(
    title: str,
    products: Sequence[Product],
    code: str,
    measured: str,
    files: Mapping[str, str],
    pictures: Sequence[str],
    base_model: str = "",
) -> str:
    """README.md with a front matter for the Hugging Face hub.

    `base_model` is the hub name of what it was made from, empty for a local folder; `files` is product -> its single
    file, `pictures` are paths within the export.
    """
    contract = products[0].contract
    kinds = {product.kind for product in products}
    tags = ["one-step", "joint-distribution-matching", "jdmctl"]
    tags += ["controlnet"] if "controlnet" in kinds else []
    tags += ["lora"] if "student_lora" in kinds else []
    data = ModelCardData(
        base_model=base_model or None,
        library_name="diffusers",
        pipeline_tag="text-to-image",
        tags=tags,
        **license_entries(contract.license, contract.license_link),
    )
    held = "\n".join(
        f"- `{product.name}/`: {_WHAT[product.kind].format(product.contract.control)}" for product in products
    )
    held += "".join(f"\n- `{file}`: `{name}/` as one file for other tools" for name, file in files.items())
    parts = [
        f"---\n{data.to_yaml()}\n---",
        f"# {title}",
        f"Made with jdmctl {contract.jdmctl} {_of(products)}.",
        held,
        "## Use",
        f"```python\n{code}\n```" if code else _NO_PIPELINE,
        _tools(files, products),
        "## Inference contract",
        "Other settings than these draw something else. They also stand in the config and in the metadata of the "
        "safetensors files.",
        _contract_table(products),
        "## Measured",
        measured,
        *(f"![]({picture})" for picture in pictures),
        "## Licence",
        _license(products),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def measured_rows(rows: Sequence[Row], run: str) -> str:
    """The rows of a results file that were measured on this run, with the commands that give them again."""
    own = [row for row in rows if run in {Path(word).name for word in row.command.split()}]
    commands = "\n".join(f"    {command}" for command in dict.fromkeys(row.command for row in own))
    setups = "\n".join(f"- {setup}" for setup in dict.fromkeys(row.setup for row in own) if setup)
    return f"{table(own)}\n\nValue [95 % interval], by\n\n{commands}\n\n{setups}" if own else ""


def measured_in_training(metrics: Path) -> str:
    """The best validation of a run's metrics.jsonl, whose weights are the ones that it left; or `not measured`."""
    records = read_records(metrics)
    last = records[-1]["stage"] if records else ""
    looks = [r for r in records if r["event"] == "validation" and r["stage"] == last and r["step"] > 0]
    if not looks:
        return "Not measured."
    best = next((look for look in reversed(looks) if look.get("is_best")), looks[-1])
    told = "\n".join(f"- {name}: {value:.4f}" for name, value in best["adherence"].items())
    return (
        f"On held-out test pictures: not measured. While it trained, on the validation samples that chose these "
        f"weights (step {best['step']} of {last}), which flatters them a little:\n\n{told}"
    )


_NO_PIPELINE = (
    "diffusers has no pipeline that takes such a control branch; `jdmctl sample --student STUDENT --controlnet "
    "NAME=FOLDER` draws with it."
)
_WHAT = {
    "controlnet": "control branch for {}",
    "student_lora": "LoRA of the student",
    "student": "the student itself, a whole pipeline",
}


def _tools(files: Mapping[str, str], products: Sequence[Product]) -> str:
    if not files:
        return ""
    contract = products[0].contract
    not_a1111 = any(refusals(product, "a1111") for product in products if product.name in files)
    tools = "ComfyUI" if not_a1111 else "ComfyUI and A1111"
    return (
        f"In {tools}: 1 step, CFG scale 1, control strength 1, {_size(contract)}; the sampler must "
        f"call the network once, at timestep {contract.timestep}, on pure noise."
    )


def _contract_table(products: Sequence[Product]) -> str:
    contract = products[0].contract
    rows: dict[str, Any] = {
        "student": f"`{contract.student}`",
        "diffusers pipeline": f"`{contract.pipeline}`",
        "steps": 1,
        "timestep": contract.timestep,
        "scheduler": f"`{contract.scheduler['_class_name']}`",
        **{key.replace("_", " "): value for key, value in contract.call.items() if key != "num_inference_steps"},
        "prediction": contract.prediction,
        "size": _size(contract),
    }
    for product in products:
        if product.kind == "controlnet":
            options = ", ".join(f"{key} {value}" for key, value in product.contract.extractor.items())
            rows[f"condition of `{product.name}`"] = product.contract.control + (f" ({options})" if options else "")
    return "\n".join(
        ["| | |", "| --- | --- |", *(f"| {key} | {value} |" for key, value in rows.items() if value != "")]
    )


def _size(contract: Contract) -> str:
    size = contract.resolution_px
    return f"{size} x {size} px" if size else "the size that the student was made for"


def _of(products: Sequence[Product]) -> str:
    contract = products[0].contract
    is_new = any(product.kind == "student" for product in products)
    return f"from `{contract.made_from[0]}`" if is_new else f"for the one-step student `{contract.student}`"


def _license(products: Sequence[Product]) -> str:
    first, *others = dict.fromkeys(name for product in products for name in product.contract.made_from)
    known, link = products[0].contract.license, products[0].contract.license_link
    known = f"[{known}]({link})" if link else known
    told = f"{known}, that of `{first}`" if known else f"Not known here: it is that of `{first}`"
    also = "".join(f" and of `{name}`" for name in others)
    return (
        f"{told}{also}, from which these weights were made. Its terms go on to them: read them before you share these."
    )
