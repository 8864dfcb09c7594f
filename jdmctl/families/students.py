"""The known one-step students and the contract of each: how it wants to be called. The facts are in students.yaml."""

from __future__ import annotations

import difflib
import functools
import math
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, PositiveInt, model_validator

from jdmctl.errors import BadInputError
from jdmctl.families import FAMILIES

FACTS = ("teacher", "steps", "timestep", "prediction", "guidance_scale", "scheduler", "resolution_px", "licence")
Url = Annotated[str, Field(pattern=r"^https://\S+$")]


COMMON_STEMS = ("pytorch_lora_weights", "pytorch_model", "diffusion_pytorch_model")  # of files of any model


class Strict(BaseModel):
    """Part of a file of facts: unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)


class SchedulerSettings(Strict):
    class_name: str = Field(alias="class", pattern=r"^\w+Scheduler$")
    settings: dict[str, Any]


class Student(Strict):
    """One student; what each field means is told at the head of students.yaml."""

    title: str
    repository: Annotated[str, Field(pattern=r"^[\w.-]+/[\w.-]+$")]
    weights: Literal["folder", "unet", "transformer", "lora"]
    file: str = ""
    checkpoints: tuple[str, ...] = ()
    pickle: bool = False
    family: Literal["stable_diffusion", "sdxl", "pixart_alpha", "sd3", "flux", "sana", "z_image", "qwen_image"]
    teacher: str
    steps: PositiveInt
    timestep: Annotated[float, Field(ge=0, le=1000)]
    timestep_from: Literal["scheduler", "argument"]
    prediction: Literal["epsilon", "v_prediction", "flow_prediction", "sample", "trigflow"]
    guidance_scale: Annotated[float, Field(ge=0)]
    embedded_guidance: bool = False
    scheduler: SchedulerSettings | None = None
    resolution_px: Annotated[int, Field(multiple_of=64)]
    licence: str
    recognised_by: dict[str, Any] = Field(default_factory=dict)
    note: str = ""
    sources: dict[Literal[FACTS], str]  # type: ignore[valid-type]
    unverified: tuple[Literal[FACTS], ...] = ()  # type: ignore[valid-type]

    @model_validator(mode="after")
    def _every_fact_has_a_source_or_says_that_it_has_none(self) -> Self:
        told = [fact for fact in FACTS if fact != "scheduler" or self.scheduler]
        for fact in told:
            if (fact in self.sources) == (fact in self.unverified):
                raise ValueError(f"{fact} is to be either in sources or in unverified")
        if strange := {*self.sources, *self.unverified} - set(told):
            raise ValueError(f"a source is named for what is not told: {', '.join(sorted(strange))}")
        if self.weights == "lora" and not self.file:
            raise ValueError("a LoRA is one file: name it")
        return self

    @property
    def is_supported(self) -> bool:
        """Whether jdmctl has an adapter for its family."""
        return self.family in FAMILIES

    @property
    def student_time(self) -> float:
        """The timestep as jdmctl's time."""
        return time_of(self.timestep, self.prediction)

    @property
    def called_as(self) -> dict[str, Any]:
        """What a recipe's `model` says of its call: all of its time, and what weights alone do not tell."""
        values: dict[str, Any] = {"student_time": 1.0, "student_timestep": None, "student_prediction": None}
        if self.student_time != 1:
            values["student_timestep"] = round(self.timestep)
        if self.weights != "folder":
            values["student_prediction"] = self.prediction
        return values


def time_of(timestep: float, prediction: str | None) -> float:
    """A scheduler's timestep as jdmctl's time in [0, 1]: row 999 of 1000 noise levels, 1000 of a flow and pi/2 are 1.

    The last are a TrigFlow's angles, whose noise is a share sin / (sin + cos) of its picture and noise.
    """
    if prediction == "trigflow":
        return min(math.sin(timestep) / (math.sin(timestep) + math.cos(timestep)), 1.0)
    return min(timestep / (1000 if prediction == "flow_prediction" else 999), 1.0)


class _Registry(Strict):
    sources: dict[str, Url]
    students: dict[str, Student]

    @model_validator(mode="after")
    def _sources_exist(self) -> Self:
        for name, student in self.students.items():
            if missing := set(student.sources.values()) - set(self.sources):
                raise ValueError(f"{name}: no source is called {', '.join(sorted(missing))}")
        return self


@functools.cache
def registry() -> _Registry:
    """students.yaml, checked."""
    text = files("jdmctl.families").joinpath("students.yaml").read_text(encoding="utf-8")
    return _Registry.model_validate(yaml.safe_load(text))


def students() -> dict[str, Student]:
    """Name -> student, in the file's order."""
    return registry().students


def find_student(name: str) -> tuple[str, Student]:
    """A student by its name here or its repository on the hub. Raises BadInputError."""
    known = students()
    if name in known:
        return name, known[name]
    matches = [(key, one) for key, one in known.items() if one.repository.lower() == name.lower()]
    if len(matches) == 1:
        return matches[0]
    if matches:
        names = ", ".join(key for key, _ in matches)
        raise BadInputError(f"{name} holds several students", hint=f"name one of them: {names}")
    close = difflib.get_close_matches(name, [*known, *(one.repository for one in known.values())], n=1, cutoff=0.5)
    raise BadInputError(
        f"no student is known as '{name}'",
        hint=f"did you mean '{close[0]}'?" if close else "jdmctl students   lists those that are",
    )


def student_at(address: str) -> Student | None:
    """The student that a hub repository or a file in one is, as recipes name them; None if none is known."""

    def addresses(one: Student) -> list[str]:
        return [one.repository, *(f"{one.repository}/{file}" for file in (one.file, *one.checkpoints))]

    return next((one for one in students().values() if address in addresses(one)), None)


def student_of_file(place: Path) -> tuple[str, str]:
    """The name of the student that a file, or a backbone's folder, is called like, and how that shows; '' if none."""
    for name, one in students().items():
        if _is_its_file(place, one):
            return name, f"the file's name is {one.repository}'s"
        if _is_its_place(place, name, one):
            return name, f"it lies where {one.repository} has it"
    return "", ""


def is_called(text: str, student: Student) -> bool:
    """A hub name, a folder of the hub's cache (models--owner--name), or one with the repository's last name."""
    owner, _, name = student.repository.lower().partition("/")
    parts = Path(text.lower()).parts
    return f"models--{owner}--{name}" in parts or (bool(parts) and parts[-1] == name)


def _is_its_file(file: Path, student: Student) -> bool:
    """By a name that no other has; a pickle that was saved again as safetensors keeps its stem."""
    own = Path(student.file)
    same = file.stem == own.stem if student.pickle else file.name in (own.name, *student.checkpoints)
    return same and file.stem not in COMMON_STEMS


def _is_its_place(path: Path, name: str, student: Student) -> bool:
    """A file of a common name, or its folder, within a folder called like the student or its repository."""
    own = Path(student.file)
    if own.stem not in COMMON_STEMS:
        return False
    inner = own.with_suffix("").parts
    file = path / own.stem if path.is_dir() else path.with_suffix("")
    if file.parts[-len(inner) :] != inner:
        return False
    home = file.parents[len(inner) - 1]
    return home.name.lower() == name or is_called(str(home), student)


def source(student: Student, fact: str) -> str:
    """The address behind a fact; '' where no stored source confirmed it."""
    key = student.sources.get(fact)
    return registry().sources[key] if key else ""
