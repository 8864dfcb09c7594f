"""open_clip's names for CLIP weights, translated into those of transformers' CLIPModel."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

State = Mapping[str, Tensor]

# HPSv2's, as open_clip's configuration says. How many heads there are, and which GELU (the exact one, where OpenAI's
# models have a quick one), no shape of a weight tells: so no other size is taken for it.
VIT_H_14 = {
    "width": 1280, "layers": 32, "heads": 16, "patch": 14, "px": 224, "dimensions": 1024,
    "text_width": 1024, "text_layers": 24, "text_heads": 16, "vocabulary": 49408, "context": 77,
}  # fmt: skip

_ONE_TO_ONE = {
    "logit_scale": "logit_scale",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
}
_NORMS = {
    "ln_final": "text_model.final_layer_norm",
    "visual.ln_pre": "vision_model.pre_layrnorm",  # transformers' own spelling
    "visual.ln_post": "vision_model.post_layernorm",
}
_TRANSPOSED = {"text_projection": "text_projection.weight", "visual.proj": "visual_projection.weight"}
_IN_A_BLOCK = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
_BLOCKS = {
    "visual.transformer.resblocks.": "vision_model.encoder.layers.",
    "transformer.resblocks.": "text_model.encoder.layers.",
}
_NOT_WEIGHTS = ("attn_mask", "visual.transformer.attn_mask")


def to_clip_model(state: State) -> tuple[dict[str, Tensor], list[str]]:
    """The weights under transformers' names, and the names that were not known.

    open_clip multiplies by its projections from the right and keeps query, key and value in one matrix,
    in this order.
    """
    renamed: dict[str, Tensor] = {}
    unknown: list[str] = []
    for name, value in state.items():
        stem, _, kind = name.rpartition(".")
        if name in _ONE_TO_ONE:
            renamed[_ONE_TO_ONE[name]] = value
        elif name in _TRANSPOSED:
            renamed[_TRANSPOSED[name]] = value.T.contiguous()
        elif stem in _NORMS:
            renamed[f"{_NORMS[stem]}.{kind}"] = value
        elif block := _block(name, value):
            renamed |= block
        elif name not in _NOT_WEIGHTS:
            unknown.append(name)
    return renamed, unknown


def clip_config(size: Mapping[str, int]) -> dict[str, Any]:
    """CLIPModel's config.json for a model of open_clip with the numbers that VIT_H_14 has, and the exact GELU."""
    return {
        "model_type": "clip",
        "architectures": ["CLIPModel"],
        "projection_dim": size["dimensions"],
        "vision_config": {
            "hidden_size": size["width"],
            "intermediate_size": 4 * size["width"],
            "num_hidden_layers": size["layers"],
            "num_attention_heads": size["heads"],
            "patch_size": size["patch"],
            "image_size": size["px"],
            "projection_dim": size["dimensions"],
            "hidden_act": "gelu",
        },
        "text_config": {
            "vocab_size": size["vocabulary"],
            "hidden_size": size["text_width"],
            "intermediate_size": 4 * size["text_width"],
            "num_hidden_layers": size["text_layers"],
            "num_attention_heads": size["text_heads"],
            "max_position_embeddings": size["context"],
            "projection_dim": size["dimensions"],
            "hidden_act": "gelu",
            "bos_token_id": size["vocabulary"] - 2,
            "eos_token_id": size["vocabulary"] - 1,  # where open_clip reads the text: the largest number in it
        },
    }


def _block(name: str, value: Tensor) -> dict[str, Tensor]:
    for prefix, target in _BLOCKS.items():
        if not name.startswith(prefix):
            continue
        number, _, rest = name.removeprefix(prefix).partition(".")
        stem, _, kind = rest.rpartition(".")
        layer = f"{target}{number}."
        if stem in _IN_A_BLOCK:
            return {f"{layer}{_IN_A_BLOCK[stem]}.{kind}": value}
        if rest in ("attn.in_proj_weight", "attn.in_proj_bias") and value.ndim and len(value) % 3 == 0:
            kind = rest.rpartition("_")[2]
            parts = zip(("q_proj", "k_proj", "v_proj"), value.chunk(3), strict=True)
            return {f"{layer}self_attn.{part}.{kind}": chunk.clone() for part, chunk in parts}
    return {}
