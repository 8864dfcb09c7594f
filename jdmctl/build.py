"""From a recipe to models, controls and the step; build_data adds its data, build_run puts a whole run together.

These modules are the only place that knows both recipes and objects.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from accelerate.utils import set_seed
from torch import nn

from jdmctl.build_memory import hold_frozen
from jdmctl.controls.base import Control, load_control
from jdmctl.diffusion.timesteps import UniformTimesteps
from jdmctl.families.checkpointing import checkpoint_activations
from jdmctl.families.heads import RatioCritic
from jdmctl.families.identify import lone_file
from jdmctl.families.names import family_class
from jdmctl.families.prompts import repeat
from jdmctl.families.students import student_at, student_of_file, students
from jdmctl.objectives.anchor import Anchor
from jdmctl.objectives.divergence import load_divergence
from jdmctl.objectives.guidance import ControlGuided, Guided, PromptGuidance
from jdmctl.objectives.matching import Matching
from jdmctl.objectives.ratio import RatioNormaliser, SumOverProcesses, alone
from jdmctl.objectives.score_divergence import ScoreDivergence
from jdmctl.recipe import AWARE_TEACHERS, Recipe
from jdmctl.recipe_kinds import SCORE_DIVERGENCES
from jdmctl.recipe_sections import HeldOutReward, Model
from jdmctl.rewards.base import Reward, load_reward
from jdmctl.tinyworld.world import built_form, is_of_world, world_folder
from jdmctl.training.energies import ControlEnergy, RewardEnergy, extract
from jdmctl.training.steps.dsm import DSMStep
from jdmctl.training.steps.jdm import JDMStep
from jdmctl.training.steps.nct import NCTStep
from jdmctl.types import Energy, EnergyWeights, Prompt


def resolve(path: str, role: str) -> str:
    """`tiny/x` is the embedded world's folder x, `tiny` its folder for a role, `tiny/forms/x` one that was built."""
    if not is_of_world(path):
        return path
    rest = path.partition("/")[2] or role
    return str(built_form(rest.removeprefix("forms/")) if rest.startswith("forms/") else world_folder() / rest)


def build_family(model: Model, device: torch.device | str, share_backbone: bool = False) -> Any:
    """The teacher and the student of a recipe, on a device; where no student is named, it is the teacher itself."""
    teacher = resolve(model.teacher, "teacher")
    return family_class(model.family).load(
        teacher=teacher,
        student=resolve(model.student, "student") if model.student else teacher,
        device=device,
        student_time=model.student_time,
        student_timestep=model.student_timestep,
        student_prediction=model.student_prediction,
        share_backbone=share_backbone,
        resolution_px=picture_side(model),
    )


def picture_side(model: Model) -> int | None:
    """In px, of what a recipe draws; None where the files of its models say it.

    A student that is one file has no configuration: one that students.yaml has by its name is as large as it says.
    """
    path = resolve(model.student, "student") if model.student else ""
    file = str(lone_file(Path(path)) or path) if path else ""
    if model.resolution_px or not file.endswith(".safetensors"):
        return model.resolution_px
    known = student_at(path) or students().get(student_of_file(Path(file).absolute())[0])
    return known.resolution_px if known and known.family == model.family else None


def model_at_start(recipe: Recipe) -> Model:
    """What a run starts with: a new student starts as its teacher if nothing is said."""
    return recipe.model.model_copy(update={"student": ""}) if recipe.makes_student else recipe.model


def model_with_student(recipe: Recipe, folder: Path) -> Model:
    """What a run leaves whose whole student lies in a folder: pictures are as large as they were while it trained."""
    side = picture_side(model_at_start(recipe))
    return recipe.model.model_copy(update={"student": str(folder), "resolution_px": side})


def build_roles(recipe: Recipe, device: torch.device | str) -> Any:
    """The teacher and the student that a run starts with; what is held in less than float32 reaches the device so."""
    family = build_family(model_at_start(recipe), "cpu", recipe.memory.share_backbone)
    hold_frozen(recipe, family)
    return family.to(device)


def build_trained(
    recipe: Recipe, run: Path | None, branches: Mapping[str, str | Path], device: torch.device | str = "cpu"
) -> Any:
    """The teacher, and the student that a run leaves (None: as it was before any), with these branches on it."""
    model, own = recipe.model, recipe.student_folder if run else ""
    if run and own == "student":
        model = model_with_student(recipe, run / own)
    return build_student(model, branches, run / own if run and own == "student_lora" else None, device)


