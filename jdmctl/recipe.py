"""What a recipe may say: the schema. Reading and writing recipe files is in recipe_files; objects are made in build.

A recipe is a YAML file of plain values: short names and paths, never import paths, code or other files. Where a path is
expected, `tiny/...` means a folder of the embedded world and `tiny` its folder for that role.
"""

from __future__ import annotations

from difflib import get_close_matches
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    ValidationInfo,
    field_validator,
    model_validator,
)

from jdmctl.controls.base import control_names
from jdmctl.errors import JdmError
from jdmctl.families import FAMILIES

METHODS = ("jdm", "nct", "dsm", "dmd-control", "implicit", "redistill", "distill")
AWARE_TEACHERS = ("dmd-control", "implicit", "redistill")  # methods whose teacher has control branches
NEW_STUDENTS = ("redistill", "distill")  # methods that make one from the teacher
SCORE_DIVERGENCES = ("sim", "sid")
_DEFAULT_DIVERGENCE = "reverse-kl"

Fraction = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=0)]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


class Model(Section):
    """The frozen teacher and the one-step student."""

    family: Literal[tuple(FAMILIES)] = "stable_diffusion"  # type: ignore[valid-type]
    teacher: str = Field(description="diffusers pipeline: a folder, a hub name, or tiny")
    student: str = Field(description="one-step pipeline made from that teacher: likewise; none to distill")
    student_time: Fraction = Field(1.0, description="time of the student's one call; 1 is pure noise (timestep 999)")


def _known_control(name: str) -> str:
    known = control_names()
    if name not in known:
        close = get_close_matches(name, known, n=1)
        advice = f"did you mean '{close[0]}'?" if close else f"there are {', '.join(known)}"
        raise ValueError(f"no control named '{name}', {advice}")
    return name


class Control(Section):
    name: Annotated[str, AfterValidator(_known_control)]
    ratio: NonNegativeFloat = Field(1.0, description="|lambda grad energy| / |grad fidelity| once calibrated")
    init: str = Field("student", description="the branch starts as student, dsm, or a ControlNet")
    ramp_steps: Count = Field(
        default_factory=lambda given: 50 if given.get("init") == "student" else 0,
        description="steps over which lambda grows from 0; only a branch that starts blind needs it",
    )
    teacher_branch: str = Field("", description="ControlNet on the teacher, for methods whose teacher sees the control")
    options: dict[str, Any] = Field(default_factory=dict, description="of the control itself")


def _known_divergence(name: str) -> str:
    if name not in SCORE_DIVERGENCES:
        from jdmctl.objectives.divergence import load_divergence  # loads torch, which listing recipes must not

        try:
            return load_divergence(name).name
        except JdmError as problem:
            raise ValueError(f"{problem}; {problem.hint}") from problem
    return name


class Objective(Section):
    divergence: Annotated[str, AfterValidator(_known_divergence)] = Field(
        _DEFAULT_DIVERGENCE, description="between teacher and student: jdmctl divergences lists them"
    )
    gan_weight: NonNegativeFloat = Field(
        0.0, description="of a critic's verdict, beside fidelity as a mean over dimensions"
    )
    form: Literal["marginal", "conditional"] = Field("marginal", description="does the fake score see the condition")
    weight: Literal["normalized", "kl"] = "normalized"
    guidance_scale: PositiveFloat = Field(1.0, description="the teacher's classifier-free guidance")
    energy_at: Literal["clean", "denoised"] = "clean"
    implicit_weight: PositiveFloat = Field(1.0, description="lambda of method: implicit")
    balance: Literal["calibrated", "continuous"] = Field(
        "calibrated",
        description="freeze each lambda after warm-up, or keep the ratio of norms (a heuristic)",
    )
    min_time: Fraction = 0.02
    max_time: Fraction = 0.98


class FakeScore(Section):
    trainable: Literal["lora", "full"] = "lora"
    rank: PositiveInt = 16
    updates: PositiveInt = Field(2, description="for each update of the student")
    learning_rate: PositiveFloat = 3e-4
    warmup_min_steps: Count = 60
    warmup_max_steps: Count = 200


