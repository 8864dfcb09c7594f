"""The numbers by which a world is judged, on its test split; what is chosen among (guidance) is chosen on val."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import AutoencoderKL
from torch import Tensor

from jdmctl.controls.base import Control, load_control
from jdmctl.evaluation.adherence import scores
from jdmctl.families.stable_diffusion import StableDiffusion
from jdmctl.tinyworld.judge import Judge
from jdmctl.tinyworld.source import Pictures
from jdmctl.tinyworld.stages import scorers
from jdmctl.tinyworld.stages.autoencoder import psnr
from jdmctl.tinyworld.stages.student import draw
from jdmctl.tinyworld.workshop import Workshop

NUM_TEST, NUM_VAL, NUM_STEPS = 500, 100, 25
GUIDANCE_SCALES = (1.0, 1.5, 2.0)


def build(shop: Workshop) -> None:
    family = StableDiffusion.load(shop.output / "teacher", shop.output / "student")
    judge = Judge.load(shop.output)
    test = shop.pictures("test")
    vae = AutoencoderKL.from_pretrained(shop.output / "vae").eval()
    shop.report["test: vae psnr"] = float(psnr(vae, test.image(slice(0, 256))).mean())
    shop.report |= {f"val: {name}": value for name, value in scorers.report(shop).items()}

    guidance = shop.report["teacher guidance"]
    num = min(NUM_TEST, len(test))
    for name, num_steps in (("teacher", NUM_STEPS), ("student", 1)):
        images = draw(family, test, range(num), num_steps, guidance)
        note(shop, judge, f"test: {name}", images, test)
    note(shop, judge, "test: true pictures", test.image(slice(0, num)), test)
    for control in controls(shop.output):
        _controlnet(shop, family, control)
    for name, value in shop.report.items():
        shop.say(f"{name}: {value:.4f}")


def note(shop: Workshop, judge: Judge, prefix: str, images: Tensor, pictures: Pictures) -> None:
    """Accuracy of stated attributes and Frechet distance into the report."""
    accuracy = judge.accuracy(images, pictures.stated[: len(images), 0])
    shop.report |= {f"{prefix} {name}": value for name, value in accuracy.items()}
    shop.report[f"{prefix} frechet"] = judge.frechet(images, shop.pictures("reference").image(slice(None)))


def controls(world: Path) -> list[Control]:
    """The controls that this world has ordinary ControlNets for."""
    made = [load_control("canny")]
    if (world / "depth").exists():
        made.append(load_control("depth", network=str(world / "depth"), scorer=str(world / "depth_heldout")))
    return made


def _controlnet(shop: Workshop, family: StableDiffusion, control: Control) -> None:
    """Is it well trained (does twice the steps still change adherence), and at which guidance is it best?"""
    name, val = f"controlnet_{control.name}", shop.pictures("val")
    found = {}
    for scale in GUIDANCE_SCALES:
        found[scale] = adherence(family, control, shop.output / name, val, scale)
        shop.say(f"val: {name} at guidance {scale}: {control.headline} {found[scale]:.4f}")
    best = (max if control.higher_is_better else min)(found, key=found.__getitem__)
    half = adherence(family, control, shop.scratch / f"{name}_half", val, best)
    shop.report |= {
        f"{name} guidance": best,
        f"val: {name} {control.headline}": found[best],
        f"val: {name} {control.headline} after half its steps": half,
    }


def adherence(
    family: StableDiffusion, control: Control, folder: Path, pictures: Pictures, scale: float
) -> float:
    """Mean headline score of the teacher's pictures in 25 steps with the ControlNet in `folder`."""
    family.add_control_branch(control.name, folder, denoiser=family.teacher).requires_grad_(False)
    indices = range(min(NUM_VAL, len(pictures)))
    conditions = control.condition(pictures.image(slice(0, len(indices))))
    images = draw(family, pictures, indices, NUM_STEPS, scale, {control.name: conditions})
    del family.teacher.branches[control.name]
    return scores(control, images, conditions)[control.headline].mean().item()
