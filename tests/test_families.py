"""The family's contract, on a small random StableDiffusionPipeline folder."""

import json
import shutil

import pytest
import torch
from diffusers import ControlNetModel, ControlNetUnionModel, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.utils import logging as diffusers_logging
from safetensors.torch import save_file
from test_family_contract import speak
from transformers import CLIPTokenizer, T5Tokenizer

from jdmctl.errors import BadInputError, ConditionMismatchError, MissingWeightsError
from jdmctl.families.folders import load_component
from jdmctl.families.heads import RatioCritic
from jdmctl.families.stable_diffusion import StableDiffusion
from jdmctl.tinyworld import models
from jdmctl.tinyworld.stages.diffusion import pipeline

PROMPTS = ["a red cone", "a blue cube on a tan floor"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    torch.manual_seed(0)
    tokenizer = models.tokenizer(PROMPTS)
    pipe = pipeline(
        models.vae(block_out_channels=(8, 16, 16)), models.text_encoder(tokenizer), tokenizer,
        models.unet(block_out_channels=(16, 32, 32)), models.teacher_scheduler(),
    )  # fmt: skip
    path = tmp_path_factory.mktemp("pipeline") / "teacher"
    pipe.save_pretrained(path)
    return path


@pytest.fixture
def family(folder):
    return StableDiffusion.load(folder, folder)


def noise(family, seed=0):
    return torch.randn(2, *family.latent_shape, generator=torch.Generator().manual_seed(seed))


def test_sizes(family):
    assert family.latent_shape == (4, 16, 16)
    assert family.resolution_px == 64
    assert family.codec.decode(noise(family)).shape == (2, 3, 64, 64)
    assert family.codec.encode(torch.rand(2, 3, 64, 64)).shape == (2, 4, 16, 16)


def test_one_step_equals_the_v_prediction_formula(family):
    """x0 = alpha x_t - sigma v at timestep 999, with x_t the noise itself."""
    prompt, x_t = family.encode_prompt(PROMPTS), noise(family)
    v = family.student.backbone(x_t, 999, encoder_hidden_states=prompt).sample
    alpha_squared = models.teacher_scheduler().alphas_cumprod[999]
    expected = alpha_squared.sqrt() * x_t - (1 - alpha_squared).sqrt() * v
    torch.testing.assert_close(family.student.generate(x_t, prompt), expected, atol=1e-5, rtol=1e-5)


def test_multistep_is_the_diffusers_pipeline(family, folder):
    """The guided DDIM baseline equals StableDiffusionPipeline's own loop."""
    pipe = StableDiffusionPipeline.from_pretrained(folder, safety_checker=None)
    pipe.set_progress_bar_config(disable=True)
    expected = pipe(PROMPTS, latents=noise(family), num_inference_steps=4, guidance_scale=2.0, output_type="latent")
    ours = family.multistep(noise(family), family.encode_prompt(PROMPTS), 4, guidance_scale=2.0)
    torch.testing.assert_close(ours, expected.images, atol=1e-4, rtol=1e-4)


def test_a_new_branch_changes_nothing_and_a_trained_one_does(family):
    prompt, x_t = family.encode_prompt(PROMPTS), noise(family)
    controls = {"canny": torch.rand(2, 3, 64, 64)}
    free = family.student.generate(x_t, prompt)
    branch = family.add_control_branch("canny")
    torch.testing.assert_close(family.student.generate(x_t, prompt, controls), free)
    torch.nn.init.normal_(branch.controlnet_mid_block.weight)
    obeying = family.student.generate(x_t, prompt, controls)
    assert (obeying - free).abs().max() > 1e-3
    family.student.control_scales["canny"] = 0.0
    torch.testing.assert_close(family.student.generate(x_t, prompt, controls), free)


def test_only_the_branch_is_trainable(family):
    assert not family.student.trainable()
    branch = family.add_control_branch("canny")
    assert {id(p) for p in family.student.trainable()} == {id(p) for p in branch.parameters()}
    assert not family.teacher.trainable()


def test_lora_fake_score_starts_as_the_teacher_and_shares_its_storage(family):
    fake = family.make_fake_score("lora", rank=4)
    prompt, x_t, t = family.encode_prompt(PROMPTS), noise(family), torch.tensor([0.3, 0.9])
    torch.testing.assert_close(fake(x_t, t, prompt), family.teacher(x_t, t, prompt), atol=1e-5, rtol=1e-5)
    storage = {p.data_ptr() for p in family.teacher.backbone.parameters()}
    assert storage <= {p.data_ptr() for p in fake.backbone.parameters()}
    trained = fake.trainable()
    assert trained and not storage & {p.data_ptr() for p in trained}


def test_full_fake_score_is_a_separate_copy(family):
    fake = family.make_fake_score("full")
    storage = {p.data_ptr() for p in family.teacher.backbone.parameters()}
    assert not storage & {p.data_ptr() for p in fake.trainable()}
    assert len(fake.trainable()) == len(list(family.teacher.backbone.parameters()))


def test_conditional_fake_score_has_its_own_branch(family):
    family.add_control_branch("canny")
    fake = family.make_fake_score("lora", controls={"canny": "student"})
    assert fake.branches["canny"] is not family.student.branches["canny"]


def test_a_saved_branch_comes_back(family, folder, tmp_path):
    branch = family.add_control_branch("canny")
    torch.nn.init.normal_(branch.controlnet_mid_block.weight)
    family.save_control_branch("canny", tmp_path / "controlnet")
    other = StableDiffusion.load(folder, folder)
    loaded = other.add_control_branch("canny", tmp_path / "controlnet")
    torch.testing.assert_close(loaded.controlnet_mid_block.weight, branch.controlnet_mid_block.weight)


def test_another_pipeline_is_refused(folder, tmp_path):
    other = shutil.copytree(folder, tmp_path / "xl")
    index = json.loads((other / "model_index.json").read_text()) | {"_class_name": "StableDiffusionXLPipeline"}
    (other / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(BadInputError, match="is a StableDiffusionXLPipeline"):
        StableDiffusion.load(folder, other)


def test_a_pickle_is_refused(folder, tmp_path):
    other = shutil.copytree(folder, tmp_path / "pickled")
    (other / "unet" / "diffusion_pytorch_model.safetensors").rename(other / "unet" / "diffusion_pytorch_model.bin")
    with pytest.raises(MissingWeightsError, match="pickle"):
        StableDiffusion.load(other, folder)


def test_a_truncated_file_is_refused(folder, tmp_path):
    other = shutil.copytree(folder, tmp_path / "cut")
    file = other / "unet" / "diffusion_pytorch_model.safetensors"
    file.write_bytes(file.read_bytes()[:5000])
    with pytest.raises(MissingWeightsError, match="diffusion_pytorch_model"):
        StableDiffusion.load(other, folder)


def test_a_missing_folder_is_told(folder, tmp_path):
    with pytest.raises(MissingWeightsError, match="nowhere"):
        StableDiffusion.load(tmp_path / "nowhere", folder)


def test_a_branch_of_another_backbone_is_refused(family, tmp_path):
    other = models.unet(block_out_channels=(8, 16, 16))
    ControlNetModel.from_unet(other, conditioning_embedding_out_channels=(16, 32, 96)).save_pretrained(tmp_path / "c")
    with pytest.raises(ConditionMismatchError, match="block_out_channels"):
        family.add_control_branch("canny", tmp_path / "c")
    ControlNetModel.from_unet(family.student.backbone).save_pretrained(tmp_path / "d")  # for a VAE of factor 8
    with pytest.raises(ConditionMismatchError, match="8 times"):
        family.add_control_branch("canny", tmp_path / "d")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"conditioning_channels": 1}, "conditioning_channels is 1, needed 3"),
        ({"layers_per_block": 3}, "layers_per_block is 3, needed 1"),
        (
            {"addition_embed_type": "text_time", "addition_time_embed_dim": 8,
             "projection_class_embeddings_input_dim": 80},
            "addition_embed_type is text_time, needed None",
        ),
    ],
)  # fmt: skip
def test_a_branch_that_says_other_things_is_refused(family, tmp_path, change, says):
    """A grey condition, three maps where the UNet's blocks add one and one, SDXL's size beside the text."""
    plain = ControlNetModel.from_unet(family.student.backbone, conditioning_embedding_out_channels=(16, 32, 96)).config
    config = {key: value for key, value in plain.items() if not key.startswith("_")}
    ControlNetModel.from_config(config | change).save_pretrained(tmp_path / "c")
    with pytest.raises(ConditionMismatchError, match=f"the ControlNet at .* does not fit this model: {says}") as told:
        family.add_control_branch("canny", tmp_path / "c")
    assert "give a ControlNet made for the same backbone" in told.value.hint


