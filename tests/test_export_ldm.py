"""A ControlNet as one file in the original's layout: diffusers' own converter brings back every tensor."""

import json

import pytest
import torch
from diffusers import ControlNetModel
from safetensors.torch import save_file

from jdmctl.export.ldm import HINT_WIDTHS, problems, single_file
from jdmctl.export.plain import read_single_file

SD15 = {
    "block_out_channels": (320, 640, 1280, 1280),
    "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    "cross_attention_dim": 768,
    "attention_head_dim": 8,
}
SD21 = SD15 | {"cross_attention_dim": 1024, "attention_head_dim": (5, 10, 20, 20), "use_linear_projection": True}
SDXL = {
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "cross_attention_dim": 2048,
    "attention_head_dim": (5, 10, 20),
    "transformer_layers_per_block": (1, 2, 10),
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
SMALL = {  # two heads' worth of SD 2.x
    "block_out_channels": (64, 128, 128),
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D", "CrossAttnDownBlock2D"),
    "cross_attention_dim": 16,
    "attention_head_dim": (1, 2, 2),
}


def random_controlnet(folder, **config):
    """Every tensor another: two of them swapped would be seen."""
    torch.manual_seed(0)
    net = ControlNetModel(**config)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.normal_()
    net.save_pretrained(folder)
    return net.state_dict(), json.loads((folder / "config.json").read_text())


def meta_config(**config):
    with torch.device("meta"):
        net = ControlNetModel(**config)
    return net.state_dict(), dict(net.config) | {"_class_name": "ControlNetModel"}


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_diffusers_own_converter_brings_every_tensor_back(tmp_path, layers):
    weights, config = random_controlnet(tmp_path, layers_per_block=layers, **SMALL)
    assert problems(config, "comfyui") == []
    save_file(single_file(weights, config), tmp_path / "single.safetensors")
    again = ControlNetModel.from_single_file(tmp_path / "single.safetensors", config=str(tmp_path)).state_dict()
    assert again.keys() == weights.keys()
    assert all(torch.equal(again[key], weights[key]) for key in weights)


def test_an_sdxl_like_one_comes_back_too_its_label_emb_by_diffusers_table(tmp_path):
    """As the check at the end of an export reads it: diffusers' converter leaves label_emb out for ControlNets, though
    its table names its place."""
    more = {"addition_embed_type": "text_time", "addition_time_embed_dim": 8, "use_linear_projection": True}
    more |= {"projection_class_embeddings_input_dim": 64, "transformer_layers_per_block": (1, 1, 3)}
    weights, config = random_controlnet(tmp_path, **SMALL, **more)
    save_file(single_file(weights, config), tmp_path / "single.safetensors")
    again = read_single_file(tmp_path / "single.safetensors", tmp_path).state_dict()
    assert again.keys() == weights.keys()
    assert all(torch.equal(again[key], weights[key]) for key in weights)


@pytest.mark.parametrize(("sizes", "inputs"), [(SD15, 12), (SD21, 12), (SDXL, 9)])
def test_the_rows_of_the_published_networks(sizes, inputs):
    """SD 1.x and 2.x: conv_in, 4 blocks of 2 layers, 3 downsamplings: 12 inputs. SDXL: 1 + 3 * 2 + 2 = 9. A zero
    convolution each. 8 convolutions of the hint, with a SiLU between: numbers 0, 2, ..., 14."""
    weights, config = meta_config(**sizes)
    keys = single_file(weights, config).keys()
    assert len(keys) == len(weights)

    def numbers(name):
        return {int(key.split(".")[2]) for key in keys if key.startswith(f"control_model.{name}.")}

    assert numbers("input_blocks") == numbers("zero_convs") == set(range(inputs))
    assert numbers("input_hint_block") == set(range(0, 15, 2))
    assert ("control_model.label_emb.0.2.bias" in keys) == (sizes is SDXL)
    assert problems(config, "comfyui") == []


def test_a1111_knows_the_networks_of_sd1_and_sdxl_only():
    """It gives every ControlNet without label_emb 8 heads; SD 2.x has 5, 10 and 20."""
    assert problems(meta_config(**SD15)[1], "a1111") == []
    assert problems(meta_config(**SDXL)[1], "a1111") == []
    assert problems(meta_config(**SD21)[1], "a1111") == [
        "it has 5, 10, 20, 20 attention heads where A1111 assumes 8, 8, 8, 8"
    ]
    assert "block_out_channels is 64, 128, 128" in problems(meta_config(**SMALL)[1], "a1111")[0]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"conditioning_embedding_out_channels": HINT_WIDTHS[:3]}, "4 times smaller"),
        ({"attention_head_dim": 8}, "8, 8 attention heads where ComfyUI assumes 1, 2"),
        ({"norm_num_groups": 16}, "norm_num_groups is 16, the layout has 32"),
        ({"block_out_channels": (64, 96, 128)}, "no multiples"),
        ({"_class_name": "FluxControlNetModel"}, "it is a FluxControlNetModel"),
    ],
)
def test_what_the_layout_cannot_hold_is_told(change, said):
    config = meta_config(**SMALL)[1] | change
    assert any(said in problem for problem in problems(config, "comfyui"))
