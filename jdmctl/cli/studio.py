"""A student that is ready to draw, from a run folder or from what the user names one by one."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jdmctl.errors import BadInputError, ConditionMismatchError, JdmError

if TYPE_CHECKING:
    from torch import Tensor

    from jdmctl.controls.base import Control
    from jdmctl.recipe import Recipe
    from jdmctl.recipe_sections import Model


@dataclass(frozen=True)
class Request:
    """What one picture is to show."""

    prompt: str
    conditions: Mapping[str, Tensor]  # control -> [3, H, W]


@dataclass(frozen=True)
class Studio:
    """A student, its branches, and the controls that make and score their conditions."""

    model: Model
    branches: Mapping[str, Path]  # control -> ControlNet folder
    options: Mapping[str, Mapping[str, Any]]  # control -> its options
    device: str
    family: Any
    controls: Mapping[str, Control] = field(default_factory=dict)
    student_lora: Path | None = None  # folder
    recipe: Recipe | None = None

    @classmethod
    def of_runs(cls, folders: Sequence[Path], device: str, warn: Callable[[str], None] = lambda text: None) -> Studio:
        """The student of finished runs, with the branches of all of them.

        Raises JdmError for a folder that holds no finished run, and if their students or controls clash.
        """
        from jdmctl.build import build_controls, build_student, model_with_student
        from jdmctl.build_check import check_model

        recipes = [recipe_of(folder, ", or --student") for folder in folders]
        branches: dict[str, Path] = {}
        options: dict[str, Any] = {}
        controls: dict[str, Control] = {}
        for folder, recipe in zip(folders, recipes, strict=True):
            if recipe.model != recipes[0].model:
                raise BadInputError(f"{folders[0]} and {folder} have different students", hint=_ONE_STUDENT)
            for control in recipe.controls:
                if control.name in branches:
                    raise BadInputError(f"{folder} and another run both have {control.name}", hint=_ONE_STUDENT)
                branches[control.name] = finished(folder, recipe, recipe.branch_folders[control.name])
                options[control.name] = control.options
            controls |= build_controls(recipe, device)
        changed = [folder for folder, recipe in zip(folders, recipes, strict=True) if recipe.student_folder]
        if changed and len(folders) > 1:
            raise BadInputError(f"{changed[0]} changed its student, so it cannot be composed", _ONE_STUDENT)
        model, own = recipes[0].model, recipes[0].student_folder
        lora = finished(folders[0], recipes[0], own) if own == "student_lora" else None
        if own == "student":
            model = model_with_student(recipes[0], finished(folders[0], recipes[0], own))
        for text in check_model(model):
            warn(text)
        family = build_student(model, branches, lora, device)
        return cls(model, branches, options, device, family, controls, lora, recipes[0])

    @classmethod
    def of_student(
        cls,
        model: Model,
        branches: Mapping[str, Path],
        options: Mapping[str, Mapping[str, Any]],
        student_lora: Path | None,
        device: str,
        warn: Callable[[str], None] = lambda text: None,
    ) -> Studio:
        """A student of `model_of`, ControlNets and perhaps a LoRA for it."""
        from jdmctl.build import build_student, resolve
        from jdmctl.build_check import check_model
        from jdmctl.controls.base import load_control

        require_known(options, branches, "--option")
        for text in check_model(model):
            warn(text)
        controls = {}
        for name in branches:
            given = {key: resolve(str(v), key) if str(v).startswith("tiny/") else v
                     for key, v in options.get(name, {}).items()}  # fmt: skip
            try:
                controls[name] = load_control(name, **given).to(device)
            except JdmError as error:
                if "needs the option" not in str(error):
                    raise
                raise BadInputError(str(error), hint=f"add --option {name}.KEY=VALUE") from error
        family = build_student(model, branches, student_lora, device)
        return cls(model, branches, options, device, family, controls, student_lora)

    @functools.cached_property
    def branch_hashes(self) -> dict[str, str | None]:
        """Control -> sha256 of its branch's folder, None for one from the hub."""
        from jdmctl.build import resolve
        from jdmctl.weights import fingerprint

        folders = {name: Path(resolve(str(branch), name)) for name, branch in self.branches.items()}
        return {name: fingerprint(folder) if folder.is_dir() else None for name, folder in folders.items()}

    def held_out(self, number: int) -> list[Request]:
        """Requests from the first samples that the (first) run was not trained on."""
        from jdmctl.build_data import build_samples

        assert self.recipe is not None
        own = {control.name: self.controls[control.name] for control in self.recipe.controls}
        samples = build_samples(self.recipe, self.family, own, self.device).validation
        indices = range(min(number, len(samples)))
        images, maps = samples.take(indices)
        for name in self.controls.keys() - maps.keys():
            if images is None:
                raise BadInputError(
                    f"the first run's data holds no pictures to make conditions for {name} from",
                    hint=f"add --control {name}=PHOTO",
                )
            maps[name] = self.controls[name].condition(images.to(self.device)).cpu()
        return [Request(samples.text(i), {name: maps[name][i] for name in self.controls}) for i in indices]

    def asked(self, prompts: Sequence[str], photos: Mapping[str, str], maps: Mapping[str, str]) -> list[Request]:
        """The user's prompts, each with the user's conditions.

        Raises JdmError for a picture that cannot be used, and if a branch would have nothing to obey.
        """
        from jdmctl.data.pictures import read_image

        require_known({**photos, **maps}, self.branches, "a condition")
        if self.branches and not (photos or maps):
            name = next(iter(self.branches))
            raise BadInputError("there is nothing to obey", hint=f"add --control {name}=PHOTO")
        size = self.family.resolution_px
        conditions = {name: _ready_map(name, path, size) for name, path in maps.items()}
        for name, path in photos.items():
            image = read_image(path, size).to(self.device)
            conditions[name] = self.controls[name].condition(image[None])[0].cpu()
        return [Request(prompt, conditions) for prompt in prompts]


