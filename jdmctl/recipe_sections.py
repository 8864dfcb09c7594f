"""The sections of a recipe, each checked by itself; `recipe` puts them together."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from difflib import get_close_matches
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from jdmctl.controls.base import check_control_options, control_names
from jdmctl.data.formats import FORMATS, WITH_CONDITIONS, problem_of_unread
from jdmctl.errors import JdmError
from jdmctl.families.names import family_names
from jdmctl.recipe_kinds import (
    DEFAULT_DIVERGENCE,
    Count,
    Divergence,
    Float,
    Fraction,
    Limit,
    Momentum,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    Share,
)
from jdmctl.rewards.base import check_reward_options, reward_names


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=(), allow_inf_nan=False)


def _one_of(what: str, names: Callable[[], list[str]]) -> AfterValidator:
    def check(name: str) -> str:
        known = names()
        if name not in known:
            close = get_close_matches(name, known, n=1)
            advice = f"did you mean '{close[0]}'?" if close else f"there are {', '.join(known)}"
            raise ValueError(f"no {what} named '{name}', {advice}")
        return name

    return AfterValidator(check)


def _check_options(check: Callable[[str, Mapping[str, Any]], None], name: str, options: Mapping[str, Any]) -> None:
    """Only where there are some, since it loads torch. Raises ValueError."""
    if options:
        try:
            check(name, options)
        except JdmError as problem:
            raise ValueError(f"{problem}; {problem.hint}") from problem


class Model(Section):
    """The frozen teacher and the one-step student."""

    family: Annotated[str, _one_of("family", family_names)] = "stable_diffusion"
    teacher: str = Field(description="diffusers pipeline: a folder, a hub name, or tiny")
    student: str = Field(
        description="made from that teacher (to distill: to go on from, if there is one): likewise, or a backbone's "
        "folder, or a .safetensors file (owner/name/file on the hub) of a LoRA, of a backbone, or of a whole checkpoint"
    )
    student_time: Fraction = Field(1.0, description="time of the student's one call; 1 is pure noise (timestep 999)")
    student_timestep: Count | None = Field(None, description="the same time, as the network is told it (DMD2: 399)")
    student_prediction: Literal["epsilon", "v_prediction", "flow_prediction", "sample"] | None = Field(
        None, description="where the student's files do not say (one-step SDXL-Lightning: sample)"
    )
    resolution_px: PositiveInt | None = Field(
        None, description="side of pictures; else as the student's files or, of one file, `jdmctl students` says"
    )

    @model_validator(mode="after")
    def _one_time(self) -> Self:
        if self.student_timestep is not None and self.student_time != 1:
            raise ValueError("student_time and student_timestep are one thing: give one of them")
        return self


class HeldOutReward(Section):
    """Told while a run trains, and never trained on: what exposes a student that fools its own rewards."""

    name: Annotated[str, _one_of("reward", reward_names)]
    label: str = Field("", description="what to call it, where two have one name")
    options: dict[str, Any] = Field(default_factory=dict, description="of the reward itself")

    @model_validator(mode="after")
    def _takes_its_options(self) -> Self:
        _check_options(check_reward_options, self.name, self.options)
        return self

    @property
    def called(self) -> str:
        """Its own among the energies, curves and scores of a run."""
        return self.label or self.name


class Reward(HeldOutReward):
    """Something people like, as an energy of the picture."""

    ratio: NonNegativeFloat = Field(1.0, description="|lambda grad reward| / |grad fidelity| once calibrated")
    ramp_steps: Count = 0
    threshold: Float | None = Field(None, description="a picture that scores this is good enough")
    crop: Share = Field(1.0, description="share of each side that the reward is shown")


class Control(Section):
    name: Annotated[str, _one_of("control", control_names)]
    ratio: NonNegativeFloat = Field(1.0, description="|lambda grad energy| / |grad fidelity| once calibrated")
    branch: Literal["controlnet", "controlnet_lora", "t2i_adapter"] = Field(
        "controlnet",
        description="or the student's own encoder with LoRA, saved as a ControlNet; or a light T2I-Adapter",
    )
    rank: PositiveInt = Field(16, description="of branch: controlnet_lora")
    init: str = Field("student", description="the branch starts as student, dsm, or a ControlNet")
    ramp_steps: Count = Field(0, description="steps over which lambda grows from 0")
    teacher_branch: str = Field("", description="ControlNet on the teacher, for methods whose teacher sees the control")
    options: dict[str, Any] = Field(default_factory=dict, description="of the control itself")

    @model_validator(mode="after")
    def _starts_as_its_kind(self) -> Self:
        _check_options(check_control_options, self.name, self.options)
        if self.branch != "controlnet" and self.init not in ("student", "dsm"):
            raise ValueError(f"branch: {self.branch} starts new: leave out init: {self.init}")
        return self


class Objective(Section):
    divergence: Divergence = Field(
        DEFAULT_DIVERGENCE, description="between teacher and student: jdmctl divergences lists them"
    )
    ratio: Literal["joint", "fidelity", "learned"] = Field(
        "joint",
        description="what the divergence weighs samples by: teacher and energies against the student; or the teacher "
        "alone, the energies standing beside it unweighed; or what a critic learns of pictures with their conditions",
    )
    gan_weight: NonNegativeFloat = Field(
        0.0, description="of a critic's verdict, beside fidelity as a mean over dimensions"
    )
    gan_max_time: Fraction | None = Field(
        None, description="highest noise level of that verdict, fine drawing shows at low ones; else max_time"
    )
    form: Literal["marginal", "conditional"] = Field("marginal", description="does the fake score see the condition")
    weight: Literal["normalized", "kl"] = "normalized"
    guidance_scale: PositiveFloat = Field(1.0, description="the teacher's classifier-free guidance")
    guidance: Literal["coupled", "decoupled"] = Field(
        "coupled", description="within fidelity, or beside it as an energy of the prompt with times of its own"
    )
    guidance_min_time: Fraction = Field(0.02, description="of decoupled guidance")
    guidance_max_time: Fraction = 0.98
    fidelity: bool = Field(True, description="false is for the ablation: nothing then keeps a student from cheating")
    energy_at: Literal["clean", "denoised"] = "clean"
    implicit_weight: PositiveFloat = Field(2.0, description="lambda of method: implicit; at 1 it is dmd-control")
    balance: Literal["calibrated", "continuous"] = Field(
        "calibrated",
        description="freeze each lambda after warm-up, or keep the ratio of norms (a heuristic)",
    )
    min_time: Fraction = 0.02
    max_time: Fraction = 0.98

    @model_validator(mode="after")
    def _has_levels(self) -> Self:
        if problems := [*self._empty_ranges()]:
            raise ValueError("\n".join(problems))
        return self

    def _empty_ranges(self) -> Iterator[str]:
        for what in ("", "guidance_"):
            low, high = getattr(self, f"{what}min_time"), getattr(self, f"{what}max_time")
            if low >= high:
                yield f"{what}min_time {low:g} is not below {what}max_time {high:g}"
        if self.gan_max_time is not None and self.gan_max_time <= self.min_time:
            yield f"gan_max_time {self.gan_max_time:g} is not above min_time {self.min_time:g}"
        if self.gan_max_time is not None and self.gan_max_time > self.max_time:
            yield f"gan_max_time {self.gan_max_time:g} is above max_time {self.max_time:g}"


class FakeScore(Section):
    trainable: Literal["lora", "full"] = "lora"
    rank: PositiveInt = 16
    updates: PositiveInt = Field(2, description="for each update of the student")
    learning_rate: PositiveFloat = 3e-4
    warmup_min_steps: Count = 60
    warmup_max_steps: Count = Field(200, description="a warm-up ends here, whatever warmup_min_steps says")


class Critic(Section):
    """Learns log teacher/student, for a divergence other than reverse KL and for the GAN term."""

    features: Literal["teacher", "fake_score"] = "teacher"
    positives: Literal["pictures", "teacher"] = Field(
        "pictures", description="of the data, or the teacher's own samples"
    )
    updates: PositiveInt = Field(1, description="for each update of the student")
    learning_rate: PositiveFloat = 1e-3
    r1_weight: NonNegativeFloat = 0.0
    jitter: NonNegativeFloat = Field(
        0.1, description="standard deviation of requests, in [0, 1] of the map, where objective.ratio is learned"
    )
    ratio_decay: Fraction = Field(0.9, description="share of the old mean ratio that is kept, by noise level")


class NoiseConsistency(Section):
    """Of `method: nct`."""

    limit: PositiveFloat = Field(0.05, description="how far pictures may be from the student's own at the boundary")
    levels: PositiveInt = 16
    multiplier: PositiveFloat = Field(1.0, description="of the boundary, at the start")


class Student(Section):
    """What of the student itself is trained; control branches always are."""

    trainable: Literal["frozen", "lora", "full"] = "frozen"
    rank: PositiveInt = Field(16, description="of its LoRA")
    l2_to_start: NonNegativeFloat = Field(0.0, description="weight of the squared distance to what it was at first")


class Training(Section):
    num_steps: PositiveInt = Field(1000, description="updates of the student")
    batch_size: PositiveInt = Field(24, description="samples of one update, over all processes")
    gradient_accumulation_steps: PositiveInt = Field(1, description="pieces that the batch is cut into, for memory")
    learning_rate: PositiveFloat = 1e-4
    lr_schedule: Literal["constant", "linear"] = Field("constant", description="linear falls to 0 over num_steps")
    lr_warmup_steps: Count = 0
    betas: tuple[Momentum, Momentum] = (0.0, 0.95)
    weight_decay: NonNegativeFloat = 0.01
    max_grad_norm: Limit = 1.0
    ema_decay: Fraction = 0.99
    precision: Literal["fp32", "bf16"] = "fp32"
    stop_on_alarm: bool = Field(True, description="end a run with rewards once its alarms do not fall silent")
    dsm_warmup_steps: Count = Field(0, description="denoising score matching of branches with init: dsm")
    dsm_learning_rate: PositiveFloat = 3e-4
    regression_steps: Count = Field(0, description="of a new student towards what its teacher makes of the same noise")
    teacher_steps: PositiveInt = Field(25, description="of the teacher, where its samples are wanted")
    log_every_steps: PositiveInt = 10
    preview_every_steps: PositiveInt = 50
    validate_every_steps: PositiveInt = 50
    save_every_steps: PositiveInt = 100
    tracker: Literal["none", "tensorboard"] = Field("none", description="TensorBoard's files of numbers and previews")


class Memory(Section):
    """What is held how, and where. By default all of it in float32 on the device; `jdmctl plan` counts the bytes."""

    gradient_checkpointing: bool = Field(False, description="compute activations again instead of keeping them")
    average_on_cpu: bool = Field(False, description="keep the moving average in the computer's own memory")
    cache_embeddings: bool = Field(
        False, description="encode prompts once, keep them on disk, text encoders on the CPU"
    )
    cache_latents: bool = Field(
        False, description="encode pictures once, keep their latents on disk, the VAE's encoder off the device"
    )
    share_backbone: bool = Field(
        False, description="a student that is a LoRA, or becomes one, is held as that, on the teacher's own weights"
    )
    offload: bool = Field(
        False, description="frozen backbones' weights in the computer's own memory; layers fetch them"
    )
    frozen_precision: Literal["fp32", "bf16", "fp16"] = Field("fp32", description="backbones that are not trained")
    optimizer: Literal["adamw", "adamw_8bit"] = Field("adamw", description="its moments in float32, or by bitsandbytes")
    decoder: str = Field("", description="AutoencoderTiny by which energies see pictures: a folder or hub name")


class Data(Section):
    source: Literal["tiny", "images", "conditions", "prompts"]
    path: str = Field("", description="of the images, condition maps or text file, or a hub name; tiny needs none")
    format: Literal["", *FORMATS] = Field(  # type: ignore[valid-type]
        "", description="of images and conditions; found by looking if it is not said"
    )
    image_column: str = Field("", description="of tables and shards; found by its usual names if it is not said")
    text_column: str = ""
    split: str = Field("train", description="of a data set on the hub, of parquet files or shards, or of several saved")
    streaming: bool = Field(False, description="fetch the first num_samples of a hub data set or parquet, not all")
    buckets: bool = Field(False, description="keep aspect ratios: each batch has one, of about as many pixels")
    bucket_step_px: PositiveInt = Field(64, description="sides of buckets are multiples of it")
    num_samples: Count = Field(0, description="use the first so many; 0 means all there are")
    prompt_dropout: Fraction = Field(0.1, description="share of prompts that are emptied")
    num_validation_samples: PositiveInt = 64

    @model_validator(mode="after")
    def _has_path(self) -> Self:
        if self.source != "tiny" and not self.path:
            raise ValueError(f"source '{self.source}' needs data.path")
        if problem := problem_of_unread(self.source, self.model_dump(exclude_defaults=True)):
            raise ValueError(problem)
        if self.streaming and not (self.num_samples and self.format in ("", "hub", "parquet")):
            raise ValueError("streaming is for hub and parquet, and needs num_samples: a run comes back to its samples")
        if self.buckets and self.source not in ("images", "conditions"):
            raise ValueError(f"buckets are for pictures, and source '{self.source}' has squares only")
        return self

    @property
    def has_pictures(self) -> bool:
        """Whether there are true pictures, as far as can be said without looking."""
        return self.source in ("tiny", "images") or (self.source == "conditions" and self.format in WITH_CONDITIONS)
