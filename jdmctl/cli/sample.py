"""`jdmctl sample`: pictures from a run or any student, each with what it takes to draw it again."""

from __future__ import annotations

import itertools
import json
import math
import os
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from jdmctl.cli.options import MAX_SEED, DeviceOption, JsonOption, QuietOption, require_seeds
from jdmctl.cli.output import Output, mode
from jdmctl.errors import BadInputError

if TYPE_CHECKING:
    from jdmctl.cli.studio import Request, Studio

_PREVIEW_SAMPLES = 4
_GRID_ROWS = 16  # of 1000 pictures of 512 px a grid would take gigabytes

RunsArgument = Annotated[
    list[str] | None, typer.Argument(metavar="[RUN_FOLDER]...", help="What add-control made; several are composed.")
]


def sample(
    runs: RunsArgument = None,
    student: Annotated[str, typer.Option(help="Instead of a run: a one-step pipeline, or tiny.")] = "",
    controlnet: Annotated[list[str], typer.Option(metavar="NAME=FOLDER", help="With --student: a branch.")] = [],  # noqa: B006
    prompt: Annotated[list[str], typer.Option("--prompt", "-p", help="What to draw.")] = [],  # noqa: B006
    seed: Annotated[list[int], typer.Option(min=0, max=MAX_SEED, help="Of the noise.")] = [0],  # noqa: B006
    num: Annotated[int, typer.Option(min=1, help="So many seeds in a row from each --seed.")] = 1,
    control: Annotated[list[str], typer.Option(metavar="NAME=PHOTO", help="Obey what this photo shows.")] = [],  # noqa: B006
    condition: Annotated[list[str], typer.Option(metavar="NAME=MAP", help="Obey this ready condition map.")] = [],  # noqa: B006
    scale: Annotated[list[str], typer.Option(metavar="NAME=NUMBER", help="How strongly; 1 is as trained.")] = [],  # noqa: B006
    option: Annotated[list[str], typer.Option(metavar="NAME.KEY=VALUE", help="With --student: of a control.")] = [],  # noqa: B006
    teacher: Annotated[
        str, typer.Option(help="With --student: the pipeline that it was made from, if it is none.")
    ] = "",
    student_time: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="With --student: its own time; 1, if it is not known for another."),
    ] = None,
    student_prediction: Annotated[
        str | None, typer.Option(help="With --student: epsilon, v_prediction, flow_prediction or sample.")
    ] = None,
    resolution_px: Annotated[
        int | None, typer.Option(min=8, help="With --student: side of a picture, where its files do not say it.")
    ] = None,
    family: Annotated[str | None, typer.Option(help="With --student: of another package.")] = None,
    student_lora: Annotated[Path | None, typer.Option(help="With --student: a folder with a LoRA for it.")] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Folder for the pictures.")] = None,
    device: DeviceOption = "",
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Draw in one step: pictures, conditions and a grid of the first 16.

    A run folder alone gives a preview on samples that it was not trained on. Prompts, seeds, controls, conditions and
    scales may be repeated; each prompt is drawn with each seed, all obeying the same conditions. Each picture is saved
    as soon as it is drawn.
    """
    for first in seed:
        require_seeds(first, num)
    photos, maps = _pairs(control, "--control"), _pairs(condition, "--condition")
    if twice := sorted(photos.keys() & maps.keys()):
        raise BadInputError(f"there are two conditions for {twice[0]}", hint="give --control or --condition, not both")
    scales = {name: _number(text) for name, text in _pairs(scale, "--scale").items()}
    branches = {name: Path(folder) for name, folder in _pairs(controlnet, "--controlnet").items()}
    _check_pictures([*photos.values(), *maps.values()])
    with Output(mode(as_json, quiet)) as out:
        called = {"student_time": student_time, "student_prediction": student_prediction}
        call = {**called, "resolution_px": resolution_px, "family": family}
        studio = _open(runs or [], student, teacher, call, student_lora, branches, parse_options(option), device, out)
        if runs and not (prompt or photos or maps):
            requests = studio.held_out(_PREVIEW_SAMPLES)
        else:
            requests = studio.asked(prompt or [""], photos, maps)
            for name in studio.branches.keys() - photos.keys() - maps.keys():
                out.warning(f"{name} has no condition and does nothing; give it one: --control {name}=PHOTO")
        for text in dict.fromkeys(request.prompt for request in requests):
            if lost := studio.family.cut_off(text):
                out.warning(f"{text[:40]}...: too long for the text encoder, which does not read: {lost}")
        folder = output or _new_folder(Path(runs[0] if runs else "", "samples"))
        wanted = [(request, first + i) for request in requests for first in seed for i in range(num)]
        for record in draw_and_save(studio, wanted, scales, folder, device):
            out.result(record, f"{record['file']}  {_caption(record)}")
        if len(wanted) > _GRID_ROWS:
            out.note(f"the grid shows the first {_GRID_ROWS} of {len(wanted)} pictures")
        out.result({"grid": str(folder / "grid.png")}, str(folder / "grid.png"))


def draw_and_save(
    studio: Studio, wanted: Sequence[tuple[Request, int]], scales: Mapping[str, float], folder: Path, device: str
) -> Iterator[dict[str, Any]]:
    """Draw (request, seed) pairs into `folder`; a record of each picture once it is saved. `device` is the one that was
    asked for, "" if none was.

    Conditions are rounded to 8 bits first: what is saved is then exactly what was obeyed. Pictures are drawn one by
    one, since the last bit of a picture can change with the rest of its batch. The grid comes with its last row.

    Raises BadInputError if the folder holds pictures of another call.
    """
    from jdmctl import sampling
    from jdmctl.cli.studio import require_known

    require_known(scales, studio.branches, "--scale")
    names = list(wanted[0][0].conditions)
    around = [f"{n} asked" for n in names], [f"{n} found" for n in names]
    columns = [*around[0], "no control", "output", *around[1]] if names else ["output"]
    records = [_record(studio, request, seed, scales, folder, device) for request, seed in wanted]
    for i, (record, (_, seed)) in enumerate(zip(records, wanted, strict=True)):
        record["file"] = str(folder / f"{i:03d}-seed{seed}.png")
    sampling.require_own(folder, {record["file"]: record["command"] for record in records})
    rows = []
    for i, (record, (request, seed)) in enumerate(zip(records, wanted, strict=True)):
        asked = {name: sampling.eight_bit(condition)[None] for name, condition in request.conditions.items()}
        image = sampling.draw(studio.family, [request.prompt], [seed], asked, scales)  # [1, 3, H, W]
        record["adherence"] = {}
        shown = image.to(studio.device)
        for name in names:
            judge = studio.controls[name]
            score = judge.scores(shown, asked[name].to(studio.device))[judge.headline].item()
            record["adherence"][f"{name} {judge.headline}"] = score
            obeyed = record["controls"][name]
            told = {"control": name, "sha256": obeyed["condition_sha256"]}
            sampling.save_picture(sampling.to_picture(asked[name][0]), Path(obeyed["condition"]), told)
        sampling.save_picture(sampling.to_picture(image[0]), Path(record["file"]), record)
        if i < _GRID_ROWS:
            alone = [sampling.draw(studio.family, [request.prompt], [seed])] if names else []
            found = [studio.controls[name].condition(shown).cpu() for name in names]
            rows.append((_caption(record), [cell[0] for cell in (*asked.values(), *alone, image, *found)]))
        if i + 1 == min(len(wanted), _GRID_ROWS):
            sampling.save_picture(sampling.grid(columns, rows), folder / "grid.png", {"pictures": records[: i + 1]})
        yield record


def _record(
    studio: Studio,
    request: Request,
    seed: int,
    scales: Mapping[str, float],
    folder: Path,
    device: str,
) -> dict[str, Any]:
    """Everything that a picture follows from, and the command that draws it again, from any folder."""
    from jdmctl import __version__, sampling
    from jdmctl.build import resolve
    from jdmctl.families import FAMILIES
    from jdmctl.recipe_files import world_in_use
    from jdmctl.tinyworld.world import is_of_world

    model, time = studio.model, studio.family.student.student_time
    world = world_in_use() if is_of_world(model.student) else ""
    command = ["jdmctl", "sample", "--student", _from_anywhere(model.student), "--student-time", str(time)]
    if model.teacher != resolve(model.student, "student"):
        command += ["--teacher", _from_anywhere(model.teacher)]
    command += ["--family", model.family] if model.family not in FAMILIES else []
    command += ["--student-prediction", model.student_prediction] if model.student_prediction else []
    command += ["--resolution-px", str(model.resolution_px)] if model.resolution_px else []
    command += ["--student-lora", _from_anywhere(studio.student_lora)] if studio.student_lora else []
    command += ["--prompt", request.prompt, "--seed", str(seed), *(["--device", device] if device else [])]
    controls: dict[str, Any] = {}
    for name, condition in request.conditions.items():
        digest, branch, options = sampling.fingerprint(condition), studio.branches[name], studio.options.get(name, {})
        path = folder / "conditions" / f"{name}-{digest[:12]}.png"
        controls[name] = {
            "controlnet": str(branch),
            "controlnet_sha256": studio.branch_hashes[name],
            "condition": str(path),
            "condition_sha256": digest,
            "scale": scales.get(name, 1.0),
            "options": dict(options),
        }
        command += ["--controlnet", f"{name}={_from_anywhere(branch)}", "--condition", f"{name}={path.absolute()}"]
        command += ["--scale", f"{name}={scales.get(name, 1.0)}"]
        for key, value in options.items():
            given = _from_anywhere(value) if isinstance(value, str) else value
            command += ["--option", f"{name}.{key}={_written(given)}"]
    return {
        "jdmctl": __version__,
        "prompt": request.prompt,
        "seed": seed,
        "student": model.student,
        "teacher": model.teacher,
        "student_time": time,
        "student_lora": str(studio.student_lora) if studio.student_lora else None,
        "controls": controls,
        "command": shlex.join(command) if not world else f"JDMCTL_WORLD={shlex.quote(world)} {shlex.join(command)}",
    }


def _from_anywhere(name: str | Path) -> str:
    """What is here by its absolute path; what is on the hub or in the embedded world as it is."""
    from jdmctl.tinyworld.world import is_of_world

    is_here = not is_of_world(str(name)) and os.path.exists(name)
    return str(Path(name).absolute()) if is_here else str(name)


def _written(value: Any) -> str:
    """An option's value as --option reads it."""
    from jdmctl.recipe_files import read_yaml

    is_plain = isinstance(value, str) and re.fullmatch(r"[\w./-]+", value) and read_yaml(value, "") == value
    return value if is_plain else json.dumps(value)


