"""Builds a whole world from its pictures: stages in order, each done once, all resumable."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

from safetensors.torch import load_file, save_file

from jdmctl.controls.base import load_control
from jdmctl.errors import BadInputError, JdmError
from jdmctl.tinyworld.order import Order
from jdmctl.tinyworld.source import Pictures, digest_of, require_enough
from jdmctl.tinyworld.stages import autoencoder, diffusion, report, scorers, student, student_lora
from jdmctl.tinyworld.workshop import Workshop
from jdmctl.tinyworld.world import SOURCE_FILE
from jdmctl.training.atomic import whole_folder, write_text, writing

REPORT_FILE = "report.json"


def _canny_controlnet(shop: Workshop) -> None:
    diffusion.build_controlnet(shop, load_control("canny"), 4000)


def _depth_controlnet(shop: Workshop) -> None:
    if (shop.output / "depth").exists():
        diffusion.build_controlnet(shop, load_control("depth", network=str(shop.output / "depth")), 8000)


STAGES: dict[str, Callable[[Workshop], None]] = {
    "vae": autoencoder.build,
    "scorers": scorers.build,
    "teacher": diffusion.build_teacher,
    "student": student.build,
    "student_lora": student_lora.build,
    "controlnet_canny": _canny_controlnet,
    "controlnet_depth": _depth_controlnet,
    "report": report.build,
}


def build_world(
    pictures: Callable[[str], Pictures],
    output: Path,
    budget: float = 1.0,
    seed: int = 0,
    say: Callable[[str], None] = print,
    folder: Path | None = None,
) -> dict[str, float]:
    """Build every stage that is not yet there; returns the report's numbers.

    A killed build goes on where it was. `budget` scales every stage's number of steps. The result is a folder of
    ordinary diffusers and transformers folders in fp16, and its report. `folder`, if the pictures are not the rendered
    scenes, is where whoever uses the world finds them.

    Raises JdmError if something else is in the way: no world, or what is left of a build that was asked for otherwise;
    if `folder` has too few pictures; and if the disk is full.
    """
    if folder and not folder.is_dir():
        raise BadInputError(f"no folder {folder}", hint="give one of captioned pictures: --pictures FOLDER")
    output = output.absolute()
    _require_free(output)
    scratch = output.with_name(output.name + "-unfinished")
    order = Order("", budget, seed)
    if folder:
        require_enough(folder)
        order = Order(str(folder.resolve()), budget, seed, digest_of(folder))
    if not scratch.exists() and Order.of(output) == order:
        say(f"{output}: done before")
        return json.loads((output / REPORT_FILE).read_text())
    with writing(scratch):
        scratch.mkdir(parents=True, exist_ok=True)
    if any(scratch.iterdir()):
        order.require_same(scratch)
    order.keep(scratch)
    shop = Workshop(pictures, scratch / "folders", scratch / "states", budget, seed, say)
    if folder:
        write_text(shop.output / SOURCE_FILE, json.dumps({"folder": str(folder.resolve())}) + "\n")
    numbers_file = scratch / REPORT_FILE
    if numbers_file.exists():
        shop.report.update(json.loads(numbers_file.read_text()))
    for name, build in STAGES.items():
        done = scratch / f"{name}.done"
        if done.exists():
            say(f"{name}: done before")
            continue
        build(shop)
        write_text(numbers_file, json.dumps(shop.report, indent=1))
        write_text(done, "")
    write_text(shop.output / REPORT_FILE, json.dumps(shop.report, indent=1) + "\n")
    order.keep(shop.output)
    pack(shop.output, output)
    shutil.rmtree(scratch, ignore_errors=True)
    return shop.report


def _require_free(output: Path) -> None:
    """Raises JdmError if something is there that is no world: it would be replaced at the end."""
    is_empty = output.is_dir() and not any(output.iterdir())
    if output.exists() and not is_empty and not (output / REPORT_FILE).is_file():
        raise JdmError(f"{output} is already there, and is no world", hint="choose another --output")


def pack(source: Path, target: Path) -> None:
    """Copy finished folders, their weights in half precision; `target` appears whole or not at all.

    Raises JdmError if it cannot be written.
    """
    with whole_folder(target) as partial:
        shutil.copytree(source, partial, dirs_exist_ok=True)
        shutil.rmtree(partial / "vae")  # both pipelines hold it
        for file in partial.rglob("*.safetensors"):
            half = {
                name: value.half() if value.is_floating_point() else value for name, value in load_file(file).items()
            }
            save_file(half, file, metadata={"format": "pt"})
        for file in partial.rglob("config.json"):
            config = json.loads(file.read_text())
            config.pop("_name_or_path", None)  # where it lay while it was made
            file.write_text(json.dumps(config, indent=2) + "\n")