def test_a_branch_without_attention_fits(family, tmp_path):
    """As diffusers/controlnet-canny-sdxl-1.0-small is: its maps are as many and as large."""
    plain = ControlNetModel.from_unet(family.student.backbone, conditioning_embedding_out_channels=(16, 32, 96)).config
    config = {key: value for key, value in plain.items() if not key.startswith("_")}
    blocks = ["DownBlock2D"] * len(config["down_block_types"])
    small = {"down_block_types": blocks, "mid_block_type": "UNetMidBlock2D"}
    ControlNetModel.from_config(config | small).save_pretrained(tmp_path / "c")
    speak(family.add_control_branch("canny", tmp_path / "c"))
    size, prompt = family.resolution_px, family.encode_prompt(PROMPTS)
    controls = {"canny": torch.rand(2, 3, size, size)}
    with torch.no_grad():
        obeyed, free = (family.student.generate(noise(family), prompt, asked) for asked in (controls, {}))
    assert not torch.equal(obeyed, free)


def test_a_union_of_controls_is_refused(family, tmp_path):
    """diffusers reads it as a plain ControlNet and drops its task embedding and transformer."""
    plain = ControlNetModel.from_unet(family.student.backbone, conditioning_embedding_out_channels=(16, 32, 96)).config
    config = {key: value for key, value in plain.items() if not key.startswith("_")}
    small = {"addition_time_embed_dim": 8, "num_trans_channel": 16, "num_trans_head": 2, "num_proj_channel": 16}
    ControlNetUnionModel.from_config(config | small).save_pretrained(tmp_path / "c")
    with pytest.raises(ConditionMismatchError, match="is a ControlNetUnionModel, a union .*num_control_type 6"):
        family.add_control_branch("canny", tmp_path / "c")
    config = json.loads((tmp_path / "c" / "config.json").read_text())
    for change in ({"_class_name": "ControlNetModel"}, {"_class_name": "ControlNetModel_Union"}):
        (tmp_path / "c" / "config.json").write_text(json.dumps(config | change))
        with pytest.raises(ConditionMismatchError, match="wants another call"):
            family.add_control_branch("canny", tmp_path / "c")


