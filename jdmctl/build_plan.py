"""From a recipe to the memory that its run will need, before anything is downloaded or allocated."""

from __future__ import annotations

import functools
import os
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from multiprocessing import active_children, get_context, parent_process
from pathlib import Path
from typing import Any

import torch
from torch import nn

from jdmctl.build import (
    build_controls,
    build_dsm_step,
    build_jdm_step,
    build_nct_step,
)
from jdmctl.build_memory import encode_alone, encoder_may_rest
from jdmctl.build_quality import drawn_at_once
from jdmctl.build_skeletons import is_like_teacher, prepared_roles, skeletons
from jdmctl.controls.base import Control
from jdmctl.errors import JdmError, MissingWeightsError
from jdmctl.families.codec import CachedCodec, QuickCodec
from jdmctl.families.names import family_class
from jdmctl.families.skeleton import without_weights
from jdmctl.families.students import student_at
from jdmctl.recipe import Recipe
from jdmctl.training.memory import Working, average_bytes, held_bytes, optimizer_bytes, play, play_apart, weights_of
from jdmctl.training.steps.regression import RegressionStep
from jdmctl.types import Batch, Phase
from jdmctl.weights import tensor_names

GPU_SIZES = (8, 12, 16, 24, 40, 48, 80)  # GiB
_TRIES = 3
CONTEXT_BYTES = 2**30  # set aside for CUDA's own context and what its allocator cannot use: an assumption


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes by what holds them. `working` is the most that one update of a phase needs beside all the rest."""

    weights: Mapping[str, int]  # by component
    optimizer: int
    average: int
    working: Mapping[str, Working]  # by phase
    notes: tuple[str, ...] = ()

    @property
    def held(self) -> int:
        """All the time, whatever the batch."""
        return sum(self.weights.values()) + self.optimizer + self.average

    @property
    def peak(self) -> int:
        """At the worst moment; while validating, the trained weights are set aside once."""
        aside = {"validation": self.average}
        return self.held + max(one.peak + aside.get(name, 0) for name, one in self.working.items())

    def fits(self, gibibytes: int) -> bool:
        return self.peak + CONTEXT_BYTES <= gibibytes * 2**30


@dataclass(frozen=True)
class Draws:
    """Random numbers that nobody looks at."""

    size: int

    def normal(self, name: str, shape: tuple[int, ...]) -> torch.Tensor:
        return torch.randn((self.size, *shape))

    def uniform(self, name: str) -> torch.Tensor:
        return torch.rand(self.size)


def plan_memory(recipe: Recipe) -> MemoryPlan:
    """What a run of the recipe will hold.

    Networks of controls and rewards are read if they are there; if not, they are left out and a note says so. Played in
    a process of its own: one in which torch 2.13 has played with fake tensors crashes later, now and then.

    Raises JdmError for a model whose configuration is neither in a folder nor known here.
    """
    for _ in range(_TRIES):
        try:
            with ProcessPoolExecutor(1, get_context("spawn"), initializer=_begin) as process:
                try:
                    return process.submit(_played, recipe).result()
                except SystemExit:  # of a SIGTERM to this process alone
                    for child in active_children():
                        child.terminate()
                    raise
        except BrokenProcessPool:
            continue
    raise JdmError(f"torch crashed {_TRIES} times while it played the plan", hint="the same command again")


def _begin() -> None:
    """What torch warns of, and a crash's last words, tell a user nothing. It ends with its parent, killed or not."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    if parent := parent_process():
        parent.join()
        os._exit(1)


