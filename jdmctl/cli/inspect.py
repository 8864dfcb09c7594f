"""`jdmctl inspect`: what a folder or file is, and how jdmctl would call it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from jdmctl.cli.options import JsonOption
from jdmctl.cli.output import Output, mode
from jdmctl.errors import BadInputError, MissingWeightsError

if TYPE_CHECKING:
    from jdmctl.export.contract import Contract
    from jdmctl.families.contract import Told


def inspect(
    model: Annotated[str, typer.Argument(metavar="FOLDER_OR_FILE", help="Pipeline, hub name, or safetensors file.")],
    teacher: Annotated[str, typer.Option(help="See whether this teacher goes with it.")] = "",
    as_json: JsonOption = False,
) -> None:
    """Tell the family and known student that something is, and the contract of its one call; or what a branch obeys.

    What was exported says it itself. Reads configurations and headers, no weights. A combination that cannot work is
    refused and the right one named.
    """
    from jdmctl.build import resolve
    from jdmctl.families import FAMILIES
    from jdmctl.families.contract import call_of, require_pair
    from jdmctl.families.identify import identify, identify_pair
    from jdmctl.families.students import students
    from jdmctl.tinyworld.world import is_of_world

    source, out = resolve(model, "student"), Output(mode(as_json))
    own = _written(source)
    if own and own.control:
        _tell_branch(model, own, teacher, out)
        return
    found, goal = identify_pair(source, resolve(teacher, "teacher")) if teacher else (identify(source), None)
    contract = dict(call_of(found).items()) | (_told(own) if own else {})
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
        "exported": own.to_dict() if own else None,
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
    if own:
        lines.append(f"exported by jdmctl {own.jdmctl} for {own.student}: {_call(own)}")
    for name, told in contract.items():
        lines.append(f"{name.replace('_', ' ')}: {'?' if told.value is None else told.value}  [{told.where}]")
    if known:
        called = {"family": found.family, **{key: value for key, value in known.called_as.items() if value is not None}}
        lines.append("in a recipe: " + ", ".join(f"model.{key} {value}" for key, value in called.items()))
    out.result(record, "\n".join(lines))


def _written(source: str) -> Contract | None:
    """The contract that an export carries, if there is one. Raises BadInputError if it is not whole."""
    from jdmctl.export.contract import find_contract

    if not Path(source).exists():
        return None
    try:
        return find_contract(source)
    except MissingWeightsError:  # configurations alone are looked at too
        return None


def _told(own: Contract) -> dict[str, Told]:
    """A contract in the words of `call_of`, as far as it says something."""
    from jdmctl.families.contract import Told

    values = {
        "timestep": own.timestep,
        "prediction": own.prediction or None,
        "guidance_scale": own.call.get("guidance_scale"),
        "scheduler": own.scheduler.get("_class_name"),
        "resolution_px": own.resolution_px,
    }
    return {name: Told(value, "the contract that it carries") for name, value in values.items() if value is not None}


def _call(own: Contract) -> str:
    if not own.pipeline:
        return "diffusers has no pipeline for it"
    return f"{own.pipeline}(..., {', '.join(f'{name}={value}' for name, value in own.call.items())})"


def _tell_branch(model: str, own: Contract, teacher: str, out: Output) -> None:
    """Of an exported control branch. Raises BadInputError beside a teacher: it goes on one student."""
    if teacher:
        raise BadInputError(f"{model} is a control branch, which goes on {own.student}", hint="leave out --teacher")
    told = _told(own)
    values: dict[str, Any] = {name: {"value": one.value, "where": one.where} for name, one in told.items()}
    record = {"model": model, "kind": "control branch", "exported": own.to_dict(), "contract": values}
    lines = [
        f"{model}: a control branch for {own.control}, exported by jdmctl {own.jdmctl}",
        f"student: {own.student}; made from: {', '.join(own.made_from)}",
        *([f"loaded beside it: {', '.join(own.beside)}"] if own.beside else []),
        f"condition: {own.control} {own.extractor}" if own.extractor else f"condition: {own.control}",
        f"call: {_call(own)}",
        *(f"{name.replace('_', ' ')}: {one.value}  [{one.where}]" for name, one in told.items()),
    ]
    out.result(record, "\n".join(lines))
