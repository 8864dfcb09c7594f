"""Tiny random models in place of a recipe's, for a dry run of what is not on this machine."""

from __future__ import annotations

from pathlib import Path

from jdmctl.build import resolve
from jdmctl.families.standins.write import STAND_INS, write_decoder, write_stand_in
from jdmctl.recipe import Recipe
from jdmctl.weights import require_possible


def absent(recipe: Recipe) -> list[str]:
    """Which of a recipe's models are not on this machine as folders or files, and have stand-ins.

    Raises MissingWeightsError for one that is not there and cannot be on the hub either.
    """
    model = recipe.model
    if model.family not in STAND_INS:
        return []
    roles = {"teacher": model.teacher, "student": model.student}
    missing = [path for role, path in roles.items() if path and not Path(resolve(path, role)).exists()]
    for path in missing:
        require_possible(path)
    return missing


def with_stand_ins(recipe: Recipe, folder: Path) -> Recipe:
    """The same recipe on tiny random models of the same formats, which are written into `folder`; so are its LoRAs."""
    model = recipe.model
    teacher, student = write_stand_in(model.family, model.student, folder)
    update = {"teacher": str(teacher), "student": str(student) if model.student else "", "resolution_px": None}
    decoder = str(write_decoder(teacher, folder / "decoder")) if recipe.memory.decoder else ""
    return recipe.model_copy(
        update={
            "model": model.model_copy(update=update),
            "fake_score": recipe.fake_score.model_copy(update={"rank": 2}),
            "memory": recipe.memory.model_copy(update={"decoder": decoder}),
        }
    )
