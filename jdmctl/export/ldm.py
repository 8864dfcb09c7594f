"""A ControlNet as one file in the key layout of the original code, which ComfyUI and A1111 load.

Zhang et al. 2023 (arXiv:2302.05543) published theirs with the keys of `cldm.ControlNet` under `control_model.`: the
encoder of the UNet as one row of `input_blocks`, a `zero_convs` entry for each of them, `input_hint_block` for the
condition. Sizes are read off the weights by these tools; what they do not read off, they assume (`problems`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

Value = TypeVar("Value")

PREFIX = "control_model."
HINT_WIDTHS = (16, 32, 96, 256)  # of input_hint_block, which halves a condition three times
_WITHIN_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
# What cldm.ControlNet fixes in its code: nothing in a file can say otherwise.
_FIXED = {
    "act_fn": "silu",
    "class_embed_type": None,
    "controlnet_conditioning_channel_order": "rgb",
    "downsample_padding": 1,
    "encoder_hid_dim_type": None,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "global_pool_conditions": False,
    "norm_eps": 1e-5,
    "norm_num_groups": 32,
    "only_cross_attention": False,
    "resnet_time_scale_shift": "default",
}


def single_file(weights: Mapping[str, Value], config: Mapping[str, Any]) -> dict[str, Value]:
    """The weights of a diffusers `ControlNetModel` under the original's names; `config` is its config.json.

    Raises:
        KeyError: the layout has no place for one of them.
    """
    places = _places(config)
    return {PREFIX + _rename(key, places): value for key, value in weights.items()}


def problems(config: Mapping[str, Any], tool: str) -> list[str]:
    """Why a ControlNet with this config.json would not be the same network in a tool (comfyui, a1111); [] if it is.

    ComfyUI gives a network 8 heads if it has SD 1.x's sizes, else one for each 64 channels. A1111's sd-webui-controlnet
    knows two networks: without label_emb it has SD 1.x's widths and 8 heads, with it SDXL's. (ComfyUI
    comfy/model_detection.py and supported_models.py; sd-webui-controlnet scripts/controlnet_model_guess.py.)
    """
    if config.get("_class_name") != "ControlNetModel":
        return [f"it is a {config.get('_class_name')}, and the layout is that of a UNet's ControlNet"]
    widths, hint = list(config["block_out_channels"]), tuple(config["conditioning_embedding_out_channels"])
    found = []
    if hint != HINT_WIDTHS:
        found.append(
            f"its hint block has widths {_words(hint)} and makes a condition {2 ** (len(hint) - 1)} times smaller; "
            f"that of the layout has {_words(HINT_WIDTHS)}, 8 times"
        )
    found += [
        f"{key} is {config[key]}, the layout has {value}"
        for key, value in _FIXED.items()
        if key in config and config[key] != value
    ]
    if config.get("addition_embed_type") not in (None, "text_time"):
        found.append(f"addition_embed_type is {config['addition_embed_type']}, the layout has SDXL's text_time or none")
    if any(width % widths[0] for width in widths):
        found.append(f"its widths {_words(widths)} are no multiples of the first")
    is_xl = config.get("addition_embed_type") is not None
    if tool == "a1111":
        known = (_SDXL if is_xl else _SD1) | {"layers_per_block": 2}
        found += [
            f"{key} is {_words(config.get(key))}, A1111 takes {_words(value)}"
            for key, value in known.items()
            if _listed(config.get(key), len(widths)) != _listed(value, len(widths))
        ]
    is_sd1 = not is_xl and config["cross_attention_dim"] == 768 and widths[0] == 320
    is_sd1 = is_sd1 and not config.get("use_linear_projection", False)
    eight = is_sd1 if tool == "comfyui" else not is_xl
    heads = _listed(config.get("num_attention_heads") or config["attention_head_dim"], len(widths))
    assumed = [8 if eight else width // 64 for width in widths]
    kinds = [*config["down_block_types"][:-1], config["down_block_types"][-1] + config["mid_block_type"]]
    wrong = [i for i, kind in enumerate(kinds) if "CrossAttn" in kind and heads[i] != assumed[i]]
    if wrong:
        found.append(
            f"it has {_words([heads[i] for i in wrong])} attention heads where {_TOOLS[tool]} assumes "
            f"{_words([assumed[i] for i in wrong])}"
        )
    return found


_TOOLS = {"comfyui": "ComfyUI", "a1111": "A1111"}
_SD1 = {"block_out_channels": [320, 640, 1280, 1280], "transformer_layers_per_block": 1}
_SDXL = {
    "block_out_channels": [320, 640, 1280],
    "transformer_layers_per_block": [1, 2, 10],
    "cross_attention_dim": 2048,
    "projection_class_embeddings_input_dim": 2816,
}


def _places(config: Mapping[str, Any]) -> dict[str, str]:
    """Start of a diffusers key -> start of the original's."""
    blocks, layers = len(config["block_out_channels"]), config["layers_per_block"]
    places = {
        "conv_in": "input_blocks.0.0",
        "time_embedding.linear_1": "time_embed.0",
        "time_embedding.linear_2": "time_embed.2",
        "add_embedding.linear_1": "label_emb.0.0",
        "add_embedding.linear_2": "label_emb.0.2",
        "mid_block.resnets.0": "middle_block.0",
        "mid_block.attentions.0": "middle_block.1",
        "mid_block.resnets.1": "middle_block.2",
        "controlnet_mid_block": "middle_block_out.0",
    }
    place = 1
    for block in range(blocks):
        for layer in range(layers):
            places[f"down_blocks.{block}.resnets.{layer}"] = f"input_blocks.{place}.0"
            places[f"down_blocks.{block}.attentions.{layer}"] = f"input_blocks.{place}.1"
            place += 1
        if block < blocks - 1:
            places[f"down_blocks.{block}.downsamplers.0.conv"] = f"input_blocks.{place}.0.op"
            place += 1
    places |= {f"controlnet_down_blocks.{i}": f"zero_convs.{i}.0" for i in range(place)}
    between = 2 * (len(config["conditioning_embedding_out_channels"]) - 1)
    convolutions = ["conv_in", *(f"blocks.{i}" for i in range(between)), "conv_out"]
    hint = enumerate(convolutions)  # with a SiLU after each but the last, which counts as a layer
    return places | {f"controlnet_cond_embedding.{name}": f"input_hint_block.{2 * i}" for i, name in hint}


def _rename(key: str, places: Mapping[str, str]) -> str:
    parts = key.split(".")
    for length in range(len(parts) - 1, 0, -1):
        start, rest = ".".join(parts[:length]), parts[length:]
        if start in places:
            if ".resnets." in start + ".":
                rest = [_WITHIN_RESNET[rest[0]], *rest[1:]]
            return ".".join([places[start], *rest])
    raise KeyError(key)


def _listed(value: Any, length: int) -> list[Any]:
    return list(value) if isinstance(value, Sequence) else [value] * length


def _words(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, Sequence) else str(value)
