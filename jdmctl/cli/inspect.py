"""`jdmctl inspect`: what a folder or file is, and how jdmctl would call it."""

from __future__ import annotations

from typing import Annotated

import typer

from jdmctl.cli.options import JsonOption
from jdmctl.cli.output import Output, mode


def inspect(
    model: Annotated[str, typer.Argument(metavar="FOLDER_OR_FILE", help="Pipeline, hub name, or safetensors file.")],
    teacher: Annotated[str, typer.Option(help="See whether this teacher goes with it.")] = "",
    as_json: JsonOption = False,
) -> None:
    """Tell the family and known student that something is, and the contract of its one call.

    Reads configurations and headers, no weights. A combination that cannot work is refused and the right one named.
    """
    from jdmctl.build import resolve
    from jdmctl.families import FAMILIES
    from jdmctl.families.contract import call_of, require_pair
    from jdmctl.families.identify import identify, identify_pair
    from jdmctl.families.students import students
    from jdmctl.tinyworld.world import is_of_world

    source = resolve(model, "student")
    found, goal = identify_pair(source, resolve(teacher, "teacher")) if teacher else (identify(source), None)
    contract = call_of(found)
    if goal:
        found = require_pair(found, goal)
    known = students().get(found.student)
    adapter = "" if found.family in FAMILIES else ", for which jdmctl has no adapter yet"
    record = {
        "model": model,
        "kind": found.kind,
        "family": found.family,
        "families": found.families,
        "family_evidence": found.evidence,
        "adapter": found.family in FAMILIES,
        "student": found.student,
        "student_evidence": found.student_evidence,
        "contract": {name: {"value": told.value, "where": told.where} for name, told in contract.items()},
        "teacher": teacher or (known.teacher if known else ""),
        "made_from": found.facts.get("made_from", ""),
    }
    families = " or ".join(found.families)
    lines = [f"{model}: a {found.kind} of the family {families}{adapter} ({found.evidence})"]
    if found.also:
        lines.append(f"{families}: its files do not tell which; --teacher, the model that it goes on, does")
    if known:
        lines.append(f"student: {found.student}, {known.title} ({found.student_evidence})")
        lines.append(f"teacher: {known.teacher}; licence: {known.licence}")
    else:
        lines.append("student: none that is known by its files; a teacher, or see jdmctl students")
    if origin := found.facts.get("made_from"):
        lines.append(f"made from: {origin}{', of the embedded world' if is_of_world(str(origin)) else ''}")
    for name, told in contract.items():
        lines.append(f"{name.replace('_', ' ')}: {'?' if told.value is None else told.value}  [{told.where}]")
    if known:
        called = {"family": found.family, **{key: value for key, value in known.called_as.items() if value is not None}}
        lines.append("in a recipe: " + ", ".join(f"model.{key} {value}" for key, value in called.items()))
    Output(mode(as_json)).result(record, "\n".join(lines))