def _caption(record: Mapping[str, Any]) -> str:
    scores = [f"{name} {value:.4f}" for name, value in record["adherence"].items()]
    return ", ".join([f"seed {record['seed']}", *scores, record["prompt"]])


def _open(
    runs: Sequence[str],
    student: str,
    teacher: str,
    call: Mapping[str, Any],
    student_lora: Path | None,
    branches: Mapping[str, Path],
    options: Mapping[str, Mapping[str, Any]],
    device: str,
    out: Output,
) -> Studio:
    from jdmctl.cli.studio import Studio, model_of

    if bool(runs) == bool(student):
        raise BadInputError(
            "give either a run folder or --student" + (", not both" if runs else ""),
            hint="jdmctl sample RUN_FOLDER, or jdmctl sample --student FOLDER --controlnet NAME=FOLDER",
        )
    if runs and (branches or options or student_lora or teacher or any(value is not None for value in call.values())):
        raise BadInputError(
            "--teacher, --family, --resolution-px, --controlnet, --option and --student-... belong to --student",
            hint="a run folder has its own",
        )
    from jdmctl.training.device import find_device

    device = find_device(device)
    if runs:
        return Studio.of_runs([Path(run) for run in runs], device, out.warning)
    model = model_of(student, teacher, **call)
    return Studio.of_student(model, branches, options, student_lora, device, out.warning)


