"""From a command's options to a recipe, and from the recipe to a finished run: what all training commands share."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jdmctl.errors import RecipeError

if TYPE_CHECKING:
    from jdmctl.cli.output import Output
    from jdmctl.recipe import Recipe

_NEEDED = {  # what a recipe can be made of without a file
    "add-control": "--teacher, --student, --control and --data",
    "align": "--teacher, --student, --reward and --data",
    "distill": "--teacher and --data",
}


def plan(
    name: str,
    changes: dict[str, Any],
    overrides: Sequence[str],
    output: Path | None,
    resume: bool,
    init: str = "",
    command: str = "add-control",
) -> tuple[Recipe, Path]:
    """The recipe to run and the folder to run it in; a resumed run keeps its own recipe, but for the changes.

    A finished run that is given rewards is where the new run starts from.

    Raises RecipeError for a recipe that is not valid, or that another command runs.
    """
    from jdmctl.cli.onward import start_from
    from jdmctl.recipe_files import load_recipe, parse_recipe, read_values, set_value
    from jdmctl.training.run import RECIPE_FILE, require_resumable

    folder, source, to_add = output, name, ""
    if resume:
        if not folder:
            folder = Path(name) if not name or Path(name).is_dir() else Path("runs", load_recipe(name).name)
        require_resumable(folder)
        source = str(folder / RECIPE_FILE)
    if source:
        values = read_values(source)
        is_run = not resume and (Path(source) / RECIPE_FILE).is_file()
        if is_run and changes.get("rewards"):
            values = start_from(Path(source), values)
    elif changes:
        source = "the recipe made from these options"
        to_add = f"say {_NEEDED[command]}, or give a recipe: jdmctl recipes ls   lists them"
        names = [term["name"] for term in (*changes.get("controls", []), *changes.get("rewards", []))]
        values = {"name": "-".join(names) or command, "model": {}, "data": {}}
        if command == "distill":
            values["method"] = command
        if (teacher := changes.get("model.teacher") or "tiny") != "tiny":
            changes = {"model.family": _family(teacher), **changes}
    else:
        raise RecipeError("there is nothing to train", hint="give a recipe: jdmctl recipes ls   lists them")
    if "data.source" in changes:  # of the data that these take the place of, path and format count no more
        changes = {"data.path": "", "data.format": "", **changes}
    for path, value in {**_call(changes.get("model.student"), overrides), **changes}.items():
        set_value(values, path, value)
    for number in range(len(values.get("controls", [])) if init else 0):
        set_value(values, f"controls.{number}.init", init)
    recipe = parse_recipe(values, overrides, source, to_add)
    if to_add and not init and _may_denoise_first(recipe, overrides):
        for number in range(len(recipe.controls)):
            set_value(values, f"controls.{number}.init", "dsm")
        set_value(values, "training.dsm_warmup_steps", recipe.training.num_steps)
        recipe = parse_recipe(values, overrides, source, to_add)
    if recipe.command != command:
        right = f"jdmctl {recipe.command}"
        raise RecipeError(f"{source} is a recipe of {right}", hint=f"{right} {name or source}")
    return recipe, folder or Path("runs", recipe.name)


def _may_denoise_first(recipe: Recipe, overrides: Sequence[str]) -> bool:
    """Whether branches can begin by denoising on the teacher, as they best do, and nobody said how they begin."""
    keys = [text.partition("=")[0].strip() for text in overrides]
    is_said = any(key.endswith((".init", ".dsm_warmup_steps")) or key == "controls" for key in keys)
    return bool(recipe.controls) and recipe.method == "jdm" and recipe.data.has_pictures and not is_said


def _family(teacher: str) -> str:
    from jdmctl.build import resolve
    from jdmctl.families.identify import family_of

    return family_of(resolve(teacher, "teacher"))


def _call(student: str | None, overrides: Sequence[str]) -> dict[str, Any]:
    """How a student that options name is to be called, if it is a known one, but for what --set says of it."""
    if not student:
        return {}
    from jdmctl.build import resolve
    from jdmctl.families.identify import known_student

    known = known_student(resolve(student, "student"))
    called = known.called_as if known else {}
    if any(text.startswith(("model.student_time=", "model.student_timestep=")) for text in overrides):
        called = {"student_prediction": called.get("student_prediction")}
    return {f"model.{key}": value for key, value in called.items()}


def data_changes(data: str) -> dict[str, str]:
    """What a path is taken for, as changes of a recipe."""
    from jdmctl.data.meaning import meaning_of

    if data in ("", "tiny"):
        return {"data.source": data}
    meaning = meaning_of(data)
    changes = {"data.source": meaning.source, "data.path": meaning.path}
    return changes | ({"data.format": meaning.format} if meaning.format else {})


def training_changes(
    num_steps: int | None,
    batch_size: int | None,
    learning_rate: float | None,
    precision: str,
    seed: int | None,
    eight_bit: bool,
    track: str,
) -> dict[str, Any]:
    """What the options of every training command change in a recipe; `no` is diffusers' word for fp32."""
    return {
        "training.num_steps": num_steps,
        "training.batch_size": batch_size,
        "training.learning_rate": learning_rate,
        "training.precision": "fp32" if precision == "no" else precision,
        "training.tracker": track,
        "memory.optimizer": "adamw_8bit" if eight_bit else "",
        "seed": seed,
    }


