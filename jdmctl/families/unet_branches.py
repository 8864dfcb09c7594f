"""Control branches of a UNet: saved ones, and new ones that are lighter than a ControlNet."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import ControlNetModel, T2IAdapter
from peft import LoraConfig
from torch import nn

from jdmctl.errors import BadInputError, ConditionMismatchError
from jdmctl.families.branches import require_fit
from jdmctl.families.folders import load_component, read_config
from jdmctl.families.low_precision import hold
from jdmctl.families.offload import bring_back

_FITS = ("in_channels", "cross_attention_dim", "block_out_channels", "layers_per_block", "conditioning_channels")
# Of one that is told more than the text, as SDXL's are.
_TOLD = ("addition_embed_type", "addition_time_embed_dim", "projection_class_embeddings_input_dim")


class ControlNetLora(ControlNetModel):
    """A ControlNet whose copy of the encoder is the UNet's own weights, in the same memory, with LoRA on them.

    Trained are the LoRA, the eyes (the condition's embedding) and the mouth (the zero convolutions).
    """

    def borrow(self, unet: nn.Module, targets: Sequence[str], rank: int) -> None:
        """Take the weights of the UNet that it was copied from, and get LoRA layers."""
        owned = dict(unet.named_parameters())
        for name in [name for name, _ in self.named_parameters() if not name.startswith("controlnet_")]:
            part, _, own = name.rpartition(".")
            layer = self.get_submodule(part)
            layer.__class__ = type(unet.get_submodule(part))  # held and offloaded like it
            setattr(layer, own, nn.Parameter(owned[name].detach()))
        self.add_adapter(
            LoraConfig(r=rank, lora_alpha=rank, target_modules=list(targets), exclude_modules=r"controlnet_.*")
        )

    def open(self) -> None:
        """Let gradients reach what is trained."""
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(name.startswith("controlnet_") or "lora_" in name)

    def merged(self) -> ControlNetModel:
        """An ordinary ControlNet that says the same."""
        whole: Any = copy.deepcopy(self)
        bring_back(whole, next(self.parameters()).device)
        hold([whole], torch.float32)
        whole.fuse_lora()
        whole.unload_lora()
        plain = ControlNetModel(**{key: value for key, value in self.config.items() if not key.startswith("_")})
        plain.load_state_dict(whole.state_dict())
        return plain


def new_adapter(unet: Any, pixels_per_latent: int) -> T2IAdapter:
    """A T2I-Adapter (Mou et al. 2023, arXiv:2302.08453) for a UNet, that adds nothing yet.

    diffusers adds its maps within blocks with attention, and after blocks without, whose size is then halved: so for a
    UNet that begins with one of those, as SDXL's does, there is the XL form, which begins at half the size.

    Raises:
        BadInputError: a UNet with another order of blocks.
    """
    channels = list(unet.config.block_out_channels)
    attends = ["CrossAttn" in kind for kind in unet.config.down_block_types]
    if all(attends[:-1]):
        form, factor = "full_adapter", pixels_per_latent
    elif all(attends[1:]) and len(attends) <= 3:
        form, factor = "full_adapter_xl", 2 * pixels_per_latent
    else:
        raise BadInputError(
            f"there is no T2I-Adapter for a UNet of {', '.join(unet.config.down_block_types)}",
            hint="set the control's branch: controlnet",
        )
    adapter = T2IAdapter(in_channels=3, channels=channels, downscale_factor=factor, adapter_type=form)
    nn.init.zeros_(adapter.adapter.conv_in.weight)
    for name, parameter in adapter.named_parameters():
        if name.endswith("bias"):
            nn.init.zeros_(parameter)
    return adapter


def load_branch(source: str | Path, unet: Any, pixels_per_latent: int) -> nn.Module:
    """A saved ControlNet or T2I-Adapter.

    Raises:
        ConditionMismatchError: it was made for another UNet or VAE, or is a branch of another kind.
    """
    config = read_config(source, None, "config.json")
    _require_plain(source, config)
    if config.get("_class_name") == T2IAdapter.__name__:
        what, branch = "T2I-Adapter", load_component(T2IAdapter, source, None)
        wanted = new_adapter(unet, pixels_per_latent).config
        found = dict(branch.config)
        if branch.config.adapter_type == "full_adapter_xl":  # a fourth map, as TencentARC's have, goes to the middle
            found["channels"] = list(found["channels"])[: len(wanted.channels)]
        require_fit(what, source, found, wanted, ("in_channels", "channels", "adapter_type"))
        factor, needed = branch.config.downscale_factor, wanted.downscale_factor
    else:
        what, branch = "ControlNet", load_component(ControlNetModel, source, None)
        keys = _FITS if branch.config.addition_embed_type is None else (*_FITS, *_TOLD)
        require_fit(what, source, branch.config, _wanted(unet), keys)
        factor, needed = 2 ** (len(branch.config.conditioning_embedding_out_channels) - 1), pixels_per_latent
    if factor != needed:
        raise ConditionMismatchError(
            f"the {what} at {source} reduces conditions {factor} times, this model's latents need {needed} times",
            hint=f"give a {what} made for the same VAE",
        )
    return branch


def _wanted(unet: Any) -> dict[str, Any]:
    """What a ControlNet's config is to say: it counts the layers of all blocks at once, and sees pictures in colour."""
    layers = unet.config.layers_per_block
    if not isinstance(layers, int) and len(set(layers)) == 1:
        layers = layers[0]
    return {**unet.config, "layers_per_block": layers, "conditioning_channels": 3}


def _require_plain(source: str | Path, config: Mapping[str, Any]) -> None:
    """Of the classes that are read here: diffusers would load others too, and drop what it has no place for."""
    kind = config.get("_class_name")
    if "num_control_type" in config:
        kind = f"{kind}, a union of several controls (num_control_type {config['num_control_type']})"
    elif kind in (ControlNetModel.__name__, T2IAdapter.__name__):
        return
    raise ConditionMismatchError(
        f"the control branch at {source} is a {kind}, which wants another call",
        hint="give a plain ControlNetModel or T2IAdapter of one control, or start from the student (init: student)",
    )