def _pairs(texts: Sequence[str], flag: str) -> dict[str, str]:
    """NAME=VALUE texts; the same name twice is refused."""
    pairs: dict[str, str] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not (name and equals and value):
            raise BadInputError(f"{flag} {text}: expected NAME=VALUE", hint=f"for example {flag} canny=...")
        if name in pairs:
            raise BadInputError(f"{flag} {name} is given twice", hint="run the command once for each")
        pairs[name] = value
    return pairs


def _new_folder(wanted: Path) -> Path:
    """The folder, or wanted-2, wanted-3 ..., whichever holds nothing yet: pictures of another call stay."""
    numbered = (wanted.with_name(f"{wanted.name}-{number}") for number in itertools.count(2))
    return next(folder for folder in itertools.chain([wanted], numbered) if not any(folder.glob("*")))


def parse_options(texts: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Control -> its options, of NAME.KEY=VALUE each. Raises BadInputError for another form."""
    from jdmctl.recipe_files import read_yaml

    options: dict[str, dict[str, Any]] = {}
    for text, value in _pairs(texts, "--option").items():
        name, dot, key = text.partition(".")
        if not (dot and key):
            raise BadInputError(f"--option {text}={value}: expected NAME.KEY=VALUE", hint="as in depth.network=FOLDER")
        options.setdefault(name, {})[key] = read_yaml(value, f"--option {text}")
    return options


def _number(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise BadInputError(f"--scale: {text} is not a number", hint="for example --scale canny=0.8")
    return number


def _check_pictures(paths: Sequence[str]) -> None:
    """Read each picture once before any weights are loaded: a wrong path is told at once."""
    if paths:
        from jdmctl.data.pictures import read_image

        for path in paths:
            read_image(path, 64)
