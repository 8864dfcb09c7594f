"""`jdmctl export`: what a run left, for diffusers, ComfyUI, A1111 and kohya's tools, with how to use it inside."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from jdmctl.cli.options import DeviceOption, JsonOption, QuietOption
from jdmctl.cli.output import Output, mode
from jdmctl.errors import BadInputError, JdmError

if TYPE_CHECKING:
    from jdmctl.export.code import Origin
    from jdmctl.export.products import Product
    from jdmctl.recipe import Recipe


class Format(StrEnum):
    """Who is to load it."""

    diffusers = "diffusers"
    comfyui = "comfyui"
    a1111 = "a1111"
    kohya = "kohya"


MARK = "jdmctl.json"  # in every export: what each product needs; only such a folder is ever replaced
_CHEAP_PX = 256  # a check at this size takes seconds on a CPU


def export(
    run: Annotated[Path, typer.Argument(metavar="RUN_FOLDER", help="What add-control, align or distill made.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the export.")],
    formats: Annotated[
        list[Format],
        typer.Option("--format", help="Beside diffusers: single files for a tool; may be repeated."),
    ] = [Format.diffusers],  # noqa: B006
    dtype: Annotated[Literal["fp32", "fp16", "bf16"], typer.Option(help="Of the trained weights.")] = "fp32",
    results: Annotated[
        Path | None, typer.Option(help="File of rows that jdmctl eval --results wrote: the card tells this run's.")
    ] = None,
    license: Annotated[str, typer.Option(help="Of the student's weights; by default what its own card says.")] = "",
    check: Annotated[
        bool | None,
        typer.Option("--check/--no-check", help="Draw with it in plain diffusers; default: where that takes seconds."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an export that is there already.")] = False,
    device: DeviceOption = "",
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Write out what a run left, with the settings that it needs inside, a model card, and files for other tools.

    Diffusers folders are always written. comfyui and a1111 add a single file of each ControlNet and LoRA, kohya one of
    the LoRA. At the end the export is drawn with in a process without jdmctl, and compared pixel by pixel.
    """
    from jdmctl.build_export import build_export_family, build_origin, build_products, build_reference
    from jdmctl.cli.studio import finished, recipe_of
    from jdmctl.export.check import differences
    from jdmctl.export.products import DTYPES, write_folder, write_single_file
    from jdmctl.training.atomic import whole_folder
    from jdmctl.training.device import find_device

    _require_free(output, force)
    with Output(mode(as_json, quiet)) as out:
        recipe = recipe_of(run)
        for folder in filter(None, [recipe.student_folder, *recipe.branch_folders.values()]):
            finished(run, recipe, folder)
        device = find_device(device)
        family = build_export_family(recipe, run, device)
        products = build_products(recipe, run, family, license)
        files = _single_files(products, list(dict.fromkeys(formats)))
        measured = _measured(run, results)
        found: dict[str, float] = {}
        with whole_folder(output) as partial:
            for product in products:
                write_folder(product, partial / product.name, DTYPES[dtype])
                if product.name in files:
                    write_single_file(product, partial / files[product.name], DTYPES[dtype])
            origin = build_origin(recipe, family, is_public=True)
            _write_card(partial, output, run, recipe, products, origin, files, measured)
            if products[0].contract.pipeline and (check or (check is None and _is_cheap(device, family))):
                reference = build_reference(recipe, family, DTYPES[dtype], device)
                found = differences(partial, products, build_origin(recipe, family), files, reference)
                _require_same(found)
        for name, value in found.items():
            out.note(f"{name}: plain diffusers draws the same, largest difference {255 * value:.4f}/255")
        if not found:
            out.note(f"not drawn with in plain diffusers: {_why_not(products, check)}")
        written = sorted(str(path.relative_to(output)) for path in output.rglob("*") if path.is_file())
        record = {
            "export": str(output),
            "products": {product.name: product.contract.to_dict() for product in products},
            "single_files": files,
            "dtype": dtype,
            "largest_difference": found or None,
            "files": written,
        }
        out.result(record, "\n".join(str(output / name) for name in written))