def build_student(
    model: Model, branches: Mapping[str, str | Path], lora: Path | None = None, device: torch.device | str = "cpu"
) -> Any:
    """A student ready to draw, with its teacher: control -> ControlNet folder or hub name, and perhaps a LoRA."""
    family = build_family(model, device)
    for name, folder in branches.items():
        family.add_control_branch(name, resolve(str(folder), name)).eval().requires_grad_(False)
    if lora:
        family.load_student_lora(lora)
    return family


def build_controls(recipe: Recipe, device: torch.device | str) -> dict[str, Control]:
    """The controls of a recipe by name, on a device."""
    return {
        control.name: load_control(control.name, **resolve_options(control.options)).to(device)
        for control in recipe.controls
    }


def prepare_student(recipe: Recipe, family: Any) -> None:
    """Give the student its new branches and LoRA, with the same random numbers each time."""
    set_seed(recipe.seed)
    for control in recipe.controls:
        is_new = control.init in ("student", "dsm")
        source = "student" if is_new else resolve(control.init, f"controlnet_{control.name}")
        if recipe.method == "redistill" and is_new:
            source = resolve(control.teacher_branch, f"controlnet_{control.name}")
        kind = (control.branch, control.rank)
        if recipe.method == "dsm":  # an ordinary ControlNet is the teacher's, and lent to the student
            branch = family.add_control_branch(control.name, source, family.teacher, *kind)
            family.student.branches[control.name] = branch
        else:
            family.add_control_branch(control.name, source, family.student, *kind)
        if recipe.method in AWARE_TEACHERS:
            given = resolve(control.teacher_branch, f"controlnet_{control.name}")
            family.add_control_branch(control.name, given, family.teacher).eval().requires_grad_(False)
    if recipe.student.trainable == "lora":
        family.add_student_lora(recipe.student.rank)
    if recipe.student_folder == "student":
        family.student.backbone.train().requires_grad_(True)
    if recipe.memory.gradient_checkpointing:
        for denoiser in (family.teacher, family.student):
            checkpoint_activations(denoiser.backbone, *denoiser.branches.values())
        checkpoint_activations(family.parts.get("vae"))


def count_parameters(recipe: Recipe, device: torch.device | str) -> dict[str, int]:
    """What a run would hold and train, without its data."""
    family = build_roles(recipe, device)
    prepare_student(recipe, family)
    trained = {"student": family.student.trainable(), "fake_score": ()}
    if recipe.matches_distributions:
        step = build_jdm_step(recipe, family, {})
        trained |= {"fake_score": step.fake_score_parameters, "critic": step.critic_parameters}
    return {
        "teacher": sum(p.numel() for p in family.teacher.parameters()),
        "student": sum(p.numel() for p in family.student.parameters()),
    } | {f"trained_in_{role}": sum(p.numel() for p in parameters) for role, parameters in trained.items()}


def build_nct_step(recipe: Recipe, family: Any, controls: Mapping[str, Control]) -> NCTStep:
    """The step of Noise Consistency Training; it makes its conditions itself, with the exact extractors."""
    start = math.log(recipe.nct.multiplier) / NCTStep.multiplier_speed
    return NCTStep(
        student=family.student,
        codec=family.codec,
        extractors={name: functools.partial(extract, control) for name, control in controls.items()},
        latent_shape=family.latent_shape,
        student_parameters=family.student.trainable(),
        log_multiplier=nn.Parameter(torch.tensor(start, device=next(family.student.parameters()).device)),
        limit=recipe.nct.limit,
        num_levels=recipe.nct.levels,
    )


def build_dsm_step(family: Any, names: Sequence[str]) -> DSMStep:
    """Trains branches of the student by plugging them into the teacher, whose own stay what they are."""
    branches = {name: family.student.branches[name] for name in names}
    return DSMStep(
        denoiser=family.teacher_through(branches),
        codec=family.codec,
        schedule=family.schedule,
        timesteps=UniformTimesteps(0.0, 1.0),
        controls=tuple(branches),
        parameters=tuple(p for branch in branches.values() for p in branch.parameters()),
    )


