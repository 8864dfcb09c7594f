"""A LoRA as one file: in keys that the tool reads, or refused with the reason."""

import json
import re

import pytest
from export_runs import finished_run, run_plain_here
from safetensors.torch import load_file

from jdmctl.export.lora import problems
from jdmctl.families.names import family_class, family_names
from jdmctl.families.standins.write import STAND_INS

_MLP = r"net\.0\.proj|net\.2"
_PIXART = rf"transformer_blocks\.\d+\.(attn[12]\.(to_[qkv]|to_out\.0)|ff\.({_MLP}))|proj_out"
# Layers that ComfyUI finds by `transformer.` and these names: comfy/lora.py and *_to_diffusers of comfy/utils.py.
IN_COMFYUI = {
    "flux": r"(single_)?transformer_blocks\.\d+\.(attn\.(to_[qkv]|add_[qkv]_proj|to_out\.0|to_add_out)"
    rf"|ff(_context)?\.({_MLP})|proj_mlp|proj_out)|proj_out",
    "sd3": r"transformer_blocks\.\d+\.(attn\.(to_[qkv]|add_[qkv]_proj|to_out\.0|to_add_out)|attn2\.(to_[qkv]|to_out\.0)"
    rf"|ff(_context)?\.({_MLP}))|proj_out",
    "pixart_alpha": _PIXART,
    "pixart_sigma": _PIXART,
    # this one under its own modules' names (comfy/ldm/qwen_image/model.py)
    "qwen_image": r"transformer_blocks\.\d+\.(attn\.(to_[qkv]|add_[qkv]_proj|to_out\.0|to_add_out)"
    rf"|(img|txt)_mlp\.({_MLP}))|proj_out",
    "z_image": r"(layers|context_refiner|noise_refiner)\.\d+\.(attention\.(to_[qkv]|to_out\.0)|feed_forward\.w[123])",
}


@pytest.fixture
def run(family, tmp_path):
    """A run that left a LoRA of this family's student."""
    STAND_INS[family].write(tmp_path)
    student = tmp_path / "student"
    model = {"family": family, "teacher": str(tmp_path / "teacher"), "student": str(student)}
    return finished_run(tmp_path / "run", student, "lora", (), model)


@pytest.mark.parametrize("family", IN_COMFYUI)
def test_comfyui_reads_each_layer_of_a_transformer(run, family, tmp_path, jdmctl_command, monkeypatch):
    """By diffusers' keys as they are: kohya's names, which only a UNet's have here, it would not know. diffusers reads
    the file as it does the folder."""
    run_plain_here(monkeypatch)
    code, text, error = jdmctl_command("export", run, "-o", tmp_path / "out", "--format", "comfyui", "--json")
    assert code == 0, error
    record = json.loads(text)
    assert record["largest_difference"].keys() == {"folders", "single files"}
    assert max(record["largest_difference"].values()) <= 1 / 255
    layers = load_file(tmp_path / "out" / "lora.safetensors")
    assert layers.keys() == load_file(run / "student_lora" / "pytorch_lora_weights.safetensors").keys()
    known = re.compile(rf"transformer\.({IN_COMFYUI[family]})\.lora_[AB]\.weight")
    assert not [key for key in layers if not known.fullmatch(key)]
    card = (tmp_path / "out" / "README.md").read_text()
    assert "In ComfyUI: 1 step" in card  # and not in A1111


@pytest.mark.parametrize("family", ["flux", "sana"])
def test_a_lora_that_a_tool_would_not_read_is_refused(run, family, tmp_path, jdmctl_command):
    code, _, error = jdmctl_command(
        "export", run, "-o", tmp_path / "out", "--format", "a1111", "--format", "kohya", "--format", "comfyui"
    )
    assert code == 1 and not (tmp_path / "out").exists()
    told = "it is of a FluxTransformer2DModel, and only a UNet's layers are given names in kohya's format here"
    if family == "flux":
        assert f"a1111, student_lora: {told}" in error and f"kohya, student_lora: {told}" in error
        assert "comfyui, student_lora" not in error and "--format comfyui writes what ComfyUI reads" in error
    else:
        assert "comfyui, student_lora: it is of a SanaTransformer2DModel" in error and "writes what" not in error


def test_every_family_is_told_for_every_tool():
    """UNets are read by all of them; ComfyUI has no network SANA."""
    for name in family_names():
        kind = family_class(name)
        told = {tool: not problems(kind.backbone_class.__name__, tool) for tool in ("comfyui", "a1111", "kohya")}
        is_unet = kind.subfolder == "unet"
        assert told == {"comfyui": name != "sana", "a1111": is_unet, "kohya": is_unet}
