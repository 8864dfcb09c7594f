"""A family of one's own: what jdmctl needs to know of the model in ddpm.py, in one file."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from ddpm import BETAS, CLASSES, DDPM, NUM_LEVELS
from peft import LoraConfig, get_peft_model_state_dict, inject_adapter_in_model, set_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from jdmctl.errors import BadInputError, ConditionMismatchError
from jdmctl.families.base import DiffusionDenoiser, frozen
from jdmctl.families.family import Family
from jdmctl.families.folders import read_config
from jdmctl.types import Controls, Prompt
from jdmctl.weights import require_safetensors

_BRANCH, _LORA = "branch.safetensors", "lora.safetensors"


class PixelCodec:
    """This model has no latents: a picture in [0, 1] and the model's own [-1, 1]."""

    def encode(self, image: Tensor) -> Tensor:
        return image * 2 - 1

    def decode(self, latent: Tensor) -> Tensor:
        return latent / 2 + 0.5


class Branch(nn.Module):
    """A copy of the encoder that sees the condition, behind a convolution of zeros: ControlNet's way
    (Zhang et al. 2023, arXiv:2302.05543)."""

    def __init__(self, encoder: nn.Module, width: int):
        super().__init__()
        self.encoder = copy.deepcopy(encoder)
        self.look = nn.Conv2d(3, 3, 3, padding=1)
        self.say = nn.Conv2d(2 * width, 2 * width, 1)
        for parameter in self.say.parameters():
            nn.init.zeros_(parameter)

    def forward(self, x_t: Tensor, level: Tensor, label: Tensor, condition: Tensor) -> Tensor:
        return self.say(self.encoder(x_t + self.look(condition), level, label))


class SmallDenoiser(DiffusionDenoiser):
    """The model as `denoiser(x_t, t, prompt, controls) -> x0`: the base class makes x0 of what `network` answers."""

    def network(self, x_t: Tensor, timestep: Tensor, prompt: Prompt, controls: Controls) -> Tensor:
        hidden = self.backbone.encoder(x_t, timestep, prompt)
        for name, condition in controls.items():
            said = self.branches[name](x_t, timestep, prompt, condition)
            hidden = hidden + self.control_scales.get(name, 1.0) * said
        return self.backbone.decoder(hidden, x_t)

    # What follows is for a critic, which f-divergences other than reverse KL and the GAN term need.

    def features(self, x_t: Tensor, t: Tensor, prompt: Prompt, controls: Controls | None = None) -> list[Tensor]:
        with frozen(self):
            return [self.backbone.encoder(x_t, self.schedule.timestep(t), prompt)]

    @property
    def feature_channels(self) -> tuple[int, ...]:
        return (2 * self.backbone.width,)

    def summary(self, prompt: Prompt) -> Tensor:
        return nn.functional.one_hot(prompt, len(CLASSES)).float()

    @property
    def summary_width(self) -> int:
        return len(CLASSES)


class SmallDDPM(Family):
    name = "small_ddpm"
    index_file = "config.json"  # a folder with it is a whole model
    denoiser_class = SmallDenoiser
    must_agree = ()
    lora_targets = ("conv1", "conv2", "conv3")

    # --- reading --------------------------------------------------------------------------------

    @classmethod
    def require_folder(cls, folder: str | Path, role: str) -> None:
        found = read_config(folder, None, cls.index_file).get("model")
        if found != "small-ddpm":
            raise BadInputError(f"{role} {folder} is a {found}, no small-ddpm", hint="python ddpm.py FOLDER makes one")

    @classmethod
    def load_backbone(cls, folder: str | Path) -> nn.Module:
        require_safetensors(folder)
        return DDPM.load(folder)

    @classmethod
    def load_parts(cls, folder: str | Path) -> dict[str, Any]:
        return {}  # neither VAE nor text encoder

    @classmethod
    def read_scheduler(cls, folder: str | Path) -> Mapping[str, Any]:
        """The noise schedule, in the words of diffusers' schedulers."""
        return {
            "num_train_timesteps": NUM_LEVELS, "beta_schedule": "linear", "beta_start": BETAS[0], "beta_end": BETAS[1],
            "prediction_type": "epsilon", "clip_sample": False,
        }  # fmt: skip

    # --- what it is told, and what it draws ---------------------------------------------------

    def encode_prompt(self, texts: Sequence[str]) -> Tensor:
        """The first class that a text names, [B]; `nothing` if it names none."""
        named = [[CLASSES.index(word) for word in text.split() if word in CLASSES] for text in texts]
        device = next(self.student.parameters()).device
        return torch.tensor([labels[0] if labels else 0 for labels in named], device=device)

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        size = self.student.backbone.size
        return 3, size, size

    @property
    def pixels_per_latent(self) -> int:
        return 1

    def make_codec(self) -> PixelCodec:
        return PixelCodec()

    # --- what is trained, and how it is kept -----------------------------------------------------

    def new_branch(self, denoiser: DiffusionDenoiser) -> nn.Module:
        return Branch(denoiser.backbone.encoder, denoiser.backbone.width)

    def load_branch(self, source: str | Path, denoiser: DiffusionDenoiser) -> nn.Module:
        branch = self.new_branch(denoiser)
        try:
            branch.load_state_dict(load_file(Path(source, _BRANCH)))
        except (OSError, RuntimeError) as reason:
            raise ConditionMismatchError(f"{source} holds no branch for this model: {reason}") from reason
        return branch

    def save_control_branch(self, name: str, folder: str | Path) -> None:
        _save(self.student.branches[name].state_dict(), folder, _BRANCH)

    def add_lora(self, backbone: nn.Module, rank: int) -> None:
        config = LoraConfig(r=rank, lora_alpha=rank, target_modules=list(self.lora_targets))
        inject_adapter_in_model(config, backbone)

    def save_student_lora(self, folder: str | Path) -> None:
        _save(get_peft_model_state_dict(self.student.backbone), folder, _LORA)

    def load_student_lora(self, folder: str | Path) -> None:
        weights = load_file(Path(folder, _LORA))
        rank = next(value.shape[0] for name, value in weights.items() if "lora_A" in name)
        self.add_lora(self.student.backbone, rank)
        set_peft_model_state_dict(self.student.backbone, weights)

    def save_student(self, folder: str | Path) -> None:
        self.student.backbone.save(folder)


def _save(weights: Mapping[str, Tensor], folder: str | Path, name: str) -> None:
    Path(folder).mkdir(parents=True, exist_ok=True)
    save_file({key: value.contiguous() for key, value in weights.items()}, Path(folder, name))
