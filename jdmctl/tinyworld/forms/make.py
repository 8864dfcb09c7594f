"""Builds a form of the world: a teacher by its family's own objective, and the one-step student distilled from it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from jdmctl.build_run import build_run
from jdmctl.diffusion.prediction import from_x0
from jdmctl.diffusion.schedule import diffuse
from jdmctl.families.names import family_class
from jdmctl.recipe import Recipe
from jdmctl.recipe_files import parse_recipe
from jdmctl.tinyworld.fit import FitSettings
from jdmctl.tinyworld.forms.models import FORMS, Form
from jdmctl.tinyworld.judge import Judge
from jdmctl.tinyworld.order import Order
from jdmctl.tinyworld.stages.autoencoder import encode
from jdmctl.tinyworld.stages.student import draw
from jdmctl.tinyworld.workshop import Workshop, autocast
from jdmctl.tinyworld.world import NUM_PICTURES, form_folder, samples, world_folder
from jdmctl.training.atomic import whole_folder, write_text
from jdmctl.training.run import make_accelerator, train

BATCH_SIZE = 32
GUIDANCE_SCALE = 2.0
REPORT_STEPS, REPORT_PICTURES = 25, 200


def build_form(
    name: str,
    budget: float = 1.0,
    seed: int = 0,
    say: Callable[[str], None] = print,
    show: Callable[[Mapping[str, Any]], None] = lambda record: None,
    device: str = "",
) -> tuple[Path, dict[str, float]]:
    """The folder with teacher/ and student/, and numbers of both on val; what is there already is not built again.

    `budget` scales the number of steps and of pictures; `show` is given the records of the student's training.
    Both are trained on `device`, by default a GPU if there is one, and measured on the CPU.

    Raises JdmError if what is there was built with another budget or seed.
    """
    folder, form = form_folder(name), FORMS[name]
    scratch = folder.with_name(f"{name}-unfinished")
    _begin(folder, scratch, Order("", budget, seed))
    shop = Workshop(samples, world_folder(), scratch, budget, seed, say)
    accelerator = make_accelerator(device, "bf16")
    if not (folder / "teacher").exists():
        _build_teacher(shop, form, folder / "teacher", accelerator.device)
    if not (folder / "student").exists():
        recipe = student_recipe(shop, name, form)
        train(build_run(recipe, accelerator), scratch / "distill", accelerator, show, resume=True)
        with whole_folder(folder / "student") as partial:
            shutil.copytree(scratch / "distill" / "student", partial, dirs_exist_ok=True)
    report = folder / "report.json"
    if not report.exists():
        write_text(report, json.dumps(_numbers(shop, form, folder), indent=1) + "\n")
        shutil.rmtree(scratch, ignore_errors=True)
    return folder, json.loads(report.read_text(encoding="utf-8"))


def _begin(folder: Path, scratch: Path, order: Order) -> None:
    """A form that does not say what it was asked for, built before forms did, is taken as it is."""
    if Order.of(folder):
        order.require_same(folder)
    elif not (folder / "teacher").exists():
        shutil.rmtree(scratch, ignore_errors=True)  # of one that was deleted
        order.keep(folder)


def _build_teacher(shop: Workshop, form: Form, folder: Path, device: torch.device) -> None:
    """Mean squared error of the raw output, at times as the schedule's own: epsilon's or the flow's regression."""
    world = StableDiffusionPipeline.from_pretrained(
        shop.output / "teacher", safety_checker=None, torch_dtype=torch.float32
    )
    pictures = samples("train", shop.steps(NUM_PICTURES["train"]))
    torch.manual_seed(shop.seed)
    start, kind = shop.scratch / "start", family_class(form.family)
    pipeline = form.pipeline(world, [text for row in pictures.captions for text in row])
    with whole_folder(start) as partial:
        pipeline.save_pretrained(partial)
    family: Any = kind.load(start, start)
    encoders = [part for name, part in family.parts.items() if name.startswith("text_encoder")]
    trained = nn.ModuleList([family.teacher.backbone, *encoders]).requires_grad_(True).train()
    latents, schedule = encode(family.parts["vae"], pictures.images), family.schedule
    trained.to(device)

    def loss(generator: torch.Generator) -> Tensor:
        index = torch.randint(len(latents), (BATCH_SIZE,), generator=generator)
        wording = torch.randint(2**16, (BATCH_SIZE,), generator=generator).tolist()
        dropped = (torch.rand(BATCH_SIZE, generator=generator) < 0.1).tolist()
        drawn = torch.rand(BATCH_SIZE, generator=generator)
        noise = torch.randn(BATCH_SIZE, *latents.shape[1:], generator=generator)
        x0, noise, t = latents[index].to(device), noise.to(device), drawn.to(device)
        rows = [pictures.captions[i] for i in index.tolist()]
        texts = ["" if drop else row[n % len(row)] for row, n, drop in zip(rows, wording, dropped, strict=True)]
        x_t = diffuse(schedule, x0, noise, t)
        with autocast(device):
            prompt = kind.encode_prompt.__wrapped__(family, texts)  # type: ignore[attr-defined]  # with gradients
            output = family.teacher.network(x_t, schedule.timestep(t), prompt, {})
        target = from_x0(family.teacher.prediction, x0, x_t, schedule.alpha(t), schedule.sigma(t))
        return mse_loss(output.float(), target)

    loss(torch.Generator()).backward()  # what has no part in it, as the last layer of a CLIP, is not trained
    for parameter in trained.parameters():
        parameter.requires_grad_(parameter.grad is not None)
    settings = FitSettings(shop.steps(form.num_steps), form.learning_rate, ema_decay=0.995, seed=shop.seed)
    shop.train(f"{form.family} teacher", trained, loss, settings)
    parts = {**family.parts, kind.subfolder: family.teacher.backbone}
    with whole_folder(folder) as partial:
        kind.pipeline_class(**parts, scheduler=pipeline.scheduler).save_pretrained(partial)


