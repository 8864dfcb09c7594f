"""What a family says of itself, with what most of them say; `Family` does the rest with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from peft import LoraConfig
from torch import Tensor, nn

from jdmctl.diffusion.schedule import NetworkSchedule
from jdmctl.errors import BadInputError
from jdmctl.families.base import DiffusionDenoiser
from jdmctl.families.codec import LatentCodec
from jdmctl.families.folders import load_component, read_config, require_pipeline
from jdmctl.families.prompts import repeat
from jdmctl.families.schedulers import ddim, discrete_schedule, one_step
from jdmctl.types import Codec, Prompt


class FamilyHooks:
    """Class attributes for what is only named, methods for what is done in a family's own way."""

    name: ClassVar[str]
    pipelines: ClassVar[tuple[str, ...]]  # classes of pipeline folders that are accepted
    pipeline_class: Any  # the diffusers class that a student is saved as
    pipeline_options: ClassVar[Mapping[str, Any]] = {}  # of that class, beside its parts
    backbone_class: ClassVar[Any]
    subfolder: ClassVar[str]  # of the backbone: unet, transformer
    denoiser_class: ClassVar[type[DiffusionDenoiser]]
    part_classes: ClassVar[Mapping[str, Any]]  # subfolder -> class; those with weights are frozen
    must_agree: ClassVar[tuple[str, ...]]  # keys of the backbone's config that fit a student to its teacher
    authors_keys: ClassVar[tuple[str, ...]] = ()  # parts of tensors' names that only files in the authors' keys have
    lora_targets: ClassVar[tuple[str, ...]]
    layout: ClassVar[torch.memory_format] = torch.channels_last  # of weights; video VAEs cannot have this one
    any_aspect: ClassVar[bool] = False  # pictures may differ in shape: what tells a backbone their size follows x_t
    encodes_conditions: ClassVar[bool] = False  # control branches are shown latents
    tiny_decoder: ClassVar[str] = ""  # a published AutoencoderTiny for its latents
    index_file: ClassVar[str] = "model_index.json"  # a folder with it holds a whole teacher or student

    given_px: int | None = None  # side of pictures, where it is not the one that the student's files say
    codec: Any  # a Codec; the families here have a `vae` in it
    teacher: DiffusionDenoiser
    student: DiffusionDenoiser
    parts: dict[str, Any]  # components of the pipeline that both share, by their names in it
    sampler_config: Mapping[str, Any]
    student_config: Mapping[str, Any]

    def encode_prompt(self, texts: Sequence[str]) -> Prompt:
        """What the backbone is told by texts; only this family looks inside."""
        raise NotImplementedError

    def cut_off(self, text: str) -> str:
        """The end of a text that `encode_prompt` leaves out without a word, "" for none: diffusers tells of its own."""
        return ""

    def new_branch(self, denoiser: DiffusionDenoiser) -> nn.Module:
        """A control branch for a denoiser that adds nothing yet."""
        raise NotImplementedError

    def light_branch(self, denoiser: DiffusionDenoiser, kind: str, rank: int) -> nn.Module:
        """A branch of another kind that adds nothing yet. Raises BadInputError if this family has none such."""
        raise BadInputError(
            f"the family {self.name} has no control branch of the kind {kind}",
            hint="set the control's branch: controlnet",
        )

    def train_branch(self, branch: nn.Module) -> None:
        """Let gradients reach what is trained of a branch."""
        branch.requires_grad_(True)

    def load_branch(self, source: str | Path, denoiser: DiffusionDenoiser) -> nn.Module:
        """A saved branch. Raises ConditionMismatchError if it does not fit the denoiser."""
        raise NotImplementedError

    @property
    def latent_channels(self) -> int:
        return self.student.backbone.config.in_channels

    @property
    def latent_side(self) -> int:
        """Rows and columns of the latents that the student's files say."""
        return self.student.backbone.config.sample_size

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """C, h, w."""
        side = self.given_px // self.pixels_per_latent if self.given_px else self.latent_side
        return self.latent_channels, side, side

    @property
    def pixels_per_latent(self) -> int:
        return 2 ** (len(self.parts["vae"].config.block_out_channels) - 1)

    @property
    def side_step_px(self) -> int:
        """Height and width of a picture are multiples of it."""
        return self.pixels_per_latent

    def make_codec(self) -> Codec:
        return LatentCodec(self.parts["vae"])

    @property
    def image_encoder(self) -> nn.Module | None:
        """The part of the codec that only makes latents, if it has one."""
        return getattr(self.parts.get("vae"), "encoder", None)

    def equip(self, denoiser: Any) -> None:
        """Give a denoiser what it needs of the family beside its backbone."""

    def empty_prompt(self, size: int) -> Prompt:
        """What guidance leads away from, for a batch of that size."""
        return repeat(self.encode_prompt([""]), size)

    @classmethod
    def require_folder(cls, folder: str | Path, role: str) -> None:
        """Raises BadInputError if a folder does not hold a pipeline of this family."""
        require_pipeline(folder, role, cls.pipelines)

    @classmethod
    def load_backbone(cls, folder: str | Path) -> nn.Module:
        return load_component(cls.backbone_class, folder, cls.subfolder)

    @classmethod
    def load_parts(cls, folder: str | Path) -> dict[str, Any]:
        return {name: load_component(kind, folder, name) for name, kind in cls.part_classes.items()}

    @classmethod
    def read_scheduler(cls, folder: str | Path) -> Mapping[str, Any]:
        """What the config file of a folder's scheduler says."""
        return read_config(folder, "scheduler", "scheduler_config.json")

    @classmethod
    def make_schedule(cls, config: Mapping[str, Any], backbone: nn.Module) -> tuple[NetworkSchedule, str]:
        """The schedule and the prediction type that a scheduler's config means for a backbone."""
        return discrete_schedule(config)

    @classmethod
    def noise_scale(cls, config: Mapping[str, Any]) -> float:
        """What a scheduler makes of N(0, 1) noise before a network sees it in a first and only step."""
        return 1.0

    def make_sampler(self, num_steps: int, device: torch.device) -> Any:
        """A diffusers scheduler with the teacher's own deterministic steps set: DDIM at trailing timesteps."""
        return ddim(self.sampler_config, num_steps, device)

    @staticmethod
    def guide(output: Tensor, free: Tensor, scale: float) -> Tensor:
        """Classifier-free guidance of the network's output, as the family's own pipeline has it."""
        return free + scale * (output - free)

    def one_step_scheduler(self) -> Any:
        """The diffusers scheduler that a saved student draws with, in one step from pure noise."""
        return one_step(self.student_config, self.student.prediction, self.student.noise_scale)

    @property
    def pipeline_timestep(self) -> float:
        """Of the student's one call, as `one_step_scheduler` counts it."""
        return round(float(self.student.schedule.timestep(torch.tensor([self.student.student_time]))))

    @property
    def call_options(self) -> dict[str, Any]:
        """Arguments with which its diffusers pipelines draw what the student draws, beside steps and timesteps."""
        size = {"height": self.given_px, "width": self.given_px} if self.given_px else {}
        return {"guidance_scale": 1.0} | size

    @classmethod
    def checkpoint_config(cls, names: Sequence[str]) -> Mapping[str, Any]:
        """What the names of the tensors of a file in the authors' keys tell of its backbone's config."""
        return {}

    @classmethod
    def lora_layers(cls, weights: Mapping[str, Tensor], backbone: Any) -> tuple[Mapping[str, Tensor], Any]:
        """The tensors of a LoRA file in diffusers' keys, and their alphas if these stand apart."""
        found = cls.pipeline_class.lora_state_dict(dict(weights))
        return found if isinstance(found, tuple) else (found, None)

    @classmethod
    def put_lora(
        cls,
        backbone: Any,
        layers: Mapping[str, Tensor],
        alphas: Mapping[str, float] | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> None:
        """Give a backbone the LoRA layers of a file, in diffusers' keys; `metadata` is the LoraConfig in its header."""
        told = dict(metadata) if metadata else None
        backbone.load_lora_adapter(dict(layers), prefix=cls.subfolder, network_alphas=alphas, metadata=told)

    @classmethod
    def merge_lora(cls, backbone: Any) -> None:
        """Add a backbone's LoRA layers to its weights."""
        backbone.fuse_lora()
        backbone.unload_lora()

    def add_lora(self, backbone: Any, rank: int) -> None:
        """Give a backbone LoRA layers that train."""
        backbone.add_adapter(LoraConfig(r=rank, lora_alpha=rank, target_modules=list(self.lora_targets)))
