"""The families whose backbone is a transformer; see tiny_pipelines."""

from __future__ import annotations

import torch
from diffusers import (
    FluxControlNetPipeline,
    QwenImageControlNetPipeline,
    StableDiffusion3ControlNetPipeline,
    ZImageControlNetPipeline,
)
from tiny_pipelines import GUIDED, ONE_STEP, Tiny

from jdmctl.families.transformer import pack


def signed(condition: torch.Tensor) -> torch.Tensor:
    """Tensors pass these pipelines as they are, so they must be in [-1, 1]."""
    return 2 * condition - 1


UNBINNED = {"use_resolution_binning": False}
SIZE = {"height": 64, "width": 64}
SCHNELL = SIZE | {"max_sequence_length": 256}
DISTILLED = {"num_inference_steps": 1, "output_type": "pt"}
TRUE_GUIDED = {"num_inference_steps": 3, "true_cfg_scale": 2.0, "negative_prompt": ["", ""]}
TRANSFORMERS = [
    *(
        Tiny(
            name,
            None,
            student={"student_timestep": 400},
            one_step=ONE_STEP | {"timesteps": [400]} | UNBINNED,
            guided=GUIDED | UNBINNED,
        )  # fmt: skip
        for name in ("pixart_alpha", "pixart_sigma")
    ),
    Tiny(
        "flux",
        FluxControlNetPipeline,
        "control_image",
        latents=pack,
        pixels=signed,
        one_step=ONE_STEP | SCHNELL,
        guided=TRUE_GUIDED | SCHNELL,
    ),  # fmt: skip
    Tiny(
        "qwen_image",
        QwenImageControlNetPipeline,
        "control_image",
        latents=pack,
        pixels=signed,
        one_step=DISTILLED | SIZE,
        guided=TRUE_GUIDED | SIZE,
    ),  # fmt: skip
    Tiny(
        "sana",
        None,
        guided=GUIDED | UNBINNED | SIZE,
        one_step={"num_inference_steps": 1, "intermediate_timesteps": None, "output_type": "pt"} | UNBINNED | SIZE,
    ),  # fmt: skip
    Tiny("sd3", StableDiffusion3ControlNetPipeline, "control_image", pixels=signed),
    Tiny(
        "z_image",
        ZImageControlNetPipeline,
        "control_image",
        pixels=signed,
        control={"controlnet_conditioning_scale": 1.0},
        one_step=ONE_STEP | SIZE | {"guidance_scale": 0.0},
        guided=GUIDED | SIZE | {"guidance_scale": 1.0},  # which this pipeline counts from 0
    ),  # fmt: skip
]