def student_recipe(shop: Workshop, name: str, form: Form) -> Recipe:
    """What `jdmctl distill` is asked for: regression on the teacher's pairs, then matching without energies."""
    timestep = {} if form.student_timestep is None else {"student_timestep": form.student_timestep}
    values = {
        "name": f"tiny-{name}",
        "seed": shop.seed,
        "method": "distill",
        "model": {"family": form.family, "teacher": f"tiny/forms/{name}/teacher", **timestep},
        "objective": {"guidance_scale": GUIDANCE_SCALE},
        "fake_score": {
            "trainable": "full", "warmup_min_steps": shop.steps(50), "warmup_max_steps": shop.steps(100),
        },
        "training": {
            "num_steps": shop.steps(250), "regression_steps": shop.steps(800), "teacher_steps": 10,
            "batch_size": 32, "learning_rate": 1e-4, "lr_schedule": "linear", "precision": "bf16",
            "validate_every_steps": 50, "preview_every_steps": 100,
        },
        "data": {
            "source": "tiny", "num_samples": shop.steps(2000),
            "num_validation_samples": max(8, shop.steps(REPORT_PICTURES)),
        },
    }  # fmt: skip
    return parse_recipe(values, source=f"the recipe of the form {name}'s student")


def _numbers(shop: Workshop, form: Form, folder: Path) -> dict[str, float]:
    """Frechet distance and accuracy of what captions state, on val, of the teacher and of the student."""
    kind = family_class(form.family)
    family: Any = kind.load(folder / "teacher", folder / "student", student_timestep=form.student_timestep)
    val, judge = shop.pictures("val"), Judge.load(shop.output)
    reference, found = shop.pictures("reference").image(slice(0, 1000)), {}
    for role, num_steps in (("teacher", REPORT_STEPS), ("student", 1)):
        shop.say(f"measuring the {role}")
        images = draw(family, val, range(min(REPORT_PICTURES, len(val))), num_steps, GUIDANCE_SCALE)
        found[f"{role} frechet"] = judge.frechet(images, reference)
        for attribute, value in judge.accuracy(images, val.stated[: len(images), 0]).items():
            found[f"{role} {attribute}"] = value
    return found
