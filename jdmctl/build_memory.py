"""What a recipe's memory section makes of a family: what is held in halves, what stays away, what is encoded once."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from jdmctl.data.cache import ConditionCache
from jdmctl.families.codec import CachedCodec
from jdmctl.families.low_precision import hold
from jdmctl.families.names import family_class
from jdmctl.families.offload import offload
from jdmctl.recipe import Recipe
from jdmctl.tinyworld.world import cache_folder
from jdmctl.training.batches import Samples
from jdmctl.training.prompts import PromptCache

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def hold_frozen(recipe: Recipe, family: Any) -> None:
    """Hold the weights that a recipe leaves frozen, of backbones and of the VAE's encoder, as it says, and where."""
    frozen = [family.teacher, *([] if recipe.student_folder == "student" else [family.student])]
    if recipe.memory.frozen_precision != "fp32":
        hold([denoiser.backbone for denoiser in frozen], _DTYPES[recipe.memory.frozen_precision])
    for denoiser in frozen if recipe.memory.offload else []:
        offload(denoiser.backbone)
    if recipe.memory.cache_latents and encoder_may_rest(recipe) and family.image_encoder:
        offload(family.image_encoder)


def encoder_may_rest(recipe: Recipe) -> bool:
    """Whether the VAE's encoder is for new pictures alone: not where branches are shown latents of their conditions."""
    return not (recipe.controls and family_class(recipe.model.family).encodes_conditions)


def cache_prompts(family: Any, samples: Sequence[Samples], device: torch.device) -> None:
    """Encode all that a run asks for, then take the text encoders from the device."""
    empty = family.empty_prompt(1)
    prompts = PromptCache(cache_folder() / "prompts", family.encode_prompt, device)
    prompts.fill(["", *(some.text(index) for some in samples for index in range(len(some)))])
    family.use_prompts(prompts, empty)


@torch.no_grad()
def cache_latents(family: Any) -> None:
    """Encode each picture once, when it is first asked for.

    What the encoder makes of a ramp of grey stands for it in the key.
    """
    encode = encode_alone(family)
    ramp = torch.linspace(0, 1, family.resolution_px).expand(1, 3, family.resolution_px, -1)
    probe = hashlib.sha256(encode(ramp).cpu().numpy().tobytes()).hexdigest()
    kept = ConditionCache(cache_folder() / "latents", encode, "latents", {"vae": probe}, "")
    family.codec = CachedCodec(family.codec, kept)


def encode_alone(family: Any) -> Callable[[Tensor], Tensor]:
    """How pictures [B, 3, H, W] are encoded that are kept: one by one and in float32.

    So no bit depends on a picture's batch or on who asked first.
    """
    codec, device = family.codec, next(family.student.parameters()).device

    def encode(images: Tensor) -> Tensor:
        with torch.autocast(device.type, enabled=False):
            return torch.cat([codec.encode(image.to(device)) for image in images.float().split(1)])

    return encode
