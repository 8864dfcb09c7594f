"""From a recipe to a run that is ready to start: batches, stages, calibration, settings, products."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from jdmctl import recipe as schema
from jdmctl.build import (
    build_controls,
    build_dsm_step,
    build_jdm_step,
    build_nct_step,
    build_roles,
    prepare_student,
)
from jdmctl.build_check import check_options
from jdmctl.build_data import build_samples
from jdmctl.build_memory import cache_latents, cache_prompts
from jdmctl.build_quality import build_approval, build_quality, validation_batches
from jdmctl.controls.base import Control
from jdmctl.errors import RecipeError
from jdmctl.recipe import Recipe
from jdmctl.recipe_files import WORLD_FILE, to_yaml, world_in_use
from jdmctl.tinyworld.world import is_of_world
from jdmctl.training.adamw import AdamW, eight_bit
from jdmctl.training.batches import Batches, Samples
from jdmctl.training.calibration import Balance
from jdmctl.training.energies import RewardEnergy
from jdmctl.training.observer import Measure, Validation
from jdmctl.training.plan import Phases, Rate, Settings, Stage
from jdmctl.training.run import Run
from jdmctl.training.same_data import same_data
from jdmctl.training.state import Stateful
from jdmctl.training.steps.dsm import DSMStep
from jdmctl.training.steps.jdm import JDMStep
from jdmctl.training.steps.regression import RegressionStep
from jdmctl.training.teacher_samples import TeacherSamples, first_wanted
from jdmctl.training.tracking import summary_writer
from jdmctl.training.watch import Watch

_CALIBRATION_BATCHES, _CALIBRATION_SAMPLES = 4, 32  # at least both


def build_run(recipe: Recipe, accelerator: Accelerator) -> Run:
    """All objects of a run.

    Raises JdmError for whatever in the recipe cannot be had: weights, data, options.
    """
    device, training = accelerator.device, recipe.training
    processes, pieces = accelerator.num_processes, training.gradient_accumulation_steps
    if training.batch_size % (processes * pieces):
        raise RecipeError(
            f"training.batch_size {training.batch_size} cannot be shared by {processes} processes "
            f"in {pieces} pieces each",
            hint=f"make it a multiple of {processes * pieces}",
        )
    if recipe.pairs_pictures and training.batch_size == processes * pieces:
        raise RecipeError(
            "a critic that sees conditions gives each picture its neighbour's, and training.batch_size "
            f"{training.batch_size} among {processes} processes in {pieces} pieces each leaves it none",
            hint=f"make it {2 * processes * pieces} or more",
        )
    if recipe.memory.optimizer == "adamw_8bit":
        eight_bit()  # what is not installed is told before anything is loaded
    if training.tracker == "tensorboard":
        summary_writer()
    check_options(recipe)
    controls = build_controls(recipe, device)
    family = build_roles(recipe, device)
    train_samples, val_samples, buckets = build_samples(recipe, family, controls, device)
    prepare_student(recipe, family)
    encode = family.codec.encode  # of pictures that are seen once: nothing is kept
    if recipe.memory.cache_latents:
        cache_latents(family)
    if recipe.memory.cache_embeddings:
        cache_prompts(family, [train_samples, val_samples], device)
    batches = Batches(
        samples=train_samples,
        encode_prompt=family.encode_prompt,
        seed=recipe.seed,
        batch_size=training.batch_size,
        num_pieces=pieces,
        prompt_dropout=recipe.data.prompt_dropout,
        process_index=accelerator.process_index,
        num_processes=processes,
        device=device,
        buckets=buckets,
    )
    if phases := recipe.teacher_phases:
        at_once = training.batch_size // (processes * pieces)
        drawn = _teacher_samples(recipe, family, train_samples, at_once)
        batches = replace(batches, teacher=drawn, teacher_phases=phases)
    warmup = [control.name for control in recipe.controls if control.init == "dsm"]
    stages = [_dsm_warmup(recipe, build_dsm_step(family, warmup))] if warmup else []
    asked = recipe.data.model_dump(mode="json", exclude={"prompt_dropout", "buckets", "bucket_step_px"})
    extra: dict[str, Stateful] = {"data": same_data(asked, train_samples, val_samples)}
    if recipe.training.regression_steps:
        stages.append(_regression(recipe, family))
    if recipe.matches_distributions:
        step = build_jdm_step(recipe, family, controls, lambda values: accelerator.reduce(values, "sum"))
        if step.critic and step.normaliser:
            extra["ratio"] = step.normaliser
        balance = _balance(recipe, step, batches, accelerator)
        stages += _jdm_stages(recipe, step, balance)
        extra["balance"] = balance
    elif recipe.method == "nct":
        nct = build_nct_step(recipe, family, controls)
        stages.append(
            Stage("training", nct, training.num_steps, "step", averaged=nct.student_parameters, rate=_rate(recipe))
        )
    else:
        dsm = build_dsm_step(family, list(controls))
        stages.append(Stage("training", dsm, training.num_steps, "step", averaged=dsm.parameters, rate=_rate(recipe)))
    validation: Measure
    if recipe.rewards:
        adherence = _validation(recipe, family, controls, batches, val_samples) if controls else None
        rewards = {energy.name: energy.reward for energy in step.energies if isinstance(energy, RewardEnergy)}
        validation = build_approval(recipe, family, adherence, rewards, batches, val_samples, encode)
        extra["watch"] = validation.watch
        stages = [_watched(stage, validation.watch) for stage in stages]
    elif controls:
        validation = _validation(recipe, family, controls, batches, val_samples)
    else:
        validation = build_quality(recipe, family, batches, val_samples, encode)
    return Run(
        recipe=to_yaml(recipe),
        stages=stages,
        batches=batches,
        settings=training_settings(recipe),
        validation=validation,
        extra=extra,
        products=_products(recipe, family),
        is_tracked=training.tracker == "tensorboard",
        beside={WORLD_FILE: world_in_use()} if is_of_world(recipe.model.teacher) else {},
    )


def _watched(stage: Stage, watch: Watch) -> Stage:
    """A stage that is held against its own start: a warm-up changes pictures without any reward."""

    def on_start() -> None:
        watch.restart()
        stage.on_start()

    return replace(stage, on_start=on_start)


def _balance(recipe: Recipe, step: JDMStep, batches: Batches, accelerator: Accelerator) -> Balance:
    def measure(at: int) -> dict[str, float]:
        rows = []
        number = 1 if at else max(_CALIBRATION_BATCHES, math.ceil(_CALIBRATION_SAMPLES / batches.batch_size))
        for update, piece in itertools.product(range(at, at + number), range(batches.num_pieces)):
            batch = batches.batch("calibration", update, piece)  # made as for training: in float32
            with accelerator.autocast():
                norms = step.gradient_norms(batch)
            rows.append(torch.tensor(list(norms.values()), device=accelerator.device))
        means = accelerator.reduce(torch.stack(rows).mean(0), "mean")
        return dict(zip(norms, means.tolist(), strict=True))

    named = {energy.name for energy in step.energies}
    terms: dict[str, schema.Control | schema.Reward] = {control.name: control for control in recipe.controls}
    terms |= {reward.called: reward for reward in recipe.rewards}
    weighed = {name: term for name, term in terms.items() if name in named}
    return Balance(
        weights=step.weights,
        ratios={name: term.ratio for name, term in weighed.items()},
        ramp_steps={name: term.ramp_steps for name, term in weighed.items()},
        measure=measure,
        is_continuous=recipe.objective.balance == "continuous",
    )


def _dsm_warmup(recipe: Recipe, step: DSMStep) -> Stage:
    name = "dsm-warmup"
    return Stage(name, step, recipe.training.dsm_warmup_steps, name, averaged=step.parameters)


def _regression(recipe: Recipe, family: Any) -> Stage:
    step = RegressionStep(family.student, family.student.trainable())
    name = "regression"
    return Stage(name, step, recipe.training.regression_steps, name, averaged=step.student_parameters)


def _teacher_samples(recipe: Recipe, family: Any, samples: Samples, at_once: int) -> TeacherSamples:
    def sample(noise: Tensor, texts: Sequence[str]) -> Tensor:
        prompt, scale = family.encode_prompt(texts), recipe.objective.guidance_scale
        return family.multistep(noise, prompt, recipe.training.teacher_steps, scale)

    walks = {"regression": recipe.training.regression_steps * recipe.training.batch_size, "critic": len(samples)}
    in_turn = first_wanted(recipe.seed, len(samples), walks)
    device = next(family.teacher.parameters()).device
    return TeacherSamples(sample, samples.text, in_turn, at_once, family.latent_shape, recipe.seed, device)


def _jdm_stages(recipe: Recipe, step: JDMStep, balance: Balance) -> list[Stage]:
    """Warm-up of the fake score, and beside it of the critic if there is one; calibration and training."""
    training, fake_score = recipe.training, recipe.fake_score
    return [
        Stage(
            "fake-score-warmup",
            Phases(replace(step, fidelity=True), ("critic", "fake_score")),
            fake_score.warmup_max_steps,
            "fake-score-warmup",
            until_level=True,
            min_steps=fake_score.warmup_min_steps,
        ),
        Stage(
            "training",
            step,
            training.num_steps,
            "step",
            averaged=step.student_parameters,
            on_start=balance.calibrate,
            before_step=balance.before_step,
            rate=_rate(recipe),
        ),
    ]


def _rate(recipe: Recipe) -> Rate:
    training = recipe.training
    return Rate(training.num_steps, training.lr_warmup_steps, training.lr_schedule == "linear")


def training_settings(recipe: Recipe) -> Settings:
    training = recipe.training

    def adamw(learning_rate: float) -> AdamW:
        bits = 8 if recipe.memory.optimizer == "adamw_8bit" else 32
        return AdamW(learning_rate, training.betas, training.weight_decay, bits)

    return Settings(
        optimizers={
            "dsm": adamw(training.learning_rate if recipe.method == "dsm" else training.dsm_learning_rate),
            "fake_score": adamw(recipe.fake_score.learning_rate),
            "student": adamw(training.learning_rate),
            "regression": adamw(training.learning_rate),
            "critic": adamw(recipe.critic.learning_rate),
        },
        batch_size=training.batch_size,
        gradient_accumulation_steps=training.gradient_accumulation_steps,
        max_grad_norm=training.max_grad_norm,
        ema_decay=training.ema_decay,
        average_on="cpu" if recipe.memory.average_on_cpu else None,
        log_every_steps=training.log_every_steps,
        save_every_steps=training.save_every_steps,
        validate_every_steps=training.validate_every_steps,
        preview_every_steps=training.preview_every_steps,
        stop_on_alarm=training.stop_on_alarm,
        command=recipe.command,
    )


def _validation(
    recipe: Recipe, family: Any, controls: Mapping[str, Control], batches: Batches, val: Samples
) -> Validation:
    """All validation samples once, whole prompts, the same noise each time."""
    return Validation(
        student=family.student,
        codec=family.codec,
        latent_shape=family.latent_shape,
        controls=controls,
        batches=validation_batches(recipe, family, batches, val),
    )


def _products(recipe: Recipe, family: Any) -> dict[str, Callable[[Path], None]]:
    """Folder within the run -> what writes it."""
    products: dict[str, Callable[[Path], None]] = {
        folder: functools.partial(family.save_control_branch, name) for name, folder in recipe.branch_folders.items()
    }
    if recipe.student_folder:
        is_whole = recipe.student_folder == "student"
        products[recipe.student_folder] = family.save_student if is_whole else family.save_student_lora
    return products