class Critic(Section):
    """Learns log teacher/student, for a divergence other than reverse KL and for the GAN term."""

    features: Literal["teacher", "fake_score"] = "teacher"
    positives: Literal["pictures", "teacher"] = Field(
        "pictures", description="of the data, or the teacher's own samples"
    )
    updates: PositiveInt = Field(1, description="for each update of the student")
    learning_rate: PositiveFloat = 1e-3
    r1_weight: NonNegativeFloat = 0.0
    ratio_decay: Fraction = Field(0.9, description="share of the old mean ratio that is kept, by noise level")


class NoiseConsistency(Section):
    """Of `method: nct`."""

    limit: PositiveFloat = Field(0.05, description="how far pictures may be from the student's own at the boundary")
    levels: PositiveInt = 16
    multiplier: PositiveFloat = Field(1.0, description="of the boundary, at the start")


class Training(Section):
    num_steps: PositiveInt = Field(1000, description="updates of the student")
    batch_size: PositiveInt = Field(24, description="samples of one update, over all processes")
    gradient_accumulation_steps: PositiveInt = Field(1, description="pieces that the batch is cut into, for memory")
    learning_rate: PositiveFloat = 1e-4
    lr_schedule: Literal["constant", "linear"] = Field("constant", description="linear falls to 0 over num_steps")
    lr_warmup_steps: Count = 0
    betas: tuple[Fraction, Fraction] = (0.0, 0.95)
    weight_decay: NonNegativeFloat = 0.01
    max_grad_norm: PositiveFloat = 1.0
    ema_decay: Fraction = 0.99
    precision: Literal["fp32", "bf16"] = "fp32"
    student_lora_rank: Count = Field(0, description="also adapt the student's backbone; 0 keeps it frozen")
    dsm_warmup_steps: Count = Field(0, description="denoising score matching of branches with init: dsm")
    dsm_learning_rate: PositiveFloat = 3e-4
    regression_steps: Count = Field(0, description="of a new student towards what its teacher makes of the same noise")
    teacher_steps: PositiveInt = Field(25, description="of the teacher, where its samples are wanted")
    log_every_steps: PositiveInt = 10
    preview_every_steps: PositiveInt = 50
    validate_every_steps: PositiveInt = 50
    save_every_steps: PositiveInt = 100


class Data(Section):
    source: Literal["tiny", "images", "conditions", "prompts"]
    path: str = Field("", description="of the images, condition maps or text file; tiny needs none")
    num_samples: Count = Field(0, description="use the first so many; 0 means all there are")
    prompt_dropout: Fraction = Field(0.1, description="share of prompts that are emptied")
    num_validation_samples: PositiveInt = 64

    @model_validator(mode="after")
    def _has_path(self) -> Self:
        if self.source != "tiny" and not self.path:
            raise ValueError(f"source '{self.source}' needs data.path")
        return self


