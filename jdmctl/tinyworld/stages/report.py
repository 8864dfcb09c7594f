"""What is known of a finished world from its val split: how good the judges are, and each ControlNet's guidance."""

from __future__ import annotations

from pathlib import Path

from jdmctl.controls.base import Control, load_control
from jdmctl.evaluation.adherence import scores
from jdmctl.families.stable_diffusion import StableDiffusion
from jdmctl.tinyworld.source import Pictures
from jdmctl.tinyworld.stages import scorers
from jdmctl.tinyworld.stages.student import draw
from jdmctl.tinyworld.workshop import Workshop

NUM_VAL, NUM_STEPS = 100, 25
GUIDANCE_SCALES = (1.0, 1.5, 2.0)


def build(shop: Workshop) -> None:
    family = StableDiffusion.load(shop.output / "teacher", shop.output / "student")
    shop.report |= {f"val: {name}": value for name, value in scorers.report(shop).items()}
    for control in controls(shop.output):
        _controlnet(shop, family, control)


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


def adherence(family: StableDiffusion, control: Control, folder: Path, pictures: Pictures, scale: float) -> float:
    """Mean headline score of the teacher's pictures in 25 steps with the ControlNet in `folder`."""
    family.add_control_branch(control.name, folder, denoiser=family.teacher).requires_grad_(False)
    indices = range(min(NUM_VAL, len(pictures)))
    conditions = control.condition(pictures.image(slice(0, len(indices))))
    images = draw(family, pictures, indices, NUM_STEPS, scale, {control.name: conditions})
    del family.teacher.branches[control.name]
    return scores(control, images, conditions)[control.headline].mean().item()