def build_jdm_step(
    recipe: Recipe, family: Any, controls: Mapping[str, Control], sum_over_processes: SumOverProcesses = alone
) -> JDMStep:
    """The JDM step of a recipe, with a fake score and maybe a critic of its own; no energies by an aware teacher."""
    objective, settings, pieces = recipe.objective, recipe.fake_score, recipe.training.gradient_accumulation_steps
    device = next(family.student.parameters()).device
    is_aware = recipe.method in AWARE_TEACHERS
    form = "conditional" if is_aware else objective.form  # a score that is blind never comes near one that sees
    teacher = (
        ControlGuided(family.teacher, objective.implicit_weight) if recipe.method == "implicit" else family.teacher
    )
    seen = {
        control.name: resolve(control.teacher_branch, f"controlnet_{control.name}") if is_aware else "student"
        for control in recipe.controls
        if form == "conditional"
    }
    fake_score = family.make_fake_score(settings.trainable, settings.rank, controls=seen)
    codec = family.quick_codec(recipe.memory.decoder) if recipe.memory.decoder else family.codec
    if recipe.memory.gradient_checkpointing:
        checkpoint_activations(*fake_score.branches.values(), getattr(codec, "vae", None))

    critic = None
    if recipe.needs_critic:
        lender = fake_score if recipe.critic.features == "fake_score" else family.teacher
        shown = controls if objective.ratio == "learned" else seen
        critic = RatioCritic(lender, list(shown)).to(device)
    name = objective.divergence
    is_distance = name in SCORE_DIVERGENCES
    matching = ScoreDivergence(cast(Any, name)) if is_distance else Matching(objective.weight)
    guidance = None
    if recipe.guidance_weight:
        times = UniformTimesteps(objective.guidance_min_time, objective.guidance_max_time)
        guidance = PromptGuidance(recipe.guidance_weight, times, _empty_prompt(family))
    elif objective.guidance == "coupled":
        teacher = Guided(teacher, objective.guidance_scale, _empty_prompt(family))
    anchor = Anchor.here(family.student.trainable(), recipe.student.l2_to_start) if recipe.student.l2_to_start else None
    energies: list[Energy] = [ControlEnergy(control) for control in ([] if is_aware else controls.values())]
    energies += build_rewards(recipe, device)

    return JDMStep(
        student=family.student,
        teacher=teacher,
        fake_score=fake_score,
        codec=codec,
        schedule=family.schedule,
        timesteps=UniformTimesteps(objective.min_time, objective.max_time),
        matching=matching,
        energies=tuple(energies),
        weights=EnergyWeights({energy.name: 0.0 for energy in energies}),
        latent_shape=family.latent_shape,
        student_parameters=family.student.trainable(),
        fake_score_parameters=fake_score.trainable(),
        form=form,
        fake_score_updates=settings.updates,
        energy_at=objective.energy_at,
        teacher_sees_controls=is_aware,
        divergence=None if is_distance else load_divergence(name),
        ratio=objective.ratio,
        jitter=recipe.critic.jitter,
        critic=critic,
        critic_parameters=tuple(critic.parameters()) if critic else (),
        critic_updates=recipe.critic.updates,
        normaliser=RatioNormaliser(
            decay=recipe.critic.ratio_decay, sum_over_processes=sum_over_processes, pieces=pieces
        ),
        gan_weight=objective.gan_weight * math.prod(family.latent_shape),
        gan_timesteps=UniformTimesteps(objective.min_time, top) if (top := objective.gan_max_time) else None,
        r1_weight=recipe.critic.r1_weight,
        guidance=guidance,
        anchor=anchor,
        fidelity=objective.fidelity,
    )


def _empty_prompt(family: Any) -> Callable[[int], Prompt]:
    """Encoded once and here, in float32 as all prompts are: a loss is computed under autocast."""
    return functools.partial(repeat, family.empty_prompt(1))


def build_rewards(recipe: Recipe, device: torch.device | str) -> list[RewardEnergy]:
    """The rewards that a recipe trains on, as energies."""
    return [
        RewardEnergy(build_reward(given, device), given.threshold, given.crop, given.called) for given in recipe.rewards
    ]


def build_reward(given: HeldOutReward, device: torch.device | str) -> Reward:
    """A reward of a recipe, on a device."""
    return load_reward(given.name, **resolve_options(given.options)).to(device)


def resolve_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """A control's options, folders of the embedded world resolved."""
    return {
        key: resolve(value, key) if isinstance(value, str) and value.startswith("tiny/") else value
        for key, value in options.items()
    }
