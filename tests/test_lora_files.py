"""A LoRA's strength is alpha / rank, wherever its file says alpha; a file that names no layer of the backbone is named.

The expected weights are W + alpha / rank B A, which diffusers' own loading gives too where it can read the file.
"""

import json
from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline
from diffusers.utils import convert_state_dict_to_kohya
from peft import get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from tiny_pipelines import FAMILIES
from tiny_transformers import TRANSFORMERS

from jdmctl.errors import BadInputError
from jdmctl.families.lora_files import put_lora_file
from jdmctl.families.names import family_class
from jdmctl.families.stable_diffusion import StableDiffusion

RANK, ALPHA = 2, 8.0
NAME = "pytorch_lora_weights.safetensors"
UNREAD = ("pixart_alpha", "pixart_sigma")  # diffusers loads no LoRA into them
FOLDED = ("qwen_image", "z_image")  # diffusers reads their .alpha in keys of other programs alone


@pytest.fixture(scope="module", params=[*FAMILIES, *TRANSFORMERS], ids=str)
def tiny(request):
    return request.param


@pytest.fixture(scope="module")
def kind(tiny):
    return family_class(tiny.family)


@pytest.fixture(scope="module")
def layers(kind, folder) -> dict[str, torch.Tensor]:
    """Random LoRA layers on all that can have one, in peft's keys without a prefix."""
    backbone = kind.load(folder / "teacher", folder / "teacher")
    torch.manual_seed(0)
    backbone.add_student_lora(RANK)
    found = get_peft_model_state_dict(backbone.student.backbone)
    return {name: 0.1 * torch.randn_like(value).contiguous() for name, value in found.items()}


def merged(kind, folder: Path, layers) -> dict[str, torch.Tensor]:
    """The teacher's weights with alpha / rank B A added."""
    weights = dict(kind.load_backbone(folder / "teacher").state_dict())
    for name in [name for name in layers if ".lora_A." in name]:
        down, up = layers[name], layers[name.replace(".lora_A.", ".lora_B.")]
        place = name.replace(".lora_A.weight", ".weight")
        added = torch.einsum("or...,ri...->oi...", up, down) if up.dim() == down.dim() == 2 else _convolved(up, down)
        weights[place] = weights[place] + ALPHA / RANK * added
    return weights


def _convolved(up, down):
    """[out, r, 1, 1] and [r, in, k, k] as [out, in, k, k]."""
    return torch.einsum("or,rikl->oikl", up[:, :, 0, 0], down)


def write(file: Path, kind, layers, told: str) -> Path:
    """A file that says alpha in diffusers' metadata, or in tensors beside the layers."""
    given, metadata = {f"{kind.subfolder}.{name}": value for name, value in layers.items()}, {"format": "pt"}
    if told == "metadata":
        targets = sorted({name.partition(".lora_")[0] for name in layers})
        values = {"r": RANK, "lora_alpha": ALPHA, "target_modules": targets}
        own = {f"{kind.subfolder}.{key}": value for key, value in values.items()}
        metadata["lora_adapter_metadata"] = json.dumps(own)
    else:
        for name in [*given]:
            given[f"{name.partition('.lora_')[0]}.alpha"] = torch.tensor(ALPHA)
    file.parent.mkdir(exist_ok=True)
    save_file(given, file, metadata=metadata)
    return file


def differs(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> float:
    assert found.keys() == expected.keys()
    return max((found[name] - value).abs().max().item() for name, value in expected.items())


@pytest.mark.parametrize("told", ["metadata", "alpha"])
def test_a_lora_is_as_strong_as_its_file_says(tiny, kind, folder, tmp_path, layers, told):
    if told == "alpha" and tiny.family in FOLDED:
        pytest.skip("such a file has other keys")
    file, expected = write(tmp_path / "lora" / NAME, kind, layers, told), merged(kind, folder, layers)
    student = kind.load(folder / "teacher", file).student.backbone
    assert differs(student.state_dict(), expected) < 1e-5
    other = kind.load(folder / "teacher", folder / "teacher")
    other.load_student_lora(file.parent)
    kind.merge_lora(other.student.backbone)
    assert differs(other.student.backbone.state_dict(), expected) < 1e-5


@pytest.mark.parametrize("told", ["[1]", "1", "null", "{", "[" * 100_000])
def test_metadata_that_is_none_is_told(tiny_folders, tmp_path, told):
    file, backbone = tmp_path / NAME, StableDiffusion.load_backbone(tiny_folders[1])
    name, layer = next((name, layer) for name, layer in backbone.named_modules() if name.endswith("to_q"))
    matrices = {"A": torch.zeros(RANK, layer.in_features), "B": torch.zeros(layer.out_features, RANK)}
    given = {f"unet.{name}.lora_{side}.weight": value for side, value in matrices.items()}
    save_file(given, file, metadata={"lora_adapter_metadata": "{}"})
    put_lora_file(StableDiffusion, file, backbone, "student")
    save_file(given, file, metadata={"lora_adapter_metadata": told})
    with pytest.raises(BadInputError, match="lora_adapter_metadata in its header is no json object") as caught:
        put_lora_file(StableDiffusion, file, StableDiffusion.load_backbone(tiny_folders[1]), "student")
    assert "save it again" in caught.value.hint


def test_that_strength_is_diffusers_own(tiny, kind, folder, tmp_path, layers):
    if tiny.family in UNREAD:
        pytest.skip("diffusers loads no LoRA into it")
    write(tmp_path / NAME, kind, layers, "metadata")
    pipe = DiffusionPipeline.from_pretrained(folder / "teacher")
    pipe.load_lora_weights(tmp_path, weight_name=NAME)
    pipe.fuse_lora()
    pipe.unload_lora_weights()
    theirs = getattr(pipe, kind.subfolder).state_dict()
    assert differs(dict(theirs), merged(kind, folder, layers)) < 1e-5


def test_a_student_s_lora_is_read_in_every_form_of_keys(tiny, kind, folder, tmp_path, layers):
    """kohya's keys are what `jdmctl sample --student-lora` may be given, too; keys of no backbone are told."""
    student = kind.load(folder / "teacher", folder / "teacher")
    save_file(layers, tmp_path / NAME)  # without the backbone's name before them
    with pytest.raises(BadInputError, match=f"does not fit the student: it has 0 tensors for the {kind.subfolder}"):
        student.load_student_lora(tmp_path)
    if kind.subfolder == "unet":
        given = convert_state_dict_to_kohya({f"unet.{name}": value for name, value in layers.items()})
        save_file({name.replace("unet.", "lora_unet_", 1): value for name, value in given.items()}, tmp_path / NAME)
        assert any(name.endswith(".alpha") for name in load_file(tmp_path / NAME))
        student.load_student_lora(tmp_path)
        own = get_peft_model_state_dict(student.student.backbone, adapter_name="default_0")
        assert len(own) == len(layers)
