"""How each family's own diffusers pipeline is called on its stand-in: the table of the contract test."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from diffusers import StableDiffusionControlNetPipeline, StableDiffusionXLControlNetPipeline

from jdmctl.families.standins.write import STAND_INS

ONE_STEP = {"num_inference_steps": 1, "guidance_scale": 1.0, "output_type": "pt"}
GUIDED = {"num_inference_steps": 3, "guidance_scale": 2.0}


@dataclass(frozen=True)
class Tiny:
    """A family's entry: how its own pipeline is called to draw what its stand-in's denoisers and codec draw.

    `one_step` is for the student, `guided` for the teacher's multi-step sampling at guidance 2 in 3 steps.
    """

    family: str
    control_pipeline: Any  # None where diffusers has none
    condition_argument: str = "image"
    control: Mapping[str, Any] = field(default_factory=dict)  # further arguments of `control_pipeline`
    one_step: Mapping[str, Any] = field(default_factory=lambda: ONE_STEP)
    guided: Mapping[str, Any] = field(default_factory=lambda: GUIDED)

    student: Mapping[str, Any] = field(default_factory=dict)  # where it is not called at the last timestep
    latents: Callable[[Any], Any] = lambda noise: noise  # what the pipeline takes for noise
    pixels: Callable[[Any], Any] = lambda condition: condition  # what it takes for a condition in [0, 1]

    def __str__(self) -> str:
        return self.family

    def write(self, folder: Path) -> None:
        """teacher/ and student/, whose backbone differs a little from the teacher's."""
        STAND_INS[self.family].write(folder)


FAMILIES = [
    Tiny("stable_diffusion", StableDiffusionControlNetPipeline),
    Tiny("sdxl", StableDiffusionXLControlNetPipeline),
]
