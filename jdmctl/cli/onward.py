"""What a finished run left, as that from which another run begins."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any


def start_from(run: Path, values: dict[str, Any]) -> dict[str, Any]:
    """A run's recipe, changed so that rewards are taught to the student and the branches that it left.

    `values` are those of its recipe.yaml. The student itself is trained by a LoRA, unless the recipe that comes of it
    says otherwise.

    Raises:
        JdmError: the run has not finished, or left what cannot be gone on with.
    """
    from jdmctl.cli.studio import finished
    from jdmctl.errors import BadInputError
    from jdmctl.recipe_files import load_recipe

    recipe, values = load_recipe(str(run)), copy.deepcopy(values)
    if recipe.student_folder == "student_lora" and not recipe.makes_lora:
        raise BadInputError(
            f"{run} left its student as a LoRA, from which no other run can begin",
            hint="train it with --set student.trainable=full, or controls and rewards in one run: a recipe with both",
        )
    if kinds := [control.branch for control in recipe.controls if control.branch == "t2i_adapter"]:
        raise BadInputError(
            f"{run} left a {kinds[0]}, from which no other run can begin",
            hint="train controls and rewards in one run: a recipe with both",
        )
    if recipe.student_folder:
        values["model"]["student"] = str(finished(run, recipe, recipe.student_folder))
    for control, given in zip(recipe.controls, values.get("controls", []), strict=True):
        given["init"] = str(finished(run, recipe, recipe.branch_folders[control.name]))
        for key in ("branch", "rank", "ramp_steps"):  # of a branch that starts new
            given.pop(key, None)
    values["name"] = f"{recipe.name}-align"
    values["method"] = "jdm"
    values["training"] = values.get("training", {}) | {"dsm_warmup_steps": 0, "regression_steps": 0}
    values["student"] = {key: value for key, value in values.get("student", {}).items() if key != "trainable"}
    return values
