"""From a recipe to its samples: which pictures, conditions and prompts a run sees, and which are held out."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import torch

from jdmctl.build import resolve_options
from jdmctl.controls.base import Control
from jdmctl.data.aspect import Size, bucket_sizes, buckets_of
from jdmctl.data.conditionfolder import ConditionFolder
from jdmctl.data.formats import find_format, open_rows, require_options
from jdmctl.data.options import ReadOptions
from jdmctl.data.prompts import PromptList
from jdmctl.data.rows import PairedPictures, Pictures, Rows
from jdmctl.errors import RecipeError
from jdmctl.recipe import Recipe
from jdmctl.recipe_sections import Data
from jdmctl.tinyworld.world import cache_folder, samples
from jdmctl.training.batches import Samples
from jdmctl.training.buckets import Buckets
from jdmctl.training.samples import (
    MapSamples,
    PairSamples,
    Part,
    PictureSamples,
    PromptSamples,
    StudentPictures,
    extractor,
    split,
)

_Make = Callable[[int | Callable[[int], Size]], PairSamples | PictureSamples]  # from the size of what it reads


class Split(NamedTuple):
    train: Samples
    validation: Samples  # always squares
    buckets: Buckets | None = None  # of `train`


def build_samples(recipe: Recipe, family: Any, controls: Mapping[str, Control], device: torch.device | str) -> Split:
    """Samples to train on and to validate on; the embedded world has a split for each.

    Raises JdmError for data that is missing, wrong, or without what the method needs.
    """
    data, num = recipe.data, recipe.data.num_validation_samples
    extract = {
        control.name: extractor(
            controls[control.name],
            resolve_options(control.options),
            cache_folder() / "conditions",
            device,
            family.resolution_px,
        )
        for control in recipe.controls
    }
    if data.source == "tiny":
        scenes = samples("train", data.num_samples)
        return Split(PictureSamples(scenes, extract), PictureSamples(samples("val", num), extract))
    if data.source == "prompts":
        if not recipe.controls:  # no picture is needed: what is drawn is compared with what the teacher draws
            return Split(*split(PromptSamples(PromptList(data.path)), data.num_samples, num))
        drawn = _student_pictures(recipe, family, device)
        return Split(*split(PictureSamples(drawn, extract), data.num_samples, num))
    if data.source == "conditions" and (data.format or find_format(data.path)) == "maps":
        if data.buckets:
            raise RecipeError(
                "data.buckets are for pictures, and condition maps alone have none",
                hint="--set data.buckets=false",
            )
        require_options("maps", read_options(data))
        maps = ConditionFolder(data.path, list(controls), family.resolution_px)
        return Split(*split(MapSamples(maps), data.num_samples, num, shown=maps.shown))
    rows = open_rows(data.path, read_options(data), data.format)
    make: _Make = functools.partial(_extracted, rows, extract)
    if data.source == "conditions":
        make = functools.partial(_paired, rows, tuple(controls), data.path)
    train, val = split(make(family.resolution_px), data.num_samples, num, rows.repeats, rows.shown)
    return _in_buckets(data, family, rows, train, val, make) if data.buckets else Split(train, val)


def read_options(data: Data) -> ReadOptions:
    """How a recipe's data is to be read."""
    return ReadOptions(
        cache=cache_folder(),
        image_column=data.image_column,
        text_column=data.text_column,
        split=data.split,
        stream=data.num_samples if data.streaming else 0,
    )


def _paired(rows: Rows, controls: tuple[str, ...], path: str, size: int | Callable[[int], Size]) -> PairSamples:
    return PairSamples(PairedPictures(rows, controls, size, path))


def _extracted(rows: Rows, extract: Mapping[str, Any], size: int | Callable[[int], Size]) -> PictureSamples:
    return PictureSamples(Pictures(rows, size), extract)


def _in_buckets(data: Data, family: Any, rows: Rows, train: Part, val: Part, make: _Make) -> Split:
    if not family.any_aspect:
        raise RecipeError(
            f"family {family.name} does not say that it draws other shapes than its square (any_aspect)",
            hint="--set data.buckets=false",
        )
    step, scale = family.side_step_px, family.pixels_per_latent
    if data.bucket_step_px % step:
        raise RecipeError(
            f"data.bucket_step_px {data.bucket_step_px} is not a multiple of the {step} px of {family.name}",
            hint=f"--set data.bucket_step_px={step * max(1, data.bucket_step_px // step)}",
        )
    sizes = bucket_sizes(family.resolution_px, data.bucket_step_px)
    if not sizes:
        raise RecipeError(
            f"data.bucket_step_px {data.bucket_step_px} is more than the {family.resolution_px} px of a picture",
            hint=f"--set data.bucket_step_px={2 * step}",
        )
    chosen = buckets_of(rows, sizes, sorted(set(train.indices)), cache_folder() / "sizes")
    members: dict[Size, list[int]] = {}
    for place, index in enumerate(train.indices):
        members.setdefault(sizes[chosen[index]], []).append(place)
    channels = family.latent_shape[0]
    buckets = Buckets(
        members=tuple(map(tuple, members.values())),
        latent_shapes=tuple((channels, height // scale, width // scale) for height, width in members),
    )
    return Split(replace(train, whole=make(lambda index: sizes[chosen[index]])), val, buckets)


def _student_pictures(recipe: Recipe, family: Any, device: torch.device | str) -> StudentPictures:
    """Pictures of the student as it is now: a copy, if its backbone is about to be trained."""
    path = recipe.data.path
    prompts = samples("train", recipe.data.num_samples) if path == "tiny" else PromptList(path)
    return StudentPictures(
        texts=[prompts.text(i) for i in range(len(prompts))],
        student=copy.deepcopy(family.student) if recipe.student_folder else family.student,
        codec=family.codec,
        encode_prompt=lambda texts: family.encode_prompt(texts),  # which may come from a cache by then
        latent_shape=family.latent_shape,
        seed=recipe.seed,
        device=device,
    )