def show(name: str, recipe: Recipe, device: str, out: Output) -> None:
    """The recipe and what it would hold; where its models are not here, all is built on stand-ins instead.

    `name` is that of the recipe which was changed into it, if there was one. Raises JdmError for what the run would
    refuse of its options, models and data, as far as can be seen without loading the real ones.
    """
    import tempfile

    from jdmctl.build import count_parameters
    from jdmctl.build_check import check_options
    from jdmctl.build_stand_ins import absent, with_stand_ins
    from jdmctl.recipe_files import to_yaml
    from jdmctl.training.device import find_device

    device = find_device(device or "cpu")
    tell_of_model(recipe, out)
    check_options(recipe)
    _look_at_data(name, recipe, out)
    if missing := absent(recipe):
        with tempfile.TemporaryDirectory() as folder:
            counts = count_parameters(with_stand_ins(recipe, Path(folder)), device)
    else:
        counts = count_parameters(recipe, device)
    of = " of the stand-ins" if missing else ""
    lines = [f"{role.replace('_', ' ')}: {number / 1e6:.2f} M parameters{of}" for role, number in counts.items()]
    record = {
        "event": "plan", "recipe": recipe.model_dump(mode="json"), "parameters": counts, "stand_ins": bool(missing),
    }  # fmt: skip
    out.result(record, to_yaml(recipe) + "\n" + "\n".join(lines))
    if missing:
        out.note(
            f"{' and '.join(missing)}: not on this machine, so tiny random stand-ins of the same format were built; "
            "nothing was downloaded. The real sizes: jdmctl plan RECIPE"
        )


def tell_of_model(recipe: Recipe, out: Output) -> None:
    """Warn of a known student that is called in another way. Raises JdmError for models of another family."""
    from jdmctl.build import model_at_start
    from jdmctl.build_check import check_model

    for text in check_model(model_at_start(recipe)):
        out.warning(text)


def _look_at_data(name: str, recipe: Recipe, out: Output) -> None:
    """Data that a packaged recipe only stands in for, prompts.txt, need not be there yet."""
    from jdmctl.build_check import check_data
    from jdmctl.recipe_files import load_recipe, packaged_recipes

    path = recipe.data.path
    if name in packaged_recipes() and load_recipe(name).data.path == path and not Path(path).exists():
        out.note(f"its data, {path}, is not here: name yours with --data")
    else:
        check_data(recipe)


def train_and_tell(recipe: Recipe, folder: Path, device: str, resume: bool, out: Output) -> None:
    from jdmctl.build import model_at_start
    from jdmctl.build_check import check_model
    from jdmctl.build_run import build_run
    from jdmctl.recipe_files import to_yaml
    from jdmctl.training.alone import alone
    from jdmctl.training.run import make_accelerator, require_new, train

    if not resume:
        require_new(folder, recipe.command)
    warnings = check_model(model_at_start(recipe))
    accelerator = make_accelerator(device, recipe.training.precision)
    accelerator.wait_for_everyone()  # no process may write before all have looked at the folder
    if accelerator.is_main_process:
        out.note(to_yaml(recipe))
        for text in warnings:
            out.warning(text)
    run = build_run(recipe, accelerator)
    with alone(folder) if accelerator.is_main_process else nullcontext():
        done = train(run, folder, accelerator, out.event, resume)
    if accelerator.is_main_process:
        record = {"event": "done", "run": str(folder), "num_processes": accelerator.num_processes, **done}
        products = "\n".join(done["products"].values())
        if done["halted"]:
            best = done["best"]
            which = (
                "alarmed too, as no earlier one was left: do what the alarm says"
                if best["alarm"]
                else "the best before"
            )
            out.warning(
                f"stopped before its last step by the alarms told above; these weights are of {best['name']}, {which}; "
                "--set training.stop_on_alarm=false goes on all the same"
            )
        out.result(record, products)
        out.note(f"previews are in {folder / 'previews'}; draw some more: jdmctl sample {folder}")
