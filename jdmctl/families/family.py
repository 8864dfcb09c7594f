"""What every family does alike: loading, branches, LoRA, the fake score, the teacher's own sampling, saving.

A family is a subclass that fills in the gaps which `FamilyHooks` lists.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import torch
from diffusers import AutoencoderTiny
from peft import get_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from jdmctl.diffusion.schedule import NetworkSchedule
from jdmctl.errors import BadInputError
from jdmctl.families.base import DiffusionDenoiser
from jdmctl.families.codec import QuickCodec
from jdmctl.families.folders import load_component
from jdmctl.families.hooks import FamilyHooks
from jdmctl.families.lora_files import put_lora_file
from jdmctl.families.low_precision import hold, train_in_float32
from jdmctl.families.offload import bring_back
from jdmctl.families.prompts import repeat
from jdmctl.families.sharing import double, twin
from jdmctl.families.student_forms import load_student
from jdmctl.types import Controls, Prompt
from jdmctl.weights import require_safetensors


class Family(FamilyHooks):
    """A teacher and its one-step student, with everything that a run needs of them.

    `parts` are the components of the pipeline that both share, by their names in it (vae, text_encoder, ...).
    """

    def __init__(
        self,
        teacher: DiffusionDenoiser,
        student: DiffusionDenoiser,
        parts: Mapping[str, Any],
        sampler_config: Mapping[str, Any],
        student_config: Mapping[str, Any] | None = None,
    ):
        """`sampler_config` and `student_config` are what their schedulers' config files say."""
        self.teacher, self.student, self.parts = teacher, student, dict(parts)
        self.sampler_config, self.student_config = sampler_config, student_config or sampler_config
        for module in (teacher, student, *self._part_modules()):
            module.requires_grad_(False).eval()
        self.codec = self.make_codec()
        for denoiser in (teacher, student):
            self.equip(denoiser)

    @classmethod
    def load(
        cls,
        teacher: str | Path,
        student: str | Path,
        device: str | torch.device = "cpu",
        student_time: float = 1.0,
        student_timestep: int | None = None,
        student_prediction: str | None = None,
        share_backbone: bool = False,
        resolution_px: int | None = None,
    ) -> Self:
        """Load a teacher's pipeline folder (or hub name), and a student in any of its forms, in float32.

        The student draws at `student_time` in [0, 1], or at the time when a network is told `student_timestep`.
        `student_prediction` says what its network predicts where its files do not, or do wrongly.
        `share_backbone` keeps a student that is a LoRA as layers on the teacher's own weights, then held once.
        `resolution_px` is the side of pictures where the student's files do not say it, or another than they say.

        Raises:
            BadInputError: not a pipeline of this family, a student that does not fit its teacher, or no latent has that
                side.
            MissingWeightsError: a component is missing, truncated, or not safetensors.
        """
        cls.require_folder(teacher, "pipeline" if str(student) == str(teacher) else "teacher")
        backbone, config = cls.load_backbone(teacher), cls.read_scheduler(teacher)
        own_backbone, own_config = load_student(cls, student, teacher, backbone, share_backbone)
        own_config = own_config or config
        schedule, prediction = cls.make_schedule(own_config, own_backbone)
        if student_timestep is not None:
            student_time = schedule.time(student_timestep)
        family = cls(
            teacher=cls.denoiser_class(backbone, *cls.make_schedule(config, backbone)),
            student=cls.denoiser_class(
                own_backbone, schedule, student_prediction or prediction, student_time, cls.noise_scale(own_config)
            ),
            parts=cls.load_parts(teacher),
            sampler_config=config,
            student_config=own_config,
        )
        if resolution_px not in (None, family.resolution_px):
            family.draw_at(resolution_px)
        return family.to(device)

    def to(self, device: str | torch.device) -> Self:
        modules: tuple[Any, ...] = (self.teacher, self.student, self.parts.get("vae", nn.Module()))
        for module in modules:  # channels_last makes convolutions up to 1.9x faster, on CPU too
            module.to(device, memory_format=self.layout)
        for module in self._part_modules():
            module.to(device)
        return self

    @property
    def schedule(self) -> NetworkSchedule:
        return self.teacher.schedule

    @property
    def resolution_px(self) -> int:
        return self.latent_shape[1] * self.pixels_per_latent

    def draw_at(self, resolution_px: int) -> None:
        """From now on pictures have this side, whatever the student's files say.

        Raises:
            BadInputError: it is no multiple of what the VAE and the network need.
        """
        step = self.side_step_px
        if resolution_px % step:
            raise BadInputError(
                f"sides of pictures of this model are multiples of {step} px, and resolution_px is {resolution_px}",
                hint=f"--set model.resolution_px={max(1, round(resolution_px / step)) * step}",
            )
        own, self.given_px = self.resolution_px, resolution_px
        if self.resolution_px != resolution_px:
            raise BadInputError(
                f"the family {self.name} draws pictures of {own} px alone, and resolution_px is {resolution_px}",
                hint="leave out model.resolution_px",
            )

    @classmethod
    def require_same(cls, wanted: Any, found: Any, name: str, other: str) -> None:
        """Raises BadInputError if one backbone's config does not fit the other's."""
        for key in cls.must_agree:
            if found.config[key] != wanted.config[key]:
                raise BadInputError(
                    f"{name} does not fit {other}: {key} is {found.config[key]} and {wanted.config[key]}",
                    hint="give the teacher that this student was distilled from (--teacher)",
                )

    def add_control_branch(
        self,
        name: str,
        init: str | Path = "student",
        denoiser: DiffusionDenoiser | None = None,
        kind: str = "controlnet",
        rank: int = 16,
    ) -> Any:
        """Give a denoiser (default: the student) a trainable branch: a new one of a kind, or one that was saved.

        Raises:
            ConditionMismatchError: a saved branch does not fit the backbone.
        """
        denoiser = denoiser or self.student
        branch: Any
        if init != "student":
            branch = self.load_branch(init, denoiser)
        else:
            start = self._merged(denoiser)
            branch = self.new_branch(start) if kind == "controlnet" else self.light_branch(start, kind, rank)
        branch.to(next(denoiser.parameters()).device, memory_format=torch.channels_last)
        denoiser.branches[name] = branch.train()
        self.train_branch(branch)
        return branch

    def make_fake_score(
        self, trainable: str = "lora", rank: int = 16, controls: Mapping[str, str | Path] | None = None
    ) -> DiffusionDenoiser:
        """A copy of the teacher that will track the student: LoRA on the teacher's own weight storage, or a full copy.

        `controls` gives it control branches of its own (the conditional form), and says what each starts as.
        """
        backbone = twin(self.teacher.backbone) if trainable == "lora" else copy.deepcopy(self.teacher.backbone)
        backbone.train().requires_grad_(trainable == "full")
        device = next(backbone.parameters()).device
        fake = self.denoiser_class(backbone, self.schedule, self.teacher.prediction)
        self.equip(fake)
        for name, init in (controls or {}).items():
            self.add_control_branch(name, init, denoiser=fake)
        if trainable == "lora":
            self.add_lora(backbone, rank)
            backbone.to(device)  # peft puts LoRA where the weight lies, which may be offloaded
        else:
            bring_back(backbone, device)
        train_in_float32(backbone)
        return fake

    def teacher_through(self, branches: Mapping[str, nn.Module]) -> DiffusionDenoiser:
        """The teacher, its weights held once, as one that sees conditions through these branches alone."""
        seeing = double(self.teacher)
        seeing.schedule, seeing.branches = self.schedule, nn.ModuleDict(branches)
        return seeing

    def quick_codec(self, source: str | Path) -> QuickCodec:
        """The family's codec, decoding by the AutoencoderTiny in a folder or of a hub name.

        Raises:
            BadInputError: it is made for latents of another size.
        """
        tiny = load_component(AutoencoderTiny, source, None)
        factor = 2 ** (len(tiny.config.decoder_block_out_channels) - 1)
        found, wanted = (tiny.config.latent_channels, factor), (self.latent_shape[0], self.pixels_per_latent)
        if found != wanted:
            raise BadInputError(
                f"the decoder {source} is for latents of {found[0]} channels and 1/{found[1]} of a picture's side, "
                f"this model's have {wanted[0]} and 1/{wanted[1]}",
                hint=f"--set memory.decoder={self.tiny_decoder}",
            )
        return QuickCodec(self.codec, tiny.to(next(self.student.parameters()).device))

    def use_prompts(self, encode: Callable[[Sequence[str]], Prompt], empty: Prompt) -> None:
        """From now on prompts come from elsewhere, `empty` is that of no text; text encoders go to the CPU."""
        for module in self.text_encoders:
            module.to("cpu")
        vars(self).update(encode_prompt=encode, empty_prompt=lambda size: repeat(empty, size))

    @property
    def text_encoders(self) -> list[nn.Module]:
        return [part for part in self._part_modules() if part is not self.parts.get("vae")]

    def add_student_lora(self, rank: int) -> None:
        device = next(self.student.parameters()).device
        self.add_lora(self.student.backbone, rank)
        self.student.backbone.to(device)
        train_in_float32(self.student.backbone)

    def save_student(self, folder: str | Path) -> None:
        """Write the student as a diffusers pipeline folder that draws in one step from pure noise."""
        parts = {self.subfolder: self.student.backbone, **self.parts, **self.pipeline_options}
        self.pipeline_class(**parts, scheduler=self.one_step_scheduler()).save_pretrained(folder)

    def save_control_branch(self, name: str, folder: str | Path) -> None:
        """Write the student's branch as a folder of its own diffusers class (safetensors)."""
        branch: Any = self.student.branches[name]
        branch.save_pretrained(folder, safe_serialization=True)

    def save_student_lora(self, folder: str | Path) -> None:
        """Write the student's LoRA in diffusers' format, for `pipeline.load_lora_weights(folder)`."""
        layers = {f"{self.subfolder}_lora_layers": get_peft_model_state_dict(self.student.backbone)}
        self.pipeline_class.save_lora_weights(folder, **layers, safe_serialization=True)

    def load_student_lora(self, folder: str | Path) -> None:
        """Put on the student what `save_student_lora` wrote.

        Raises:
            MissingWeightsError: there is no such file, or it is cut short.
            BadInputError: it holds no LoRA that fits the student.
        """
        (file,) = require_safetensors(Path(folder, "pytorch_lora_weights.safetensors"))
        put_lora_file(type(self), file, self.student.backbone, "student")

    @torch.no_grad()
    def multistep(
        self,
        noise: Tensor,
        prompt: Prompt,
        num_steps: int,
        guidance_scale: float = 1.0,
        controls: Controls | None = None,
    ) -> Tensor:
        """The teacher's deterministic sampling, noise to x0 [B, C, h, w]; controls go through its own branches."""
        scheduler = self.make_sampler(num_steps, noise.device)
        empty = self.empty_prompt(len(noise))
        x_t = noise
        for timestep in scheduler.timesteps:
            now = timestep.expand(len(noise))
            output = self.teacher.network(x_t, now, prompt, controls or {}).float()
            if guidance_scale != 1:
                free = self.teacher.network(x_t, now, empty, controls or {}).float()
                output = self.guide(output, free, guidance_scale)
            x_t = scheduler.step(output, timestep, x_t).prev_sample
        return x_t

    def _merged(self, denoiser: DiffusionDenoiser) -> DiffusionDenoiser:
        """A denoiser whose backbone has no LoRA layers beside it: itself, or a copy with them merged in float32."""
        if not any(isinstance(module, BaseTunerLayer) for module in denoiser.backbone.modules()):
            return denoiser
        backbone = copy.deepcopy(denoiser.backbone)
        bring_back(backbone, next(denoiser.parameters()).device)
        hold([backbone], torch.float32)
        self.merge_lora(backbone)
        return self.denoiser_class(backbone, denoiser.schedule, denoiser.prediction)

    def _part_modules(self) -> Iterable[nn.Module]:
        return [part for part in self.parts.values() if isinstance(part, nn.Module)]
