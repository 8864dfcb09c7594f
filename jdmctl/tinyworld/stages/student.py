"""The one-step student: distilled from the teacher by JDM's own step with no energies (Diff-Instruct / DMD)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from jdmctl.diffusion.timesteps import UniformTimesteps
from jdmctl.families.stable_diffusion import StableDiffusion
from jdmctl.objectives.guidance import Guided
from jdmctl.objectives.matching import Matching
from jdmctl.tinyworld.judge import Judge
from jdmctl.tinyworld.source import Pictures
from jdmctl.tinyworld.workshop import Workshop
from jdmctl.training.adamw import AdamW
from jdmctl.training.atomic import whole_folder
from jdmctl.training.checkpoint import Checkpoints
from jdmctl.training.draws import SampleDraws
from jdmctl.training.loop import fit
from jdmctl.training.plan import Settings, Stage
from jdmctl.training.steps.jdm import JDMStep
from jdmctl.types import Batch, Controls, EnergyWeights

GUIDANCE_SCALES = (1.0, 1.5, 2.0, 3.0)
BATCH_SIZE = 32


def build(shop: Workshop) -> None:
    """`student/`: a pipeline folder that draws in one step; teacher's guidance chosen on val, kept in the report."""
    teacher = shop.output / "teacher"
    family = StableDiffusion.load(teacher, teacher)
    scale = shop.report.get("teacher guidance") or choose_guidance(family, shop)
    shop.report["teacher guidance"] = scale
    family.student.requires_grad_(True).train()
    torch.manual_seed(shop.seed + 6)
    fake_score = family.make_fake_score("full")
    step = JDMStep(
        student=family.student,
        teacher=Guided(family.teacher, scale, family.empty_prompt(BATCH_SIZE)),
        fake_score=fake_score,
        codec=family.codec,
        schedule=family.schedule,
        timesteps=UniformTimesteps(),
        matching=Matching("normalized"),
        energies=(),
        weights=EnergyWeights(),
        latent_shape=family.latent_shape,
        student_parameters=family.student.trainable(),
        fake_score_parameters=fake_score.trainable(),
        fake_score_updates=3,
    )
    num_steps = shop.steps(600)
    settings = Settings(
        optimizers={"fake_score": AdamW(3e-4), "student": AdamW(5e-5)},
        batch_size=BATCH_SIZE,
        ema_decay=0.99,
        log_every_steps=20,
        save_every_steps=100,
        validate_every_steps=100,
        preview_every_steps=10 * num_steps,
    )
    watcher = Watcher(family, shop)
    checkpoints = Checkpoints(shop.scratch / "student")
    stage = Stage("student", step, num_steps, "step", averaged=step.student_parameters)
    state = fit(
        [stage],
        PromptBatches(family, shop.pictures("train"), shop.seed),
        settings,
        accelerator=Accelerator(cpu=True, mixed_precision="bf16"),
        checkpoints=checkpoints,
        observer=watcher,
        resume=True,
    )
    state.load_average(checkpoints, checkpoints.folder / state.best["name"])
    state.average.copy_to_parameters()
    with whole_folder(shop.output / "student") as partial:
        family.save_student(partial)


def choose_guidance(family: StableDiffusion, shop: Workshop, num_steps: int = 25) -> float:
    """The scale whose pictures of val captions are nearest to the reference pictures, by Frechet distance."""
    val, judge = shop.pictures("val"), Judge.load(shop.output)
    reference = shop.pictures("reference").image(slice(0, 1000))
    distances = {}
    for scale in GUIDANCE_SCALES:
        images = draw(family, val, range(min(200, len(val))), num_steps, scale)
        accuracy = judge.accuracy(images, val.stated[: len(images), 0])
        distances[scale] = judge.frechet(images, reference)
        shop.say(f"guidance {scale}: accuracy {_percent(accuracy)}, Frechet {distances[scale]:.2f}")
    return min(distances, key=distances.__getitem__)


@torch.no_grad()
def draw(
    family: StableDiffusion,
    pictures: Pictures,
    indices: range,
    num_steps: int,
    scale: float = 1.0,
    conditions: Controls | None = None,
) -> Tensor:
    """Images [N, 3, H, W] in [0, 1] of the captions: the student's at num_steps = 1, else the teacher's."""
    parts = []
    for start in range(0, len(indices), 50):
        some = indices[start : start + 50]
        noise = SampleDraws(0, "preview", some).normal("student_noise", family.latent_shape)
        prompt = family.encode_prompt([pictures.text(i) for i in some])
        controls = {name: maps[start : start + 50] for name, maps in (conditions or {}).items()}
        with torch.autocast(noise.device.type, torch.bfloat16):
            if num_steps == 1:
                latent = family.student.generate(noise, prompt, controls)
            else:
                latent = family.multistep(noise, prompt, num_steps, scale, controls)
            parts.append(family.codec.decode(latent).clamp(0, 1))
    return torch.cat(parts)


@dataclass(frozen=True)
class PromptBatches:
    """Training captions, an emptied one now and then; a batch is a function of phase and counter alone."""

    family: StableDiffusion
    pictures: Pictures
    seed: int

    def batch(self, phase: str, update: int, piece: int) -> Batch:
        indices = range(update * BATCH_SIZE, (update + 1) * BATCH_SIZE)
        draws = SampleDraws(self.seed, phase, indices)
        which = (draws.uniform("picture") * len(self.pictures)).long().tolist()
        texts = [self.pictures.captions[i][n % len(self.pictures.captions[i])] for n, i in enumerate(which)]
        texts = ["" if u < 0.1 else text for u, text in zip(draws.uniform("empty"), texts, strict=True)]
        return Batch(self.family.encode_prompt(texts), {}, draws, tuple(texts))


@dataclass
class Watcher:
    family: StableDiffusion
    shop: Workshop
    records: list[dict] = field(default_factory=list)

    def log(self, record: dict) -> None:
        self.records.append(record)
        numbers = ", ".join(f"{name} {value:.4g}" for name, value in record.items() if isinstance(value, float))
        self.shop.say(f"student: step {record['step']}, {numbers}")

    def validate(self) -> dict[str, Any]:
        """Frechet distance of 400 one-step pictures, and accuracy of what their captions state, on val."""
        val, judge = self.shop.pictures("val"), Judge.load(self.shop.output)
        images = draw(self.family, val, range(min(400, len(val))), num_steps=1)
        accuracy = judge.accuracy(images, val.stated[: len(images), 0])
        frechet = judge.frechet(images, self.shop.pictures("reference").image(slice(0, 1000)))
        return {"frechet": frechet, "score": -frechet, "adherence": accuracy}

    def preview(self, name: str) -> None:
        """The report draws pictures."""


def _percent(accuracy: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.0%}" for name, value in accuracy.items())
