"""Writes a family's stand-in: a teacher, and a student in every form that students come in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, AutoencoderTiny, PixArtAlphaPipeline, PixArtSigmaPipeline
from peft import get_peft_model_state_dict
from safetensors.torch import load_file, save_file

from jdmctl.families.names import family_class
from jdmctl.families.standins import transformers, unets
from jdmctl.families.students import student_at


def _same(given: Any) -> Any:
    return given


@dataclass(frozen=True)
class StandIn:
    """`pipeline` makes a random teacher's pipeline, and may write a tokenizer into the folder that it is given.

    `student_scheduler` takes the teacher's scheduler and gives that of a one-step student, `as_student` its pipeline,
    where students have another backbone.
    """

    pipeline: Callable[[Path], Any]
    student_scheduler: Callable[[Any], Any] = _same
    as_student: Callable[[Any], Any] = _same

    def write(self, folder: Path) -> None:
        """teacher/ and student/, whose backbone differs a little from the teacher's."""
        torch.manual_seed(0)
        pipeline = self.pipeline(folder / "tokenizer-source")
        pipeline.save_pretrained(folder / "teacher")
        pipeline = self.as_student(pipeline)
        backbone = pipeline.components.get("unet") or pipeline.components["transformer"]
        with torch.no_grad():
            for parameter in backbone.parameters():
                parameter.add_(0.01 * torch.randn_like(parameter))
        pipeline.scheduler = self.student_scheduler(pipeline.scheduler)
        pipeline.save_pretrained(folder / "student")


STAND_INS = {
    "stable_diffusion": StandIn(unets.random_sd, unets.lcm),
    "sdxl": StandIn(unets.random_sdxl, unets.turbo),
    "pixart_alpha": StandIn(partial(transformers.random_pixart, PixArtAlphaPipeline), unets.lcm),
    "pixart_sigma": StandIn(partial(transformers.random_pixart, PixArtSigmaPipeline), unets.lcm),
    "flux": StandIn(transformers.random_flux),
    "qwen_image": StandIn(transformers.random_qwen_image),
    "sana": StandIn(transformers.random_sana, as_student=transformers.sprint),
    "sd3": StandIn(transformers.random_sd3),
    "z_image": StandIn(transformers.random_z_image),
}


def write_stand_in(family: str, student: str, folder: Path) -> tuple[Path, Path]:
    """Teacher and student in `folder`, the student in the form that the path or name `student` has.

    A file is a LoRA if it is known as one or its name says so, else a backbone's weights.
    """
    STAND_INS[family].write(folder)
    form, known = "", student_at(student)
    if student.endswith(".safetensors"):
        is_lora = known.weights == "lora" if known else "lora" in student
        form = "lora.safetensors" if is_lora else "backbone.safetensors"
    if form:
        kind = family_class(family)
        layers = load_file(folder / "student" / kind.subfolder / "diffusion_pytorch_model.safetensors")
        if "lora" in form:
            model = kind.load(folder / "teacher", folder / "teacher")
            model.add_student_lora(2)
            layers = get_peft_model_state_dict(model.student.backbone)
            layers = {f"{kind.subfolder}.{name}": torch.rand_like(value) for name, value in layers.items()}
        save_file(layers, folder / form)
    return folder / "teacher", folder / (form or "student")


def write_decoder(teacher: Path, folder: Path) -> Path:
    """An AutoencoderTiny in `folder`, for the latents of a stand-in's VAE."""
    vae = AutoencoderKL.load_config(teacher, subfolder="vae")
    widths, blocks = [4] * len(vae["block_out_channels"]), [1] * len(vae["block_out_channels"])
    AutoencoderTiny(
        latent_channels=vae["latent_channels"], encoder_block_out_channels=widths, decoder_block_out_channels=widths,
        num_encoder_blocks=blocks, num_decoder_blocks=blocks,
    ).save_pretrained(folder)  # fmt: skip
    return folder