class Recipe(Section):
    """One run of `jdmctl add-control` or `jdmctl distill`, completely."""

    name: str = Field(pattern=r"^[\w.-]+$")
    seed: Count = 0
    method: Literal[METHODS] = Field(  # type: ignore[valid-type]
        "jdm",
        description="JDM; Noise Consistency Training; an ordinary ControlNet on the teacher; distribution matching "
        "with a teacher that has such a ControlNet; JDM whose energy is what that ControlNet knows; a new student "
        "distilled from a teacher that has it; or from a teacher alone",
    )
    model: Model
    controls: tuple[Control, ...] = Field((), validate_default=True)
    objective: Objective = Objective()
    fake_score: FakeScore = FakeScore()
    critic: Critic = Critic()
    nct: NoiseConsistency = NoiseConsistency()
    training: Training = Training()
    data: Data

    @model_validator(mode="before")
    @classmethod
    def _needs_no_student(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("method") in NEW_STUDENTS and isinstance(values.get("model"), dict):
            values = {**values, "model": {"student": "", **values["model"]}}
        return values

    @field_validator("controls")
    @classmethod
    def _as_many_as_the_method_takes(cls, controls: tuple[Control, ...], info: ValidationInfo) -> tuple[Control, ...]:
        if info.data.get("method") == "distill" and controls:
            raise ValueError("method: distill makes a student without controls")
        if info.data.get("method") not in ("distill", None) and not controls:
            raise ValueError("name at least one")
        return controls

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.method in ("nct", "dsm") and (self.needs_critic or self.objective.divergence != _DEFAULT_DIVERGENCE):
            raise ValueError(f"method: {self.method} matches no distributions: leave out divergence and gan_weight")
        if self.objective.divergence in SCORE_DIVERGENCES and self.objective.gan_weight:
            raise ValueError("a score divergence (sim, sid) and gan_weight do not go together")
        if self.needs_critic and self.critic.positives == "pictures" and self.data.source in ("prompts", "conditions"):
            raise ValueError(
                f"a critic needs true samples, and data.source {self.data.source} has none:"
                " set critic.positives: teacher"
            )
        if self.training.regression_steps and self.method != "distill":
            raise ValueError("training.regression_steps is for method: distill")
        names = [control.name for control in self.controls]
        if len(names) != len(set(names)):
            raise ValueError("controls: the same control is named twice")
        pieces = self.training.gradient_accumulation_steps
        if self.training.batch_size % pieces:
            raise ValueError(
                f"training.batch_size {self.training.batch_size} is not a multiple of "
                f"gradient_accumulation_steps {pieces}"
            )
        if self.training.lr_warmup_steps >= self.training.num_steps:
            raise ValueError("training.lr_warmup_steps must be less than num_steps")
        wants_dsm = any(control.init == "dsm" for control in self.controls)
        if wants_dsm != (self.training.dsm_warmup_steps > 0):
            raise ValueError("init: dsm and training.dsm_warmup_steps > 0 go together")
        if (wants_dsm or self.method == "dsm") and self.data.source == "conditions":
            raise ValueError("denoising score matching needs pictures, and data.source conditions has none")
        if self.method == "dsm" and wants_dsm:
            raise ValueError("method: dsm trains the branch by it throughout: leave out init: dsm")
        if self.method in AWARE_TEACHERS and not all(control.teacher_branch for control in self.controls):
            raise ValueError(f"method: {self.method} needs each control's teacher_branch, a ControlNet on the teacher")
        if self.method == "redistill" and self.data.source == "prompts":
            raise ValueError("method: redistill has no one-step student yet, so data.source prompts draws no pictures")
        if self.method in ("nct", "dsm") and self.training.student_lora_rank:
            raise ValueError(f"method: {self.method} trains control branches alone: student_lora_rank must be 0")
        if self.method == "redistill" and (self.training.student_lora_rank or wants_dsm):
            raise ValueError(
                "method: redistill trains all of a new student, branches from teacher_branch: leave out "
                "student_lora_rank and init: dsm"
            )
        return self

    @property
    def matches_distributions(self) -> bool:
        """Whether a fake score follows the student."""
        return self.method not in ("nct", "dsm")

    @property
    def needs_critic(self) -> bool:
        """Whether a ratio critic is trained."""
        name = self.objective.divergence
        if name in (_DEFAULT_DIVERGENCE, *SCORE_DIVERGENCES):
            return self.objective.gan_weight > 0
        from jdmctl.objectives.divergence import load_divergence

        return load_divergence(name).needs_ratio or self.objective.gan_weight > 0

    @property
    def needs_teacher_samples(self) -> bool:
        return self.training.regression_steps > 0 or (self.needs_critic and self.critic.positives == "teacher")

    @property
    def branch_folders(self) -> dict[str, str]:
        """Control -> its branch within the run folder: controlnet, or controlnet-canny and so on if several."""
        names = [control.name for control in self.controls]
        return {name: "controlnet" if len(names) == 1 else f"controlnet-{name}" for name in names}

    @property
    def student_folder(self) -> str:
        """What a run leaves of the student itself: a new one, its LoRA, or nothing where it stays frozen."""
        if self.method in NEW_STUDENTS:
            return "student"
        return "student_lora" if self.training.student_lora_rank else ""