def test_a_saved_student_lora_comes_back(family, folder, tmp_path):
    family.add_student_lora(rank=2)
    for name, parameter in family.student.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    family.save_student_lora(tmp_path / "lora")
    other = StableDiffusion.load(folder, folder)
    prompt, x_t = family.encode_prompt(PROMPTS), noise(family)
    before = other.student.generate(x_t, prompt)
    other.load_student_lora(tmp_path / "lora")
    expected = family.student.generate(x_t, prompt)
    assert (expected - before).abs().max() > 1e-2
    torch.testing.assert_close(other.student.generate(x_t, prompt), expected, atol=1e-5, rtol=1e-5)


def test_a_student_lora_that_is_not_there_is_a_mistake(family, tmp_path):
    with pytest.raises(MissingWeightsError, match="no weights at .*pytorch_lora_weights.safetensors"):
        family.load_student_lora(tmp_path / "nope")
    save_file({"unet.a": torch.zeros(2)}, tmp_path / "pytorch_lora_weights.safetensors")
    with pytest.raises(BadInputError, match="is a LoRA that does not fit the student"):
        family.load_student_lora(tmp_path)


def test_features_are_what_the_whole_network_computes_on_its_way(family):
    """Each down block's output and the middle's, with a control branch that has something to say in the middle."""
    prompt, x_t, t = family.encode_prompt(PROMPTS), noise(family), torch.tensor([0.3, 0.9])
    branch = family.add_control_branch("canny", denoiser=family.teacher)
    torch.nn.init.normal_(branch.controlnet_mid_block.weight)
    controls = {"canny": torch.rand(2, 3, 64, 64)}
    unet, passed = family.teacher.backbone, []
    for block in unet.down_blocks:
        block.register_forward_hook(lambda module, inputs, output: passed.append(output[0]))
    unet.up_blocks[0].register_forward_pre_hook(
        lambda module, inputs, named: passed.append(named["hidden_states"]), with_kwargs=True
    )
    family.teacher(x_t, t, prompt, controls)
    expected = passed[:]
    found = family.teacher.features(x_t, t, prompt, controls)
    assert tuple(feature.shape[1] for feature in found) == family.teacher.feature_channels
    for feature, whole in zip(found, expected, strict=True):
        torch.testing.assert_close(feature, whole)


