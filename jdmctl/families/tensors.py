"""Which families a file's tensors may be of, by their names and shapes. No weights are read."""

from __future__ import annotations

import re
from collections.abc import Mapping

PIXART = ("pixart_alpha", "pixart_sigma")  # one network, whose latents differ
_PIXART_ALPHA = "resolution_embedder"  # is told a picture's size, as Alpha's is at 1024 px alone
# Part of a tensor's name -> family, the first that is found; UNets are told apart by the width of their text.
_MARKS: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...] = (
    (("noise_refiner.", "cap_embedder."), ("z_image",)),
    (("txt_norm.", "transformer_blocks.0.img_mod"), ("qwen_image",)),
    (("single_transformer_blocks.", "double_blocks."), ("flux",)),
    (("img_mlp.", "txt_mlp."), ("qwen_image",)),
    (("ff.conv_inverted", "mlp.inverted_conv"), ("sana",)),
    (("joint_blocks.", "context_embedder.", "norm1_context"), ("sd3",)),
    (("adaln_single.", "caption_projection."), PIXART),
)
# Of a layer, what has its width at the end of the shape.
_INPUT = r"(?:weight|lora_down\.weight|lora_A(?:\.\w+)?\.weight|lora\.down\.weight)$"
_TEXT_WIDTHS = {768: "stable_diffusion", 1024: "stable_diffusion", 2048: "sdxl"}
_TEXT = re.compile(rf"attn2[._]to_k[._]{_INPUT}")
_PREFIX = r"(?:transformer\.|diffusion_model\.|base_model\.model\.|lora_unet_|lora_transformer_)*"
# One of a LoRA's two matrices: A and `down` take what the layer takes, B and `up` give what it gives.
_LORA = re.compile(rf"(?:unet\.)?{_PREFIX}(?P<layer>.+?)[._]lora[._](?P<side>A|B|down|up)(?:\.\w+)?\.weight")
# A transformer's layers that every family has, as a LoRA of these alone holds them: kind and width -> families.
_LAYER = re.compile(
    rf"{_PREFIX}(?:transformer_blocks|layers)[._](?P<block>\d+)[._]"
    r"(?P<kind>attn[12]?|ff|ff_context|attention|feed_forward)[._]"
    rf"(?:to_[qkv]|to_out[._]0|add_[qkv]_proj|to_add_out|net[._]0[._]proj|qkv|w[13])[._]{_INPUT}"
)
_WIDTHS: dict[tuple[str, int], tuple[str, ...]] = {
    **dict.fromkeys([("attn1", 1152), ("attn2", 1152)], (*PIXART, "sana")),
    ("ff", 1152): PIXART,
    **dict.fromkeys([("attn1", 2240), ("attn2", 2240)], ("sana",)),
    **{(kind, width): ("sd3",) for kind in ("attn", "attn2", "ff", "ff_context") for width in (1536, 2432)},
    ("attn", 3072): ("flux", "qwen_image"),
    **dict.fromkeys([("ff", 3072), ("ff_context", 3072)], ("flux",)),
    **dict.fromkeys([("attention", 3840), ("feed_forward", 3840)], ("z_image",)),
}
_FLUX_BLOCKS = 19  # of two streams; Qwen-Image has 60


def families_of(shapes: Mapping[str, tuple[int, ...]]) -> tuple[tuple[str, ...], str]:
    """The families whose weights or LoRA these tensors may be, and how that shows; none if that does not show."""
    for marks, families in _MARKS:
        for name in shapes:
            if any(mark in name or mark.replace(".", "_") in name for mark in marks):
                is_alpha = families == PIXART and any(_PIXART_ALPHA in other for other in shapes)
                return families[:1] if is_alpha else families, f"it holds {name}"
    if width := text_width(shapes):
        return (_TEXT_WIDTHS[width],), f"its text is {width} wide"
    return _by_layers(shapes)


def fits(shapes: Mapping[str, tuple[int, ...]], backbone: Mapping[str, tuple[int, ...]]) -> bool:
    """Whether these are a backbone's weights, or those of a LoRA on some of its layers, by names and shapes."""
    if not any("lora" in name for name in shapes):
        return bool(shapes) and shapes == backbone
    layers = {name.removesuffix(".weight").replace(".", "_"): shape for name, shape in backbone.items()}
    for name, shape in shapes.items():
        if part := _LORA.fullmatch(name):
            axis = slice(1, 2) if part["side"] in ("A", "down") else slice(1)
            if layers.get(part["layer"].replace(".", "_"), ())[axis] != shape[axis]:
                return False
        elif not name.endswith(".alpha"):
            return False
    return True


def text_width(shapes: Mapping[str, tuple[int, ...]]) -> int | None:
    """The width of a UNet's text, if its tensors tell one of a known family."""
    widths = {shapes[name][-1] for name in shapes if _TEXT.search(name)} & _TEXT_WIDTHS.keys()
    return max(widths) if len({_TEXT_WIDTHS[width] for width in widths}) == 1 else None


def _by_layers(shapes: Mapping[str, tuple[int, ...]]) -> tuple[tuple[str, ...], str]:
    """What all layers have in common, in the table's order."""
    layers = [(found, shape[-1]) for name, shape in shapes.items() if (found := _LAYER.fullmatch(name))]
    told = [_WIDTHS.get((found["kind"], width), ()) for found, width in layers]
    if not told:
        return (), ""
    common = tuple(family for family in told[0] if all(family in families for families in told))
    if common == ("flux", "qwen_image") and any(int(found["block"]) >= _FLUX_BLOCKS for found, _ in layers):
        common = ("qwen_image",)
    first, width = layers[0]
    return common, f"it holds {first.string}, {width} wide"
