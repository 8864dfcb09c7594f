"""What a recipe may say: the schema. Reading and writing recipe files is in recipe_files; objects are made in build.

A recipe is a YAML file of plain values: short names and paths, never import paths, code or other files. Where a path is
expected, `tiny/...` means a folder of the embedded world and `tiny` its folder for that role.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, Self

from pydantic import Field, ValidationInfo, field_validator, model_validator

from jdmctl.recipe_kinds import DEFAULT_DIVERGENCE, SCORE_DIVERGENCES, Seed
from jdmctl.recipe_sections import (
    Control,
    Critic,
    Data,
    FakeScore,
    HeldOutReward,
    Memory,
    Model,
    NoiseConsistency,
    Objective,
    Reward,
    Section,
    Student,
    Training,
)

METHODS = ("jdm", "nct", "dsm", "dmd-control", "implicit", "redistill", "distill")
AWARE_TEACHERS = ("dmd-control", "implicit", "redistill")  # methods whose teacher has control branches
NEW_STUDENTS = ("redistill", "distill")  # methods that make one from the teacher


class Recipe(Section):
    """One run of `jdmctl add-control`, `jdmctl align` or `jdmctl distill`, completely."""

    name: str = Field(pattern=r"^[\w.-]+$")
    seed: Seed = 0
    method: Literal[METHODS] = Field(  # type: ignore[valid-type]
        "jdm",
        description="JDM; Noise Consistency Training; an ordinary ControlNet on the teacher; distribution matching "
        "with a teacher that has such a ControlNet; JDM whose energy is what that ControlNet knows; a new student "
        "distilled from a teacher that has it; or from a teacher alone",
    )
    model: Model
    student: Student = Student()
    rewards: tuple[Reward, ...] = ()
    heldout_rewards: tuple[HeldOutReward, ...] = ()
    controls: tuple[Control, ...] = Field((), validate_default=True)
    objective: Objective = Objective()
    fake_score: FakeScore = FakeScore()
    critic: Critic = Critic()
    nct: NoiseConsistency = NoiseConsistency()
    training: Training = Training()
    memory: Memory = Memory()
    data: Data

    @model_validator(mode="before")
    @classmethod
    def _defaults_by_purpose(cls, values: Any) -> Any:
        """A new student has none before it; one that is to please is trained itself, by a LoRA if nothing is said."""
        if not isinstance(values, dict):
            return values
        if values.get("method") in NEW_STUDENTS and isinstance(values.get("model"), dict):
            values = {**values, "model": {"student": "", **values["model"]}}
        if values.get("rewards") and isinstance(values.get("student", {}), dict):
            values = {**values, "student": {"trainable": "lora", **values.get("student", {})}}
        return values

    @field_validator("controls")
    @classmethod
    def _as_many_as_the_method_takes(cls, controls: tuple[Control, ...], info: ValidationInfo) -> tuple[Control, ...]:
        if info.data.get("method") == "distill" and controls:
            raise ValueError("method: distill makes a student without controls")
        adapts = info.data.get("method") == "jdm" and "student" in info.data and (
            info.data["student"].trainable != "frozen" or info.data.get("rewards")
        )  # fmt: skip
        if info.data.get("method") not in ("distill", None) and not (controls or adapts):
            raise ValueError("name at least one, or a reward, or train the student itself (student.trainable)")
        return controls

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        """Raises ValueError with all that contradicts itself, a line each."""
        problems = [
            *self._misfits_of_method(), *self._misfits_of_critic(), *self._misfits_of_rewards(),
            *self._misfits_of_training(), *self._misfits_of_memory(),
        ]  # fmt: skip
        if problems:
            raise ValueError("\n".join(problems))
        return self

    def _misfits_of_method(self) -> Iterator[str]:
        if not self.matches_distributions and (self.needs_critic or self.objective.divergence != DEFAULT_DIVERGENCE):
            yield f"method: {self.method} matches no distributions: leave out divergence and gan_weight"
        if not self.matches_distributions and self.student.trainable != "frozen" and not self.rewards:
            yield f"method: {self.method} trains control branches alone: leave out student.trainable"
        if self.training.regression_steps and self.method != "distill":
            yield "training.regression_steps is for method: distill"
        if self.makes_student and self.model.student_prediction:
            yield f"method: {self.method} makes a student like its teacher: leave out student_prediction"
        if self.method in AWARE_TEACHERS and not all(control.teacher_branch for control in self.controls):
            yield f"method: {self.method} needs each control's teacher_branch, a ControlNet on the teacher"
        if self.method == "redistill":
            yield from self._misfits_of_redistilling()

    def _misfits_of_redistilling(self) -> Iterator[str]:
        if self.data.source == "prompts":
            yield "method: redistill has no one-step student yet, so data.source prompts draws no pictures"
        if self.student.trainable == "lora" and not self.rewards:
            yield "method: redistill trains all of a new student: leave out student.trainable"
        if any(control.branch != "controlnet" for control in self.controls):
            yield "method: redistill takes its branches from teacher_branch: leave out branch"

    def _misfits_of_critic(self) -> Iterator[str]:
        is_distance = self.objective.divergence in SCORE_DIVERGENCES
        if is_distance and self.objective.gan_weight:
            yield "a score divergence (sim, sid) and gan_weight do not go together"
        if is_distance and self.objective.guidance == "decoupled":
            yield "a score divergence (sim, sid) takes coupled guidance only"
        if self.objective.ratio == "learned":
            yield from self._misfits_of_learned_ratio()
        elif self.needs_critic and self.critic.positives == "pictures" and not self.data.has_pictures:
            yield (
                f"a critic needs true samples, and data.source {self.data.source} has none:"
                " set critic.positives: teacher, or data.format if pictures lie beside the conditions"
            )

    def _misfits_of_learned_ratio(self) -> Iterator[str]:
        if not self.needs_critic:
            yield "objective.ratio: learned is for a divergence that needs a ratio (jdmctl divergences), or a GAN term"
        if not self.controls:
            yield "objective.ratio: learned compares pictures with their conditions: name a control"
        if self.rewards:
            yield "objective.ratio: learned has no true samples of a reward: leave it out"
        if self.critic.positives == "teacher" or not self.data.has_pictures:
            yield (
                "objective.ratio: learned needs pictures that conditions were made from: critic.positives: pictures, "
                "and data that has them"
            )

    def _misfits_of_rewards(self) -> Iterator[str]:
        names = [control.name for control in self.controls]
        if len(names) != len(set(names)):
            yield "controls: the same control is named twice"
        for where, rewards in (("rewards", self.rewards), ("heldout_rewards", self.heldout_rewards)):
            called = [reward.called for reward in rewards]
            if len(called) != len(set(called)):
                yield f"{where}: the same reward is named twice: give one of them a label"
        if both := {reward.called for reward in self.rewards} & set(names):
            yield f"a reward and a control are both called {min(both)}: give the reward another label"
        if self.rewards and self.method != "jdm":
            yield f"method: {self.method} takes no rewards"
        if self.rewards and self.student.trainable == "frozen" and not self.controls:
            yield "rewards are for a student that is trained: student.trainable is lora or full"
        if self.heldout_rewards and not self.rewards:
            yield "heldout_rewards watch over rewards, and there are none"
        if not self.objective.fidelity and not self.rewards:
            yield "objective.fidelity: false is for the ablation of rewards, and there are none"
        if not self.objective.fidelity and (self.needs_critic or self.objective.guidance == "decoupled"):
            yield "objective.fidelity: false leaves no room for a divergence, a critic or guidance"

    def _misfits_of_training(self) -> Iterator[str]:
        size, pieces = self.training.batch_size, self.training.gradient_accumulation_steps
        if size % pieces:
            yield f"training.batch_size {size} is not a multiple of gradient_accumulation_steps {pieces}"
        elif pieces > self.most_pieces:
            advice = (
                f"set gradient_accumulation_steps to {self.most_pieces}"
                if self.most_pieces
                else "set training.batch_size to 2 or more"
            )
            yield (
                "a critic that sees conditions gives each picture its neighbour's, and training.batch_size "
                f"{size} in {pieces} pieces leaves it none: {advice}"
            )
        if self.training.lr_warmup_steps >= self.training.num_steps:
            yield "training.lr_warmup_steps must be less than num_steps"
        if self.data.buckets and self.teacher_phases:
            yield "data.buckets and the teacher's own samples, which are squares, do not go together"
        if self.student.l2_to_start and self.student.trainable == "frozen":
            yield "student.l2_to_start holds a student that is trained: set student.trainable"
        yield from self._misfits_of_denoising()

    def _misfits_of_denoising(self) -> Iterator[str]:
        wants_dsm = any(control.init == "dsm" for control in self.controls)
        if self.method == "dsm" and wants_dsm:
            yield "method: dsm trains the branch by it throughout: leave out init: dsm"
        elif self.method == "redistill" and wants_dsm:
            yield "method: redistill takes its branches from teacher_branch: leave out init: dsm"
        elif wants_dsm != (self.training.dsm_warmup_steps > 0):
            inits = ", ".join(f"init of {control.name} is {control.init}" for control in self.controls) or "no control"
            yield (
                f"init: dsm and training.dsm_warmup_steps > 0 go together: {inits}, and the steps are "
                f"{self.training.dsm_warmup_steps}: --set training.dsm_warmup_steps={200 if wants_dsm else 0}"
            )
        if (wants_dsm or self.method == "dsm") and self.data.source == "conditions" and not self.data.has_pictures:
            yield (
                "denoising score matching needs pictures, and data.source conditions has none; if they lie beside the "
                "conditions, say data.format"
            )

    def _misfits_of_memory(self) -> Iterator[str]:
        if self.memory.share_backbone and self.student_folder and not self.makes_lora:
            yield "memory.share_backbone is for a frozen student: leave out student.trainable"
        if self.memory.offload and not self.memory.gradient_checkpointing:
            yield (
                "memory.offload needs memory.gradient_checkpointing: true: without it all that layers fetch on the way "
                "forward stays on the device until the way back"
            )

    @property
    def makes_lora(self) -> bool:
        """Whether a new student is left as a LoRA of its teacher, whose weights it may then be trained on."""
        return self.makes_student and self.student.trainable == "lora"

    @property
    def matches_distributions(self) -> bool:
        """Whether a fake score follows the student."""
        return self.method not in ("nct", "dsm")

    @property
    def makes_student(self) -> bool:
        """Whether it starts as its teacher. Distilling goes on from a student that is given, a redistillation never."""
        return self.method == "redistill" or (self.method == "distill" and not self.model.student)

    @property
    def needs_critic(self) -> bool:
        """Whether a ratio critic is trained."""
        name = self.objective.divergence
        if name in (DEFAULT_DIVERGENCE, *SCORE_DIVERGENCES):
            return self.objective.gan_weight > 0
        from jdmctl.objectives.divergence import load_divergence

        return load_divergence(name).needs_ratio or self.objective.gan_weight > 0

    @property
    def pairs_pictures(self) -> bool:
        """Whether a critic is shown pictures with the conditions of others in their piece of the batch."""
        sees = self.objective.form == "conditional" or self.method in AWARE_TEACHERS
        is_blind = self.critic.positives == "teacher" or self.objective.ratio == "learned" or not self.controls
        return self.needs_critic and sees and not is_blind

    @property
    def most_pieces(self) -> int:
        """That a batch can be cut into; none where a critic pairs its pictures, and there is one."""
        size, least = self.training.batch_size, 2 if self.pairs_pictures else 1
        return max((pieces for pieces in range(1, size // least + 1) if size % pieces == 0), default=0)

    @property
    def teacher_phases(self) -> tuple[str, ...]:
        """Phases that see the teacher's own samples."""
        phases = {
            "regression": self.training.regression_steps > 0,
            "critic": self.needs_critic and self.critic.positives == "teacher",
        }
        return tuple(name for name, sees in phases.items() if sees)

    @property
    def branch_folders(self) -> dict[str, str]:
        """Control -> its branch within the run folder: controlnet, or controlnet-canny and so on if several."""
        names = [control.name for control in self.controls]
        return {name: "controlnet" if len(names) == 1 else f"controlnet-{name}" for name in names}

    @property
    def student_folder(self) -> str:
        """What a run leaves of the student itself: its LoRA, all of it, or nothing where it stays frozen."""
        if self.student.trainable == "lora":
            return "student_lora"
        return "student" if self.method in NEW_STUDENTS or self.student.trainable == "full" else ""

    @property
    def command(self) -> str:
        """Which command runs it."""
        return (
            "distill" if self.method == "distill" else "align" if self.rewards or not self.controls else "add-control"
        )

    @property
    def guidance_weight(self) -> float:
        """Of decoupled guidance beside a teacher without any: at equal times, with weight `kl`, both forms are one."""
        return self.objective.guidance_scale - 1 if self.objective.guidance == "decoupled" else 0.0
