"""A one-step student is taken in the forms that students are published in, and what does not fit is named."""

import copy
import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline, LCMScheduler, StableDiffusionXLPipeline
from diffusers.utils import convert_state_dict_to_kohya
from safetensors.torch import load_file, save_file
from tiny_pipelines import FAMILIES

from jdmctl.errors import BadInputError, JdmError, MissingWeightsError, RecipeError
from jdmctl.families.names import family_class
from jdmctl.recipe_files import parse_recipe

PROMPTS = ["a red cone", "a blue cube on a tan floor"]
UNETS = [tiny for tiny in FAMILIES if tiny.family in ("stable_diffusion", "sdxl")]


@pytest.fixture(scope="module", params=UNETS, ids=str)
def tiny(request):
    return request.param


@pytest.fixture(scope="module")
def kind(tiny):
    return family_class(tiny.family)


@pytest.fixture(scope="module")
def folder(tiny, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp(tiny.family)
    tiny.write(path)
    return path


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "unet" / "diffusion_pytorch_model.safetensors")


def noise_of(family):
    return torch.randn(2, *family.latent_shape, generator=torch.Generator().manual_seed(0))


def drawn(family):
    with torch.no_grad():
        return family.student.generate(noise_of(family), family.encode_prompt(PROMPTS))


def same_weights(family, expected: dict[str, torch.Tensor], within: float = 0.0) -> None:
    found = family.student.backbone.state_dict()
    assert found.keys() == expected.keys()
    assert max((found[name] - value).abs().max().item() for name, value in expected.items()) <= within


def test_a_unet_s_folder(kind, folder):
    family = kind.load(folder / "teacher", folder / "student" / "unet")
    same_weights(family, weights(folder / "student"))
    assert family.student.prediction == family.teacher.prediction


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_unet_s_weights_alone(kind, folder, tmp_path, dtype):
    """DMD2's layout; in half precision they are rounded once. The teacher keeps its own."""
    given = {name: value.to(dtype) for name, value in weights(folder / "student").items()}
    save_file(given, tmp_path / "unet.safetensors")
    family = kind.load(folder / "teacher", tmp_path / "unet.safetensors")
    same_weights(family, {name: value.float() for name, value in given.items()})
    teacher = family.teacher.backbone.state_dict()
    assert all(torch.equal(teacher[name], value) for name, value in weights(folder / "teacher").items())


def test_dmd2_s_one_step_is_lcm_s_at_timestep_399(tiny, kind, folder, tmp_path):
    """As the authors call it: a UNet's weights, LCMScheduler, timesteps=[399]."""
    save_file(weights(folder / "student"), tmp_path / "unet.safetensors")
    family = kind.load(folder / "teacher", tmp_path / "unet.safetensors", student_timestep=399)
    pipe = DiffusionPipeline.from_pretrained(folder / "teacher", safety_checker=None)
    pipe.unet.load_state_dict(load_file(tmp_path / "unet.safetensors"))
    pipe.scheduler = LCMScheduler.from_config(pipe.scheduler.config)
    pipe.set_progress_bar_config(disable=True)
    theirs = pipe(PROMPTS, latents=noise_of(family), timesteps=[399], guidance_scale=1.0, output_type="latent").images
    if tiny.family == "stable_diffusion":
        torch.testing.assert_close(family.codec.decode(drawn(family)), family.codec.decode(theirs), atol=1e-4, rtol=0)
    torch.testing.assert_close(drawn(family), theirs, atol=1e-4, rtol=1e-4)


def test_a_prediction_that_the_files_do_not_tell(kind, folder, tmp_path):
    """One-step SDXL-Lightning: the network's output is x0 itself."""
    save_file(weights(folder / "student"), tmp_path / "x0.safetensors")
    family = kind.load(folder / "teacher", tmp_path / "x0.safetensors", student_prediction="sample")
    prompt, noise = family.encode_prompt(PROMPTS), noise_of(family)
    with torch.no_grad():
        raw = family.student.network(noise, torch.tensor([999, 999]), prompt, {})
    assert torch.equal(drawn(family), raw) and family.teacher.prediction != "sample"
    family.save_student(tmp_path / "saved")
    assert torch.equal(drawn(kind.load(folder / "teacher", tmp_path / "saved")), drawn(family))


def lora_of(kind, folder) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """A LoRA of the teacher's UNet, its tensors in peft's keys, and what the teacher draws with it."""
    family = kind.load(folder / "teacher", folder / "teacher")
    torch.manual_seed(0)
    family.add_student_lora(2)
    for name, parameter in family.student.backbone.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, 0, 0.05)
    from peft import get_peft_model_state_dict

    return get_peft_model_state_dict(family.student.backbone), drawn(family)