def model_of(student: str, teacher: str = "", **call: Any) -> Model:
    """A student as a user names it; `call` holds values of a recipe's `model`, None where nothing is said.

    A known student has its own call and teacher; another in a whole pipeline needs no teacher to draw.

    Raises:
        BadInputError: it is no pipeline, and nobody knows on which it goes; or a value of `call` is none that it takes.
    """
    from pydantic import ValidationError

    from jdmctl.build import resolve
    from jdmctl.families.identify import family_of, known_student, lone_file
    from jdmctl.recipe_files import explained
    from jdmctl.recipe_sections import Model

    own = resolve(student, "student")
    known = known_student(own)
    if known and known.weights != "folder":
        teacher = teacher or known.teacher
    if not teacher and (lone_file(Path(own)) or own.endswith(".safetensors")):
        raise BadInputError(
            f"{student} is no pipeline",
            hint=f"give its teacher: --student {student} --teacher TEACHER; or, if it is a LoRA for a one-step "
            f"student, --student STUDENT --student-lora {own}",
        )
    given = {key: value for key, value in call.items() if value is not None}
    if "student_time" in given:  # in place of the timestep that is known
        given["student_timestep"] = None
    values = (known.called_as if known else {}) | given
    values.setdefault("family", family_of(resolve(teacher, "teacher") if teacher else own))
    try:
        return Model(teacher=teacher or own, student=student, **values)
    except ValidationError as error:
        raise BadInputError(
            f"{student} cannot be called so: {'; '.join(explained(error.errors()))}",
            hint="give another value, or leave it out",
        ) from error


_ONE_STUDENT = "give runs on the same student, each with controls of its own"


def recipe_of(folder: Path, instead: str = "") -> Recipe:
    """The recipe of a run folder. Raises BadInputError if it is none, and says what else there is to give."""
    from jdmctl.recipe_files import load_recipe

    if not (folder / "recipe.yaml").is_file():
        raise BadInputError(
            f"{folder} is not a run folder: it has no recipe.yaml",
            hint=f"give the folder that jdmctl add-control, align or distill made{instead}",
        )
    return load_recipe(folder)


def finished(run: Path, recipe: Recipe, product: str) -> Path:
    """A product's folder. Raises BadInputError if the run has not written it yet."""
    if not (run / product).is_dir():
        raise BadInputError(
            f"the run in {run} has not finished: there is no {product}",
            hint=f"go on with it: jdmctl {recipe.command} {run} --resume",
        )
    return run / product


def require_known(names: Mapping[str, Any], branches: Mapping[str, Any], what: str) -> None:
    """Raises BadInputError for a name without a branch."""
    for name in names:
        if name not in branches:
            has = f"it has {', '.join(branches)}" if branches else "it has none"
            raise BadInputError(
                f"{what} is for {name}, but the student has no such control branch ({has})",
                hint=f"add --controlnet {name}=FOLDER",
            )


def _ready_map(name: str, path: str, size_px: int) -> Tensor:
    from jdmctl.data.pictures import read_image, size_of

    condition = read_image(path, size_px)
    height, width = size_of(path)
    if (width, height) != (size_px, size_px):  # a resized map is no longer what an extractor makes
        raise ConditionMismatchError(
            f"the map {path} is {width} x {height} px, this student takes {size_px} x {size_px}",
            hint=f"give the photo that it was made from: --control {name}=PHOTO",
        )
    return condition
