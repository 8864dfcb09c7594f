"""A recipe's teacher and student from configurations alone: known ones, or those of folders."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from jdmctl.build import build_roles, model_at_start, picture_side, prepare_student, resolve
from jdmctl.build_memory import hold_frozen
from jdmctl.errors import MissingWeightsError
from jdmctl.families.folders import read_config
from jdmctl.families.names import family_class
from jdmctl.families.published import find_published, write_json, write_skeleton
from jdmctl.families.students import student_at
from jdmctl.recipe import Recipe

_LORA_RANK = 64  # of published LoRA students


@contextmanager
def skeletons(recipe: Recipe) -> Iterator[Recipe]:
    """The recipe with folders of configurations in place of published models that are not here."""
    with tempfile.TemporaryDirectory() as scratch:
        changes: dict[str, Any] = {"resolution_px": picture_side(model_at_start(recipe))}
        for role in ("teacher", "student"):
            name = getattr(recipe.model, role)
            if role == "student" and is_like_teacher(recipe):
                name = recipe.model.teacher
            model = None if Path(name).exists() else find_published(name)
            changes[role] = str(write_skeleton(model, Path(scratch, role))) if model else name
        known = student_at(recipe.model.student)
        if recipe.memory.share_backbone and known and known.weights == "lora":
            changes["student"] = changes.get("teacher", recipe.model.teacher)
        update: dict[str, Any] = {"model": recipe.model.model_copy(update=changes)}
        decoder = recipe.memory.decoder
        if decoder and not Path(decoder).exists():  # all published ones are alike, but for what they read
            vae = read_config(update["model"].teacher, "vae", "config.json")
            write_json(Path(scratch, "config.json"), {"latent_channels": vae["latent_channels"]})
            update["memory"] = recipe.memory.model_copy(update={"decoder": scratch})
        yield recipe.model_copy(update=update)


def is_like_teacher(recipe: Recipe) -> bool:
    """Of a student that is a file on the hub, or neither there nor here: it gets its teacher's shapes."""
    name = recipe.model.student
    if Path(resolve(name, "student")).exists() or find_published(name):
        return False
    if student_at(name):
        return True
    try:
        read_config(name, None, family_class(recipe.model.family).index_file)
    except MissingWeightsError:
        return True
    return False


def prepared_roles(local: Recipe, device: torch.device | str) -> tuple[Any, tuple[str, ...]]:
    """Teacher and student of `skeletons`, ready to be trained, and what is to be said of them."""
    notes: tuple[str, ...] = ()
    family = build_roles(local, device)
    if local.memory.share_backbone and local.model.student == local.model.teacher:
        family.add_lora(family.student.backbone, _LORA_RANK)
        family.student.backbone.requires_grad_(False)
        hold_frozen(local, family)
        family.to(device)
        notes = (f"the student's LoRA is counted as one of rank {_LORA_RANK} on every layer that can have one",)
    prepare_student(local, family)
    return family, notes