@pytest.mark.parametrize("keys", ["diffusers", "kohya"])
def test_a_lora_on_the_teacher(kind, folder, tmp_path, keys):
    layers, expected = lora_of(kind, folder)
    layers = {f"unet.{name}": value.contiguous() for name, value in layers.items()}
    if keys == "kohya":
        layers = convert_state_dict_to_kohya(layers)
        layers = {name.replace("unet.", "lora_unet_", 1): value for name, value in layers.items()}
        assert any(name.endswith(".alpha") for name in layers) and all("lora_unet_" in name for name in layers)
    save_file(layers, tmp_path / "lora.safetensors")
    family = kind.load(folder / "teacher", tmp_path)  # a folder that holds this file alone
    torch.testing.assert_close(drawn(family), expected, atol=1e-4, rtol=1e-4)
    family.add_student_lora(2)  # as adapting it further would
    torch.testing.assert_close(drawn(family), expected, atol=1e-4, rtol=1e-4)


# What the authors of Stable Diffusion call a UNet's layers, for one layer in each of two blocks
LDM_BLOCKS = {
    r"down_blocks.0.resnets.0": "input_blocks.1.0", r"down_blocks.0.downsamplers.0.conv": "input_blocks.2.0.op",
    r"down_blocks.1.resnets.0": "input_blocks.3.0", r"down_blocks.1.attentions.0": "input_blocks.3.1",
    r"mid_block.resnets.0": "middle_block.0", r"mid_block.attentions.0": "middle_block.1",
    r"mid_block.resnets.1": "middle_block.2",
    r"up_blocks.0.resnets.0": "output_blocks.0.0", r"up_blocks.0.attentions.0": "output_blocks.0.1",
    r"up_blocks.0.resnets.1": "output_blocks.1.0", r"up_blocks.0.attentions.1": "output_blocks.1.1",
    r"up_blocks.0.upsamplers.0.conv": "output_blocks.1.2.conv",
    r"up_blocks.1.resnets.0": "output_blocks.2.0", r"up_blocks.1.resnets.1": "output_blocks.3.0",
    r"time_embedding.linear_1": "time_embed.0", r"time_embedding.linear_2": "time_embed.2",
    r"add_embedding.linear_1": "label_emb.0.0", r"add_embedding.linear_2": "label_emb.0.2",
    r"conv_in": "input_blocks.0.0", r"conv_norm_out": "out.0", r"conv_out": "out.2",
}  # fmt: skip
LDM_RESNET = {
    "norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1", "norm2": "out_layers.0",
    "conv2": "out_layers.3", "conv_shortcut": "skip_connection",
}  # fmt: skip


def in_ldm_keys(name: str) -> str:
    block = next(block for block in LDM_BLOCKS if name.startswith(f"{block}."))
    rest = name.removeprefix(block)
    if "resnets" in block:
        rest = re.sub(r"^\.(\w+)", lambda found: f".{LDM_RESNET[found[1]]}", rest)
    return f"model.diffusion_model.{LDM_BLOCKS[block]}{rest}"


def test_a_whole_checkpoint_in_its_authors_keys(kind, folder, tmp_path):
    given = {in_ldm_keys(name): value for name, value in weights(folder / "student").items()}
    given["first_stage_model.decoder.conv_in.weight"] = torch.zeros(1)  # the teacher's VAE is used
    save_file(given, tmp_path / "model.safetensors")
    family = kind.load(folder / "teacher", tmp_path / "model.safetensors")
    same_weights(family, weights(folder / "student"))
    del given["model.diffusion_model.middle_block.0.in_layers.2.weight"]
    save_file(given, tmp_path / "cut.safetensors")
    with pytest.raises(BadInputError, match="does not fit the teacher"):
        kind.load(folder / "teacher", tmp_path / "cut.safetensors")


def test_a_lora_that_does_not_fit(kind, folder, tmp_path):
    layers, _ = lora_of(kind, folder)
    layers = {f"unet.{name}": torch.zeros(*value.shape[:-1], value.shape[-1] + 1) for name, value in layers.items()}
    save_file(layers, tmp_path / "lora.safetensors")
    with pytest.raises(BadInputError, match="is a LoRA that does not fit the teacher"):
        kind.load(folder / "teacher", tmp_path / "lora.safetensors")
    save_file({"text_encoder.x.lora_A.weight": torch.zeros(2, 2)}, tmp_path / "text.safetensors")
    with pytest.raises(BadInputError, match=r"0 tensors for the unet"):
        kind.load(folder / "teacher", tmp_path / "text.safetensors")


