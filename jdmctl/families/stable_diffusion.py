"""Stable Diffusion 1.x / 2.x and everything saved as a `StableDiffusionPipeline` folder, the tiny world included."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    ControlNetModel,
    DDIMScheduler,
    LCMScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from peft import LoraConfig, get_peft_model_state_dict
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from jdmctl.diffusion.schedule import DiscreteSchedule
from jdmctl.errors import BadInputError, ConditionMismatchError
from jdmctl.families.folders import load_component, read_config, require_pipeline
from jdmctl.families.unet import StableDiffusionDenoiser
from jdmctl.types import Controls, Prompt

# Every linear and convolution of a UNet's blocks; attention alone is too little to follow a moving student.
_LORA_TARGETS = (
    "to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2", "proj_in", "proj_out",
    "conv1", "conv2", "conv_shortcut", "time_emb_proj", "conv_in", "conv_out",
)  # fmt: skip


class LatentCodec:
    """AutoencoderKL with its scaling factor: images [B, 3, H, W] in [0, 1] <-> latents [B, C, h, w]."""

    def __init__(self, vae: AutoencoderKL):
        self.vae = vae.requires_grad_(False).eval()

    def encode(self, image: Tensor) -> Tensor:
        return self.vae.encode(image * 2 - 1).latent_dist.mode().float() * self.vae.config.scaling_factor

    def decode(self, latent: Tensor) -> Tensor:
        return self.vae.decode(latent / self.vae.config.scaling_factor, return_dict=False)[0].float() / 2 + 0.5


class StableDiffusion:
    """A family: the teacher's folder and a one-step student's folder, with everything that a run needs of them."""

    name = "stable_diffusion"

    def __init__(
        self,
        teacher: StableDiffusionDenoiser,
        student: StableDiffusionDenoiser,
        codec: LatentCodec,
        tokenizer: CLIPTokenizer,
        text_encoder: CLIPTextModel,
        sampler_config: Mapping[str, Any],
    ):
        self.teacher, self.student, self.codec = teacher, student, codec
        self.tokenizer, self.text_encoder = tokenizer, text_encoder.requires_grad_(False).eval()
        self.sampler_config = sampler_config
        for denoiser in (teacher, student):
            denoiser.requires_grad_(False).eval()

    @classmethod
    def load(
        cls,
        teacher: str | Path,
        student: str | Path,
        device: str | torch.device = "cpu",
        student_time: float = 1.0,
    ) -> StableDiffusion:
        """Load two pipeline folders (or hub names) in float32.

        Raises:
            BadInputError: not a Stable Diffusion pipeline, or a student that does not fit its teacher.
            MissingWeightsError: a component is missing, truncated, or not safetensors.
        """
        unets, schedulers = {}, {}
        for role, folder in (("teacher", teacher), ("student", student)):
            require_pipeline(folder, role, accepted=("StableDiffusionPipeline", "StableDiffusionControlNetPipeline"))
            unets[role] = load_component(UNet2DConditionModel, folder, "unet")
            schedulers[role] = DDIMScheduler.from_config(read_config(folder, "scheduler", "scheduler_config.json"))
        for key in ("in_channels", "cross_attention_dim"):
            found = {role: unet.config[key] for role, unet in unets.items()}
            if found["teacher"] != found["student"]:
                raise BadInputError(
                    f"student {student} does not fit teacher {teacher}: "
                    f"{key} is {found['student']} and {found['teacher']}",
                    hint="give the teacher that this student was distilled from (--teacher)",
                )
        roles = {
            role: StableDiffusionDenoiser(
                unets[role],
                DiscreteSchedule.from_diffusers(schedulers[role]),
                schedulers[role].config.prediction_type,
                student_time if role == "student" else 1.0,
            )
            for role in unets
        }
        family = cls(
            **roles,
            codec=LatentCodec(load_component(AutoencoderKL, teacher, "vae")),
            tokenizer=CLIPTokenizer.from_pretrained(teacher, subfolder="tokenizer"),
            text_encoder=load_component(CLIPTextModel, teacher, "text_encoder"),
            sampler_config=schedulers["teacher"].config,
        )
        return family.to(device)

    def to(self, device: str | torch.device) -> StableDiffusion:
        modules: tuple[Any, ...] = (self.teacher, self.student, self.codec.vae)
        for module in modules:  # channels_last makes convolutions up to 1.9x faster, on CPU too
            module.to(device, memory_format=torch.channels_last)
        self.text_encoder.to(device)
        return self

    @property
    def schedule(self) -> DiscreteSchedule:
        return self.teacher.schedule

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        config = self.student.backbone.config
        return config.in_channels, config.sample_size, config.sample_size

    @property
    def resolution_px(self) -> int:
        return self.latent_shape[1] * self.pixels_per_latent

    @property
    def pixels_per_latent(self) -> int:
        return 2 ** (len(self.codec.vae.config.block_out_channels) - 1)

    @torch.no_grad()
    def encode_prompt(self, texts: Sequence[str]) -> Tensor:
        """[B, L, D] text embeddings."""
        tokens = self.tokenizer(
            list(texts), padding="max_length", truncation=True,
            max_length=self.tokenizer.model_max_length, return_tensors="pt",
        )  # fmt: skip
        return self.text_encoder(tokens.input_ids.to(self.text_encoder.device))[0]

    def add_control_branch(
        self, name: str, init: str | Path = "student", denoiser: StableDiffusionDenoiser | None = None
    ) -> ControlNetModel:
        """Give a denoiser (default: the student) a trainable branch: a copy of its encoder, or an existing ControlNet.

        Raises:
            ConditionMismatchError: a given ControlNet does not fit the backbone.
        """
        denoiser = denoiser or self.student
        if init == "student":
            branch = ControlNetModel.from_unet(
                denoiser.backbone, conditioning_embedding_out_channels=self._embedding_channels()
            )
            # diffusers zeroes this too; but the outputs are zero already, and behind two zeros in a row no gradient
            # reaches the condition at first
            branch.controlnet_cond_embedding.conv_out.reset_parameters()
        else:
            branch = load_component(ControlNetModel, init, None)
            self._require_fit(branch, denoiser, init)
        branch.to(next(denoiser.parameters()).device, memory_format=torch.channels_last)
        denoiser.branches[name] = branch.train().requires_grad_(True)
        return branch

    def _embedding_channels(self) -> tuple[int, ...]:
        """ControlNet's widths, as many as bring a condition down to the latent's size: one halving after the first."""
        return (16, 32, 96, 256)[: self.pixels_per_latent.bit_length()]

    def _require_fit(self, branch: ControlNetModel, denoiser: StableDiffusionDenoiser, source: str | Path) -> None:
        for key in ("in_channels", "cross_attention_dim", "block_out_channels"):
            found, needed = branch.config[key], denoiser.backbone.config[key]
            if found != needed and list(found) != list(needed):
                raise ConditionMismatchError(
                    f"the ControlNet at {source} does not fit this model: {key} is {found}, needed {needed}",
                    hint="give a ControlNet made for the same backbone, or start from the student (init: student)",
                )
        factor = 2 ** (len(branch.config.conditioning_embedding_out_channels) - 1)
        if factor != self.pixels_per_latent:
            raise ConditionMismatchError(
                f"the ControlNet at {source} reduces conditions {factor} times, this model's latents need "
                f"{self.pixels_per_latent} times",
                hint="give a ControlNet made for the same VAE",
            )

    def make_fake_score(
        self, trainable: str = "lora", rank: int = 16, controls: Mapping[str, str | Path] | None = None
    ) -> StableDiffusionDenoiser:
        """A copy of the teacher that will track the student: LoRA on the teacher's own weight storage, or a full copy.

        `controls` gives it control branches of its own (the conditional form), and says what each starts as.
        """
        with torch.device("meta"):
            backbone = UNet2DConditionModel.from_config(self.teacher.backbone.config)
        weights = self.teacher.backbone.state_dict()
        if trainable == "full":
            weights = {name: value.clone() for name, value in weights.items()}
        backbone.load_state_dict(weights, assign=True)
        backbone.requires_grad_(trainable == "full")
        fake = StableDiffusionDenoiser(backbone.train(), self.schedule, self.teacher.prediction)
        for name, init in (controls or {}).items():
            self.add_control_branch(name, init, denoiser=fake)
        if trainable == "lora":
            _add_lora(backbone, rank)
        return fake

    def add_student_lora(self, rank: int) -> None:
        _add_lora(self.student.backbone, rank)

    def save_student(self, folder: str | Path) -> None:
        """Write the student as a `StableDiffusionPipeline` folder that draws in one step from pure noise."""
        keep = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "prediction_type")
        schedule = {name: self.sampler_config[name] for name in keep}
        StableDiffusionPipeline(
            vae=self.codec.vae, text_encoder=self.text_encoder, tokenizer=self.tokenizer, unet=self.student.backbone,
            scheduler=LCMScheduler(**schedule, clip_sample=False, steps_offset=1),
            safety_checker=None, feature_extractor=None, requires_safety_checker=False,
        ).save_pretrained(folder)  # fmt: skip

    def save_control_branch(self, name: str, folder: str | Path) -> None:
        """Write the student's branch as an ordinary diffusers `ControlNetModel` folder (safetensors)."""
        branch: ControlNetModel = self.student.branches[name]
        branch.save_pretrained(folder, safe_serialization=True)

    def save_student_lora(self, folder: str | Path) -> None:
        """Write the student's LoRA in diffusers' format, for `pipeline.load_lora_weights(folder)`."""
        layers = get_peft_model_state_dict(self.student.backbone)
        StableDiffusionPipeline.save_lora_weights(folder, unet_lora_layers=layers, safe_serialization=True)

    def load_student_lora(self, folder: str | Path) -> None:
        """Put on the student what `save_student_lora` wrote."""
        self.student.backbone.load_lora_adapter(
            str(folder), prefix="unet", weight_name="pytorch_lora_weights.safetensors"
        )

    @torch.no_grad()
    def multistep(
        self,
        noise: Tensor,
        prompt: Prompt,
        num_steps: int,
        guidance_scale: float = 1.0,
        controls: Controls | None = None,
    ) -> Tensor:
        """The teacher's deterministic DDIM sampling at trailing timesteps; controls go through its own branches."""
        scheduler = DDIMScheduler.from_config(self.sampler_config, timestep_spacing="trailing")
        scheduler.set_timesteps(num_steps, device=noise.device)
        empty = self.encode_prompt([""]).expand_as(prompt)
        x_t = noise
        for timestep in scheduler.timesteps:
            now = timestep.expand(len(noise))
            output = self.teacher.network(x_t, now, prompt, controls or {}).float()
            if guidance_scale != 1:
                free = self.teacher.network(x_t, now, empty, controls or {}).float()
                output = free + guidance_scale * (output - free)
            x_t = scheduler.step(output, timestep, x_t).prev_sample
        return x_t


def _add_lora(backbone: UNet2DConditionModel, rank: int) -> None:
    backbone.add_adapter(LoraConfig(r=rank, lora_alpha=rank, target_modules=list(_LORA_TARGETS)))