def test_a_critic_on_the_fake_score_trains_its_heads_alone(family):
    """x_t gets a gradient through the features, the fake score's own weights never do."""
    fake = family.make_fake_score("lora", rank=2)
    critic = RatioCritic(fake, controls=["canny"], width=8)
    for head in critic.heads:
        torch.nn.init.normal_(head.judge.weight)
    prompt, t = family.encode_prompt(PROMPTS), torch.tensor([0.3, 0.9])
    controls = {"canny": torch.rand(2, 3, 64, 64)}
    x_t = noise(family).requires_grad_()
    logits = critic(x_t, t, prompt, controls)
    assert logits.shape == (2,) and logits.dtype == torch.float32
    logits.sum().backward()
    assert x_t.grad.abs().sum() > 0
    assert all(parameter.grad is not None for parameter in critic.parameters())
    assert all(parameter.grad is None for parameter in fake.parameters())
    assert fake.trainable(), "frozen only while features are taken"
    assert {id(p) for p in critic.parameters()}.isdisjoint(id(p) for p in fake.parameters())
    for changed in (
        {"t": torch.tensor([0.9, 0.3])},
        {"prompt": prompt.flip(0)},
        {"controls": {"canny": 1 - controls["canny"]}},
    ):
        other = critic(**{"x_t": x_t, "t": t, "prompt": prompt, "controls": controls} | changed)
        assert (other - logits).abs().min() > 1e-6


def test_weights_in_several_files_load_in_silence(tiny_folders, tmp_path, capfd):
    unet = load_component(UNet2DConditionModel, tiny_folders[0], "unet")
    unet.save_pretrained(tmp_path, max_shard_size="100KB")
    assert len(list(tmp_path.glob("*-of-*.safetensors"))) > 1
    diffusers_logging.enable_progress_bar()
    capfd.readouterr()
    load_component(UNet2DConditionModel, tmp_path, None)
    assert capfd.readouterr().err == ""


def test_a_tokenizer_that_needs_sentencepiece_says_what_to_install(tmp_path, monkeypatch):
    """Without a tokenizer.json transformers asks sentencepiece, then tiktoken; neither is there, or reads this file."""
    (tmp_path / "spiece.model").write_bytes(b"no model")
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "T5Tokenizer"}')
    monkeypatch.setattr("jdmctl.families.folders.is_sentencepiece_available", lambda: False)
    with pytest.raises(MissingWeightsError, match="cannot load T5Tokenizer") as caught:
        load_component(T5Tokenizer, tmp_path, None)
    assert ".[t5]" in caught.value.hint


@pytest.mark.parametrize("kind", [CLIPTokenizer, T5Tokenizer])
def test_a_damaged_tokenizer_is_not_one_for_want_of_a_package(tmp_path, monkeypatch, kind):
    monkeypatch.setattr("jdmctl.families.folders.is_sentencepiece_available", lambda: False)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": kind.__name__}))
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(MissingWeightsError, match=f"cannot load {kind.__name__}") as caught:
        load_component(kind, tmp_path, None)
    assert "tokenizer.json whole? copy or download it again" in caught.value.hint
