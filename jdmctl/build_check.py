"""What a run would refuse of a recipe's models, options and data, looked for before anything is loaded."""

from __future__ import annotations

from pathlib import Path

from jdmctl.build import resolve
from jdmctl.build_data import read_options
from jdmctl.controls.base import check_control_options, load_control
from jdmctl.data.conditionfolder import ConditionFolder
from jdmctl.data.formats import PLAIN, open_rows, require_options, require_there
from jdmctl.data.prompts import PromptList
from jdmctl.errors import BadInputError
from jdmctl.families import FAMILIES
from jdmctl.families.contract import contradiction
from jdmctl.families.identify import Found, identify_here
from jdmctl.families.published import find_published
from jdmctl.families.students import source, students, time_of
from jdmctl.recipe import Recipe
from jdmctl.recipe_sections import Model
from jdmctl.rewards.base import check_reward_options


def check_model(model: Model) -> list[str]:
    """How a known student is called otherwise than students.yaml has it, a line each; a user may know better.

    Nothing is fetched, and a model that is not here is known by its address alone.

    Raises BadInputError if student or teacher is known to be of another family, and names the right one.
    """
    if model.family not in FAMILIES:
        return []
    found = identify_here(resolve(model.student, "student")) if model.student else None
    known = students().get(found.student) if found else None
    if known and known.family != model.family:
        raise BadInputError(
            f"the student {model.student} is {known.title}, of the family {known.family}, not of {model.family}",
            hint=f"--set model.family={known.family} and its own teacher, {known.teacher}; or another student",
        )
    teacher = None if Path(model.teacher).exists() else find_published(model.teacher)
    if teacher and teacher.family != model.family:
        raise BadInputError(
            f"the teacher {model.teacher} is of the family {teacher.family}, not of {model.family}",
            hint=f"give its own teacher, {known.teacher}" if known else f"--set model.family={teacher.family}",
        )
    return _otherwise(model, found) if found and known else []


def _otherwise(model: Model, found: Found) -> list[str]:
    known, said = students()[found.student], model.student_prediction
    own = "flow_prediction" if known.prediction == "trigflow" else known.prediction  # as its network sees it
    told = model.student_timestep
    time = model.student_time if told is None else time_of(told, own)
    lines = []
    if abs(time - known.student_time) > 1e-3:
        where = source(known, "timestep") or "students.yaml, unverified"
        lines.append(
            f"{model.student} is called at time {time:.3f}, and {known.title} was made for {known.student_time:.3f}, "
            f"timestep {known.timestep:g} ({where})"
        )
    if said not in (None, own) or (said is None and own == "sample" and known.weights != "folder"):
        where = source(known, "prediction") or "students.yaml, unverified"
        lines.append(
            f"{model.student} is taken to predict {said or 'what its teacher does'}, and {known.title} predicts {own} "
            f"({where})"
        )
    if said is None and (problem := contradiction(found)):
        lines.append(problem)
    return lines


def check_options(recipe: Recipe) -> None:
    """Raises JdmError for a control or reward that lacks an option; what needs no network is made, on trial."""
    for control in recipe.controls:
        check_control_options(control.name, control.options, is_whole=True)
        if control.options and not any(isinstance(value, str) for value in control.options.values()):
            load_control(control.name, **control.options)
    for section, rewards in (("rewards", recipe.rewards), ("heldout_rewards", recipe.heldout_rewards)):
        for reward in rewards:
            check_reward_options(reward.name, reward.options, is_whole=True, place=f"{section}.{reward.called}")


def check_data(recipe: Recipe) -> None:
    """Look at what a recipe would read from this machine; no picture is opened and nothing is fetched.

    Raises JdmError as `build_samples` does, as far as lists of rows tell.
    """
    data = recipe.data
    if data.source == "tiny" or (data.source == "prompts" and data.path == "tiny" and recipe.method != "distill"):
        return
    if data.source == "prompts":
        PromptList(data.path)
        return
    name = require_there(data.path, data.format)
    if name == "maps" and data.source == "conditions":
        require_options(name, read_options(data))
        ConditionFolder(data.path, [control.name for control in recipe.controls], resolution_px=1)
    elif name in PLAIN:
        open_rows(data.path, read_options(data), name)
