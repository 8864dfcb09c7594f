"""How a student wants to be called, where each value comes from, and what contradicts it."""

from __future__ import annotations

import inspect
import math
from dataclasses import dataclass
from typing import Any

from jdmctl.errors import BadInputError
from jdmctl.families.identify import Found
from jdmctl.families.students import source, students

_FLOW = ("FlowMatchEulerDiscreteScheduler", "FlowMatchLCMScheduler")

_SHARED = (  # what a student keeps from its teacher
    "unet.cross_attention_dim",
    "transformer.num_attention_heads",
    "vae.latent_channels",
    "scheduler.beta_schedule",
    "scheduler.beta_start",
    "scheduler.beta_end",
)


@dataclass(frozen=True)
class Told:
    """A value and where it comes from."""

    value: Any
    where: str


@dataclass(frozen=True)
class StudentCall:
    timestep: Told
    prediction: Told
    guidance_scale: Told
    scheduler: Told
    resolution_px: Told

    def items(self) -> list[tuple[str, Told]]:
        return [(name, getattr(self, name)) for name in self.__dataclass_fields__]


def call_of(found: Found) -> StudentCall:
    """Of a known student by students.yaml, else by its own files; BadInputError if the two contradict each other."""
    known = students().get(found.student)
    own = _own(found)
    if known is None:
        return own

    def told(fact: str) -> str:
        return source(known, fact) or "students.yaml, unverified"

    scheduler = f"{known.scheduler.class_name} {known.scheduler.settings}" if known.scheduler else "its own pipeline's"
    registered = StudentCall(
        Told(known.timestep, told("timestep")),
        Told(known.prediction, told("prediction")),
        Told(known.guidance_scale, told("guidance_scale")),
        Told(scheduler, told("scheduler")),
        Told(known.resolution_px, told("resolution_px")),
    )
    if problem := contradiction(found):
        settings = known.scheduler.settings if known.scheduler else {}
        raise BadInputError(problem, hint=f"put into scheduler/scheduler_config.json: {settings}")
    return registered


def contradiction(found: Found) -> str:
    """What a known student's own files say of its call otherwise than students.yaml; '' if nothing."""
    known, own = students()[found.student], _own(found)
    problems = []
    if own.prediction.value not in (None, known.prediction):
        problems.append(
            f"its scheduler says that it predicts {own.prediction.value}, {known.title} predicts {known.prediction}"
        )
    wants = known.timestep_from == "scheduler" and own.timestep.value is not None
    if wants and abs(own.timestep.value - known.timestep) > 1e-3:
        problems.append(
            f"its scheduler would call it at timestep {own.timestep.value:g}, {known.title} wants {known.timestep:g}"
        )
    return f"{found.source} contradicts what is known of {found.student}: {'; '.join(problems)}" if problems else ""


def require_pair(student: Found, teacher: Found) -> Found:
    """The student, of its teacher's family where its files may be of several.

    Raises BadInputError, with all that does not fit, unless the two can be trained together.
    """
    student = student.beside(teacher)
    problems = []
    if student.family != teacher.family:
        problems.append(f"families are {' or '.join(student.families)} and {teacher.family}")
    else:
        for key in _SHARED:
            values = student.facts.get(key), teacher.facts.get(key)
            if None not in values and values[0] != values[1]:
                problems.append(f"{key} is {values[0]} and {values[1]}")
    if not problems:
        return student
    known = students().get(student.student)
    right = f"the teacher of {student.student} is {known.teacher}" if known else _base(student)
    raise BadInputError(
        f"student {student.source} and teacher {teacher.source} do not go together: {'; '.join(problems)}",
        hint=right,
    )


def _base(student: Found) -> str:
    bases = sorted({one.teacher for one in students().values() if one.family == student.family})
    return f"give the model that it was made from; teachers of the family {student.family}: {', '.join(bases)}"


def _own(found: Found) -> StudentCall:
    """What a folder's own files say; None where they say nothing."""
    file = "scheduler/scheduler_config.json"
    name = found.facts.get("scheduler._class_name")
    prediction = found.facts.get("scheduler.prediction_type") or ("flow_prediction" if name in _FLOW else None)
    timestep = _first_timestep(found) if name else None
    return StudentCall(
        Told(timestep, f"{name}.set_timesteps(1) with {file}" if name else "not told; give it as model.student_time"),
        Told(prediction, file if prediction else "not told"),
        _guidance(found),
        Told(name, file if name else "not told"),
        Told(*_resolution(found)),
    )


def _guidance(found: Found) -> Told:
    """None is needed, but a network that is told a number gets its pipeline's default."""
    if not found.facts.get("transformer.guidance_embeds"):
        return Told(0, "assumed: a one-step student needs no guidance")
    from jdmctl.families.names import family_class

    pipeline = family_class(found.family).pipeline_class
    default = inspect.signature(pipeline.__call__).parameters["guidance_scale"].default
    return Told(default, f"{pipeline.__name__}'s default, which its network is told")


def _first_timestep(found: Found) -> float | None:
    """The timestep of a one-step call by the folder's own scheduler, None if that comes to no number."""
    import diffusers

    kind = getattr(diffusers, found.facts["scheduler._class_name"], None)
    if kind is None:
        return None
    config = {key.partition(".")[2]: value for key, value in found.facts.items() if key.startswith("scheduler.")}
    config.pop("shift_terminal", None)  # where the last of several steps ends; of a single one it makes 0 / 0
    scheduler = kind.from_config(config)
    extra: dict[str, Any] = {}
    if config.get("use_dynamic_shifting"):
        extra["mu"] = config.get("max_shift", 1.15)
    if config["_class_name"] == "SCMScheduler":
        extra["intermediate_timesteps"] = None
    scheduler.set_timesteps(1, **extra)
    timestep = float(scheduler.timesteps[0])
    return timestep if math.isfinite(timestep) else None


def _resolution(found: Found) -> tuple[int | None, str]:
    """Pixels a side: the backbone's sample_size times what the VAE halves."""
    for role in ("unet", "transformer"):
        size = found.facts.get(f"{role}.sample_size")
        blocks = found.facts.get("vae.block_out_channels") or found.facts.get("vae.encoder_block_out_channels")
        if isinstance(size, int) and blocks:
            return size * 2 ** (len(blocks) - 1), f"{role}/config.json sample_size and vae/config.json"
    return None, "not told"