def _require_free(output: Path, force: bool) -> None:
    """Raises JdmError if something is there that may not be replaced."""
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return
    if not (output / MARK).is_file():
        raise JdmError(f"{output} is already there, and is no export", hint="choose another --output")
    if not force:
        raise JdmError(f"{output} is already there", hint="choose another --output, or replace it with --force")


def _single_files(products: Sequence[Product], formats: Sequence[str]) -> dict[str, str]:
    """Product -> the name of its single file. Raises BadInputError with all that cannot be one."""
    from jdmctl.export.products import refusals

    files: dict[str, str] = {}
    wrong: list[str] = []
    for tool in formats:
        wanted = [product for product in products if tool != "kohya" or product.kind == "student_lora"]
        if tool == "diffusers":
            continue
        if not wanted:
            wrong.append("kohya: it is a format for LoRAs, and this run left none")
        for product in wanted:
            files[product.name] = product.single_file
            wrong += [f"{tool}, {product.name}: {reason}" for reason in refusals(product, tool)]
    if wrong:
        raise BadInputError(
            "\n  ".join(["there is no single file for this:", *wrong]),
            hint="--format diffusers writes folders for diffusers, which hold everything",
        )
    return files


def _measured(run: Path, results: Path | None) -> str:
    """What the card tells of the run's quality. Raises BadInputError for results that are not this run's."""
    from jdmctl.evaluation.results import read
    from jdmctl.export.card import measured_in_training, measured_rows

    if not results:
        return measured_in_training(run / "metrics.jsonl")
    if not results.is_file():
        raise BadInputError(f"no results file {results}", hint=f"jdmctl eval {run} --results {results}   writes it")
    told = measured_rows(read(results), run.resolve().name)
    if not told:
        raise BadInputError(
            f"{results} has no row whose command names {run.resolve().name}",
            hint=f"jdmctl eval {run} --results {results}   adds them",
        )
    return told


def _write_card(
    folder: Path,
    output: Path,
    run: Path,
    recipe: Recipe,
    products: Sequence[Product],
    origin: Origin,
    files: dict[str, str],
    measured: str,
) -> None:
    import json
    import shutil

    from jdmctl.build_export import hub_name
    from jdmctl.export.card import card
    from jdmctl.export.check import condition_argument
    from jdmctl.export.code import example

    contracts = {product.name: product.contract.to_dict() for product in products}
    (folder / MARK).write_text(json.dumps(contracts, indent=2) + "\n", encoding="utf-8")
    shown = [*sorted((run / "previews").glob("step-*.png"))[-1:], *(run / "samples").glob("grid.png")]
    pictures = [f"pictures/{picture.name}" for picture in shown]
    for picture, name in zip(shown, pictures, strict=True):
        (folder / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(picture, folder / name)
    contract = products[0].contract
    code = example(products, str(output), origin, condition_argument(contract)) if contract.pipeline else ""
    text = card(recipe.name, products, code, measured, files, pictures, base_model=hub_name(recipe))
    (folder / "README.md").write_text(text, encoding="utf-8")


def _is_cheap(device: str, family: Any) -> bool:
    """Whether drawing a few pictures takes seconds."""
    return device != "cpu" or family.resolution_px <= _CHEAP_PX


def _why_not(products: Sequence[Product], check: bool | None) -> str:
    if not products[0].contract.pipeline:
        return "it has no pipeline for this control"
    return "as you asked" if check is False else "that would take long here, and --check does it"


def _require_same(found: dict[str, float]) -> None:
    from jdmctl.export.check import LIMIT

    if wrong := [f"{name} by {255 * value:.1f}/255" for name, value in found.items() if not value <= LIMIT]:
        raise JdmError(
            f"plain diffusers draws something else with the export than this run ({', '.join(wrong)}): not written",
            hint="this should not happen, please report it; --no-check writes the export all the same",
        )
