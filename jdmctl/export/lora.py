"""A student's LoRA as one file for other tools: a UNet's in kohya's keys, a transformer's in diffusers' own.

kohya's tools name a transformer's layers after the original code, where one layer makes queries, keys and values.
Nothing here has those names: diffusers' converter (`convert_state_dict_to_kohya`) knows a UNet's alone. ComfyUI reads
both.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

_UNET = "UNet2DConditionModel"
# Whose layers ComfyUI finds by `transformer.` and diffusers' names: comfy/lora.py, model_lora_keys_unet.
_IN_COMFYUI = (
    "FluxTransformer2DModel",
    "PixArtTransformer2DModel",
    "QwenImageTransformer2DModel",
    "SD3Transformer2DModel",
    "ZImageTransformer2DModel",
)


def problems(backbone: str, tool: str) -> list[str]:
    """Why a tool (comfyui, a1111, kohya) would not read a LoRA of this diffusers class; [] if it does."""
    if backbone == _UNET or (tool == "comfyui" and backbone in _IN_COMFYUI):
        return []
    if tool == "comfyui":
        return [f"it is of a {backbone}, and ComfyUI knows no diffusers names of such a network's layers"]
    other = "; --format comfyui writes what ComfyUI reads" if backbone in _IN_COMFYUI else ""
    return [f"it is of a {backbone}, and only a UNet's layers are given names in kohya's format here{other}"]


def single_file(layers: Mapping[str, Tensor], backbone: str) -> dict[str, Tensor]:
    """The layers of a LoRA, in diffusers' keys, as `problems` says that tools read them."""
    return kohya(layers) if backbone == _UNET else dict(layers)


def kohya(layers: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A UNet's layers (unet.*.lora_A.weight) under kohya's names: lora_unet_*.lora_down.weight and .alpha.

    alpha is the rank: jdmctl trains with factor alpha / rank = 1, which is also what is taken without an alpha.
    """
    from diffusers.utils import convert_state_dict_to_kohya

    renamed = convert_state_dict_to_kohya(dict(layers))
    return {key: value.float() if key.endswith(".alpha") else value for key, value in renamed.items()}
