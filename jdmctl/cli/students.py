"""`jdmctl students`: known one-step students, and how each wants to be called."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from jdmctl.cli.options import JsonOption
from jdmctl.cli.output import Output, mode

_COLUMNS = ["name", "repository", "weights", "family", "adapter", "steps", "timestep", "prediction", "guidance"]
_COLUMNS += ["unverified"]


def students(
    name: Annotated[str, typer.Argument(metavar="[NAME]", help="One of them, by its name or hub repository.")] = "",
    as_json: JsonOption = False,
) -> None:
    """List the known one-step students, or show one: its contract, its licence and the source of each fact."""
    from jdmctl.families.students import FACTS, find_student, source
    from jdmctl.families.students import students as known

    out = Output(mode(as_json))
    if not name:
        out.table([_row(key, student) for key, student in known().items()], _COLUMNS)
        out.note("jdmctl students NAME   shows one with its sources; adapter: whether jdmctl can train it yet;")
        out.note("unverified: how many of its facts no stored copy of a source confirmed")
        return
    key, student = find_student(name)
    sources = {fact: source(student, fact) for fact in FACTS if source(student, fact)}
    record = student.model_dump(mode="json", by_alias=True, exclude={"sources"}) | {
        "name": key, "adapter": student.is_supported, "student_time": student.student_time, "sources": sources,
    }  # fmt: skip
    lines = [f"{key}: {student.title}", f"weights: {_where(student)}", f"family: {student.family}{_adapter(student)}"]
    for fact in FACTS:
        value = getattr(student, fact)
        if fact == "scheduler":
            value = f"{value.class_name} {value.settings}" if value else "none of diffusers"
        lines.append(f"{fact.replace('_', ' ')}: {value}  [{sources.get(fact) or 'unverified'}]")
    lines.append(f"as model.student_time: {student.student_time:.4g}")
    lines += [f"note: {student.note}"] if student.note else []
    lines += ["its weights are a pickle, never opened: save them as safetensors of that name first"] * student.pickle
    out.result(record, "\n".join(lines))


def _row(key: str, student: Any) -> dict[str, Any]:
    guidance = f"{student.guidance_scale:g}" + " (embedded)" * student.embedded_guidance
    return {
        "name": key,
        "repository": student.repository,
        "weights": student.weights,
        "family": student.family,
        "adapter": "yes" if student.is_supported else "not yet",
        "steps": student.steps,
        "timestep": f"{student.timestep:g}",
        "prediction": student.prediction,
        "guidance": guidance,
        "unverified": f"{len(student.unverified)} of {len(student.unverified) + len(student.sources)}",
    }


def _where(student: Any) -> str:
    return f"{student.repository}{'/' if student.file else ''}{student.file} ({student.weights})"


def _adapter(student: Any) -> str:
    return "" if student.is_supported else " (jdmctl has no adapter for it yet)"
