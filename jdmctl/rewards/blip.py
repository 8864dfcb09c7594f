"""ImageReward's names for its weights (those of BLIP's code), translated into those of ImageRewardNetwork."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

_VISION = "blip.visual_encoder."
_TEXT = "blip.text_encoder."
_HEAD = "mlp.layers."
_ONE_TO_ONE = {
    "cls_token": "embeddings.class_embedding",
    "pos_embed": "embeddings.position_embedding",
    "patch_embed.proj.weight": "embeddings.patch_embedding.weight",
    "patch_embed.proj.bias": "embeddings.patch_embedding.bias",
    "norm.weight": "post_layernorm.weight",
    "norm.bias": "post_layernorm.bias",
}
_IN_A_BLOCK = {
    "norm1": "layer_norm1",
    "norm2": "layer_norm2",
    "attn.qkv": "self_attn.qkv",  # query, key, value in this order, in both
    "attn.proj": "self_attn.projection",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}
_UNUSED = ("blip.vision_proj.", "blip.text_proj.", "blip.text_encoder.embeddings.position_ids")


def to_imagereward_network(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """The weights under our names, and the names that were not known.

    BLIP's text half is named as transformers'; its contrastive projections take no part in the score.
    """
    renamed: dict[str, Tensor] = {}
    unknown: list[str] = []
    for name, value in state.items():
        target = _target(name)
        if target:
            renamed[target] = value
        elif not name.startswith(_UNUSED):
            unknown.append(name)
    return renamed, unknown


def _target(name: str) -> str:
    if name.startswith(_UNUSED):
        return ""
    if name.startswith(_TEXT):
        return f"text.{name.removeprefix(_TEXT)}"
    if name.startswith(_HEAD):
        return f"head.{name.removeprefix(_HEAD)}"
    if not name.startswith(_VISION):
        return ""
    rest = name.removeprefix(_VISION)
    if rest in _ONE_TO_ONE:
        return f"vision.{_ONE_TO_ONE[rest]}"
    prefix, _, rest = rest.partition(".")
    number, _, rest = rest.partition(".")
    stem, _, kind = rest.rpartition(".")
    if prefix == "blocks" and stem in _IN_A_BLOCK:
        return f"vision.encoder.layers.{number}.{_IN_A_BLOCK[stem]}.{kind}"
    return ""
