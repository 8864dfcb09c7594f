"""A student that is ready to draw, from a run folder or from what the user names one by one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jdmctl.errors import BadInputError, ConditionMismatchError, JdmError

if TYPE_CHECKING:
    from torch import Tensor

    from jdmctl.controls.base import Control
    from jdmctl.recipe import Recipe


@dataclass(frozen=True)
class Request:
    """What one picture is to show."""

    prompt: str
    conditions: Mapping[str, Tensor]  # control -> [3, H, W]


@dataclass(frozen=True)
class Studio:
    """A student, its branches, and the controls that make and score their conditions."""

    student: str  # as the user names it, or the run's recipe does
    student_time: float
    branches: Mapping[str, Path]  # control -> ControlNet folder
    options: Mapping[str, Mapping[str, Any]]  # control -> its options
    device: str
    family: Any
    controls: Mapping[str, Control] = field(default_factory=dict)
    recipe: Recipe | None = None

    @classmethod
    def of_run(cls, folder: Path, device: str) -> Studio:
        """Raises JdmError unless `folder` holds a finished run."""
        from jdmctl.build import build_controls, build_family
        from jdmctl.recipe_files import load_recipe

        if not (folder / "recipe.yaml").is_file():
            raise BadInputError(
                f"{folder} is not a run folder: it has no recipe.yaml",
                hint="give the folder that jdmctl add-control made, or --student",
            )
        recipe = load_recipe(folder)
        branches = {}
        for control in recipe.controls:
            own = "controlnet" if len(recipe.controls) == 1 else f"controlnet-{control.name}"
            branches[control.name] = folder / own
            if not branches[control.name].is_dir():
                raise BadInputError(
                    f"the run in {folder} has not finished: there is no {own}",
                    hint=f"jdmctl add-control {folder} --resume",
                )
        family = build_family(recipe.model, device)
        for name, branch in branches.items():
            family.add_control_branch(name, branch).eval()
        return cls(
            student=recipe.model.student,
            student_time=recipe.model.student_time,
            branches=branches,
            options={control.name: control.options for control in recipe.controls},
            device=device,
            family=family,
            controls=build_controls(recipe, device),
            recipe=recipe,
        )

    @classmethod
    def of_student(
        cls,
        student: str,
        student_time: float,
        branches: Mapping[str, Path],
        options: Mapping[str, Mapping[str, Any]],
        device: str,
    ) -> Studio:
        """A student's folder or hub name (or tiny), and ControlNets for it."""
        from jdmctl.build import build_family, resolve
        from jdmctl.controls.base import load_control
        from jdmctl.recipe import Model

        require_known(options, branches, "--option")
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
        own = resolve(student, "student")
        family = build_family(Model(teacher=own, student=own, student_time=student_time), device)
        for name, folder in branches.items():
            family.add_control_branch(name, resolve(str(folder), name)).eval()
        return cls(student, student_time, branches, options, device, family, controls)

    def held_out(self, number: int) -> list[Request]:
        """Requests from the first samples that the run was not trained on."""
        from jdmctl.build import build_samples

        assert self.recipe is not None
        _, samples = build_samples(self.recipe, self.family, self.controls, self.device)
        indices = range(min(number, len(samples)))
        _, maps = samples.take(indices)
        return [Request(samples.text(i), {name: maps[name][i] for name in maps}) for i in indices]

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
    from PIL import Image

    from jdmctl.data.pictures import read_image

    condition = read_image(path, size_px)
    with Image.open(path) as picture:
        width, height = picture.size
    if (width, height) != (size_px, size_px):  # a resized map is no longer what an extractor makes
        raise ConditionMismatchError(
            f"the map {path} is {width} x {height} px, this student takes {size_px} x {size_px}",
            hint=f"give the photo that it was made from: --control {name}=PHOTO",
        )
    return condition