def _played(recipe: Recipe) -> MemoryPlan:
    controls, notes = present_controls(recipe)
    if is_like_teacher(recipe) and not student_at(recipe.model.student):
        notes += (f"the student {recipe.model.student} is not here: it is counted as one like its teacher",)
    with skeletons(recipe) as local, without_weights():
        family, said = prepared_roles(local, "cpu")
        notes += said
        encode = encode_alone(family)
        if recipe.memory.cache_latents:
            family.codec = CachedCodec(family.codec, lambda images: torch.randn(len(images), *family.latent_shape))
        phases, made, averaged = _phases(local, family, controls)
        extractors = [value for control in controls.values() for value in vars(control).values()]
        weights = held_bytes(
            {
                "teacher": weights_of(family.teacher.backbone),
                "student": weights_of(family.student.backbone),
                "control branches": weights_of(family.student.branches, family.teacher.branches),
                **{name: weights_of(module) for name, module in made.items()},
                "VAE": weights_of(family.parts.get("vae")),
                "text encoders": [] if recipe.memory.cache_embeddings else weights_of(*family.text_encoders),
                "extractors": weights_of(*(value for value in extractors if isinstance(value, nn.Module))),
            }
        )
        pieces = recipe.training.gradient_accumulation_steps
        is_eight_bit = recipe.memory.optimizer == "adamw_8bit"
        names = [control.name for control in recipe.controls]
        batch = _batch(family, names, recipe.training.batch_size // pieces)
        working = {
            phase.name: play(phase, batch, pieces=min(pieces, 2), autocast=_autocast(recipe)) for phase in phases
        }
        if recipe.memory.cache_latents:
            working["new latents"] = play_apart(functools.partial(_encode_one, encode, batch), batch)
        number = min(recipe.data.num_validation_samples, drawn_at_once(family.resolution_px))
        shown = replace(_batch(family, names, number), images=None, latents=None, latent_noise=None)
        working["validation"] = play_apart(functools.partial(_draw, family, shown), shown)
    return MemoryPlan(
        {name: size for name, size in weights.items() if size},
        optimizer_bytes({phase.name: phase.parameters for phase in phases}, 8 if is_eight_bit else 32),
        0 if recipe.memory.average_on_cpu else average_bytes(averaged),
        working,
        notes,
    )


Switch = tuple[str, Callable[[Recipe], bool]]  # KEY=VALUE for --set, and whether it would change this recipe


def suggestions(recipe: Recipe, load: Callable[[Sequence[str]], Recipe], gibibytes: int) -> Iterator[
    tuple[tuple[str, ...], MemoryPlan]
]:  # fmt: skip
    """Switches of the recipe, one more each time until it fits: what to --set, and the plan with them.

    `load` reads the recipe again with overrides. They come in the order of how little they change what is learned.
    """
    decoder = family_class(recipe.model.family).tiny_decoder
    wanted: list[Switch] = [
        ("memory.gradient_checkpointing=true", lambda r: not r.memory.gradient_checkpointing),
        ("memory.average_on_cpu=true", lambda r: not r.memory.average_on_cpu),
        ("memory.cache_embeddings=true", lambda r: not r.memory.cache_embeddings),
        ("memory.cache_latents=true", lambda r: not r.memory.cache_latents and encoder_may_rest(r)),
        (f"training.gradient_accumulation_steps={recipe.most_pieces}",
         lambda r: r.training.gradient_accumulation_steps < r.most_pieces),
        ("memory.share_backbone=true", lambda r: not r.memory.share_backbone and _may_share(r)),
        ("memory.offload=true", lambda r: not r.memory.offload),
        ("training.precision=bf16", lambda r: r.training.precision != "bf16"),
        ("memory.frozen_precision=bf16", lambda r: r.memory.frozen_precision == "fp32"),
        (f"memory.decoder={decoder}", lambda r: bool(decoder and r.matches_distributions and not r.memory.decoder)),
        ("fake_score.trainable=lora", lambda r: r.matches_distributions and r.fake_score.trainable == "full"),
        ("student.trainable=lora", lambda r: r.student.trainable == "full"),
        ("memory.optimizer=adamw_8bit", lambda r: r.memory.optimizer == "adamw"),
    ]  # fmt: skip
    chosen: list[str] = []
    for switch, changes in wanted:
        if changes(recipe):
            chosen.append(switch)
            plan = plan_memory(load(chosen))
            yield tuple(chosen), plan
            if plan.fits(gibibytes):
                return


def present_controls(recipe: Recipe, device: torch.device | str = "cpu") -> tuple[dict[str, Control], tuple[str, ...]]:
    """Those whose networks, if they need any, are there; and what is said of the others.

    Raises JdmError for one that does not take its options.
    """
    found: dict[str, Control] = {}
    notes = []
    for control in recipe.controls:
        try:
            found |= build_controls(recipe.model_copy(update={"controls": (control,)}), device)
        except MissingWeightsError as problem:
            notes.append(f"the control {control.name} is not counted: {problem}")
    return found, tuple(notes)


def _may_share(recipe: Recipe) -> bool:
    """Whether the student is a LoRA that stays as it is, or becomes one."""
    if recipe.makes_lora:
        return True
    name = recipe.model.student
    if recipe.student_folder or not (known := student_at(name)) and not name.endswith(".safetensors"):
        return False
    if known:
        return known.weights == "lora"
    return Path(name).is_file() and any("lora" in key for key in tensor_names(Path(name)))


def _phases(
    recipe: Recipe, family: Any, controls: Mapping[str, Control]
) -> tuple[list[Phase], Mapping[str, nn.Module | None], Sequence[nn.Parameter]]:
    """All phases that have an optimiser, the networks made for them by name, and what is averaged at the end."""
    phases: list[Phase] = []
    warmup = [control.name for control in recipe.controls if control.init == "dsm"]
    if warmup:
        phases += build_dsm_step(family, warmup).phases
    if recipe.training.regression_steps:
        phases += RegressionStep(family.student, family.student.trainable()).phases
    if recipe.method == "nct":
        nct = build_nct_step(recipe, family, controls)
        return [*phases, *nct.phases], {}, nct.student_parameters
    if recipe.method == "dsm":
        dsm = build_dsm_step(family, list(controls))
        return [*phases, *dsm.phases], {}, dsm.parameters
    step = build_jdm_step(recipe, family, controls)
    step.weights.update(dict.fromkeys(step.weights, 1.0))
    decoder = step.codec.vae if isinstance(step.codec, QuickCodec) else None
    made: dict[str, Any] = {"fake score": step.fake_score, "critic": step.critic, "decoder": decoder}
    return [*phases, *step.phases], made, step.student_parameters


@torch.no_grad()
def _draw(family: Any, batch: Batch) -> torch.Tensor:
    """What is looked at while it trains."""
    noise = batch.draws.normal("student_noise", family.latent_shape)
    return family.codec.decode(family.student.generate(noise, batch.prompt, batch.conditions)).clamp(0, 1)


@torch.no_grad()
def _encode_one(encode: Callable[[torch.Tensor], torch.Tensor], batch: Batch) -> torch.Tensor:
    """A picture whose latent is not kept yet."""
    assert batch.images is not None
    return encode(batch.images[[0]])  # a copy, as the cache makes one


def _batch(family: Any, names: Sequence[str], size: int) -> Batch:
    pixels = family.resolution_px
    texts = ("a",) * size
    return Batch(
        prompt=family.encode_prompt(texts),
        conditions={name: torch.rand(size, 3, pixels, pixels) for name in names},
        draws=Draws(size),
        texts=texts,
        images=torch.rand(size, 3, pixels, pixels),
        latents=torch.randn(size, *family.latent_shape),
        latent_noise=torch.randn(size, *family.latent_shape),
    )


def _autocast(recipe: Recipe) -> Callable[[], AbstractContextManager[Any]]:
    if recipe.training.precision == "bf16":
        return functools.partial(torch.autocast, "cpu", dtype=torch.bfloat16)
    return nullcontext