def test_weights_of_another_backbone_are_named(kind, folder, tmp_path):
    given = weights(folder / "student")
    given["conv_out.bias"] = torch.zeros(9)
    given["something.else"] = given.pop("conv_in.weight")
    save_file(given, tmp_path / "unet.safetensors")
    with pytest.raises(BadInputError) as caught:
        kind.load(folder / "teacher", tmp_path / "unet.safetensors")
    for found in ("1 (such as conv_in.weight) missing", "1 (such as something.else) unknown",
                  "1 (such as conv_out.bias) of another shape"):  # fmt: skip
        assert found in str(caught.value)


def test_a_folder_with_several_files_asks_for_one(kind, folder, tmp_path):
    for name in ("a", "b"):
        save_file(weights(folder / "student"), tmp_path / f"{name}.safetensors")
    with pytest.raises(BadInputError, match=r"2 files of weights: a.safetensors, b.safetensors"):
        kind.load(folder / "teacher", tmp_path)


def test_a_pickle_is_refused(kind, folder, tmp_path):
    torch.save(weights(folder / "student"), tmp_path / "unet.bin")
    for source in (tmp_path, tmp_path / "unet.bin"):
        with pytest.raises(MissingWeightsError, match="pickle"):
            kind.load(folder / "teacher", source)


def test_what_is_nowhere(kind, folder):
    with pytest.raises(MissingWeightsError, match="no file owner/name/file.safetensors"):
        kind.load(folder / "teacher", "owner/name/file.safetensors")


def test_half_precision_files_are_found(kind, folder, tmp_path):
    """A teacher of which there are only *.fp16.safetensors."""
    teacher = shutil.copytree(folder / "teacher", tmp_path / "teacher")
    for file in [*teacher.rglob("*.safetensors")]:
        half = {name: value.half() if value.is_floating_point() else value for name, value in load_file(file).items()}
        save_file(half, file.with_suffix(".fp16.safetensors"), metadata={"format": "pt"})
        file.unlink()
    family = kind.load(teacher, folder / "student")
    assert next(family.teacher.parameters()).dtype == torch.float32
    same_weights(family, weights(folder / "student"))


def test_a_unet_that_is_told_guidance_is_refused(kind, folder, tmp_path):
    """The full weights of a Latent Consistency Model."""
    unet = kind.load_backbone(folder / "student")
    type(unet).from_config(unet.config, time_cond_proj_dim=8).save_pretrained(tmp_path / "unet")
    with pytest.raises(BadInputError, match="time_cond_proj_dim"):
        kind.load(folder / "teacher", tmp_path / "unet")


def test_what_a_recipe_may_say_of_its_student():
    values = {"name": "x", "controls": [{"name": "canny"}], "data": {"source": "tiny"},
              "model": {"teacher": "a", "student": "b"}}  # fmt: skip
    model = parse_recipe(copy.deepcopy(values), ["model.student_timestep=399", "model.student_prediction=sample"]).model
    assert (model.student_timestep, model.student_prediction) == (399, "sample")
    assert parse_recipe({**values, "model": model.model_dump(mode="json")}).model == model
    for changes, problem in (
        (["model.student_timestep=399", "model.student_time=0.4"], "give one of them"),
        (["model.student_prediction=x0"], "must be epsilon or v_prediction or flow_prediction or sample"),
        (["method=redistill", "model.student_prediction=sample"], "leave out student_prediction"),
        (["model.family=sdx"], "did you mean 'sdxl'"),
    ):
        with pytest.raises(RecipeError, match=problem):
            parse_recipe(copy.deepcopy(values), changes)


def test_a_timestep_that_is_not_there(kind, folder):
    with pytest.raises(JdmError, match="no timestep 1000"):
        kind.load(folder / "teacher", folder / "student", student_timestep=1000)


def test_a_student_of_another_family_is_named(kind, folder, tmp_path):
    other = shutil.copytree(folder / "student", tmp_path / "other")
    index = json.loads((other / "model_index.json").read_text()) | {"_class_name": "FluxPipeline"}
    (other / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(BadInputError, match="is a FluxPipeline"):
        kind.load(folder / "teacher", other)


def test_sdxl_s_empty_prompt_is_what_its_pipeline_says(tmp_path):
    """Zeros, or the encoding of no words."""
    tiny = next(tiny for tiny in UNETS if tiny.family == "sdxl")
    tiny.write(tmp_path)
    kind = family_class("sdxl")
    assert not kind.load(tmp_path / "teacher", tmp_path / "student").empty_prompt(2)["embeds"].any()
    pipe = StableDiffusionXLPipeline.from_pretrained(tmp_path / "teacher", force_zeros_for_empty_prompt=False)
    pipe.save_pretrained(tmp_path / "words")
    family = kind.load(tmp_path / "words", tmp_path / "student")
    assert torch.equal(family.empty_prompt(1)["embeds"], family.encode_prompt([""])["embeds"])
