"""`jdmctl export`: what a run left, with what it needs inside, for other tools."""

import json
import logging
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from diffusers import (
    AutoencoderKL,
    ControlNetModel,
    EulerAncestralDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    LCMScheduler,
    SanaControlNetModel,
    StableDiffusionControlNetPipeline,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from export_runs import finished_run, run_plain_here
from peft import LoraConfig, get_peft_model_state_dict
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import T5Tokenizer

import jdmctl.build_export
import jdmctl.export.check
import jdmctl.export.plain
from jdmctl.build import build_roles, build_student
from jdmctl.build_export import build_export_family, build_reference
from jdmctl.errors import BadInputError
from jdmctl.evaluation.results import Row, write
from jdmctl.export.contract import CONFIG_KEY, contract_of, one_step_call
from jdmctl.export.licenses import license_entries, read_license
from jdmctl.families.standins.unets import random_sd, random_sdxl
from jdmctl.families.standins.write import STAND_INS
from jdmctl.recipe_files import load_recipe
from jdmctl.sampling import draw


def standard_sizes(pipeline):
    """What other tools can hold: an 8x VAE, 64 channels a head, 32 norm groups."""
    vae = AutoencoderKL(
        block_out_channels=[8] * 4,
        down_block_types=["DownEncoderBlock2D"] * 4,
        up_block_types=["UpDecoderBlock2D"] * 4,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=64,
        mid_block_add_attention=False,
    )
    sizes = {"sample_size": 8, "block_out_channels": (64, 128), "attention_head_dim": (1, 2), "norm_num_groups": 32}
    pipeline.register_modules(vae=vae, unet=UNet2DConditionModel.from_config(dict(pipeline.unet.config) | sizes))


@pytest.fixture(scope="module")
def standard(tmp_path_factory):
    """A one-step student of these sizes with a card of its own."""
    folder = tmp_path_factory.mktemp("standard")
    torch.manual_seed(0)
    pipeline = random_sd(folder / "tokenizer-source")
    standard_sizes(pipeline)
    pipeline.scheduler = LCMScheduler.from_config(pipeline.scheduler.config, prediction_type="epsilon")
    pipeline.save_pretrained(folder / "student")
    (folder / "student" / "README.md").write_text("---\nlicense: openrail++\n---\n# a student\n")
    return folder / "student"


def test_folders_and_single_files_draw_what_the_run_draws(standard, tmp_path, jdmctl_command, monkeypatch):
    """In a process without jdmctl: diffusers' own readers of the original ControlNet layout and of kohya's keys."""
    run = finished_run(tmp_path / "run", standard, "lora", ("canny", "softedge"))
    monkeypatch.chdir(tmp_path)
    out = Path("out")
    code, text, error = jdmctl_command(
        "export", "run", "--output", out, "--format", "comfyui", "--format", "kohya", "--dtype", "bf16", "--json"
    )
    assert code == 0, error
    record = json.loads(text)
    assert record["largest_difference"].keys() == {"folders", "single files"}
    assert max(record["largest_difference"].values()) <= 1 / 255
    assert record["single_files"] == {
        "student_lora": "lora.safetensors",
        "controlnet-canny": "controlnet-canny.safetensors",
        "controlnet-softedge": "controlnet-softedge.safetensors",
    }
    lora = load_file(out / "lora.safetensors")
    assert lora["lora_unet_conv_in.alpha"] == lora["lora_unet_conv_in.lora_down.weight"].shape[0] == 3
    assert lora["lora_unet_conv_in.lora_up.weight"].dtype == torch.bfloat16

    recipe = load_recipe(run)
    reference = build_reference(recipe, build_export_family(recipe, run, "cpu"), torch.bfloat16, "cpu")
    branches = {name: run / folder for name, folder in recipe.branch_folders.items()}
    without_lora = build_student(recipe.model, branches)
    maps = reference.condition.expand(2, -1, -1, -1)
    for asked in ({}, {"canny": maps}, {"canny": maps, "softedge": maps}):  # each part of the export does something
        other = draw(without_lora, reference.prompts, reference.seeds, asked)
        assert (other - reference.images).abs().max() > 10 / 255

    contract = contract_of(out / "controlnet-canny.safetensors")
    assert contract == contract_of(out / "controlnet-canny")
    assert contract.control == "canny" and contract.extractor == {"low": 100, "high": 200, "tolerance_px": 1}
    assert contract.beside == ("student_lora", "controlnet-softedge")
    assert (contract.student, contract.made_from, contract.license) == ("student", ("student",), "openrail++")
    assert (contract.timestep, contract.resolution_px, contract.prediction) == (999, 64, "epsilon")
    assert contract_of(out / "student_lora").call["guidance_scale"] == 1.0


@pytest.fixture
def exported(tiny_folders, tmp_path, monkeypatch, jdmctl_command):
    run = finished_run(tmp_path / "run", tiny_folders[1])
    monkeypatch.chdir(tmp_path)
    assert jdmctl_command("export", run, "-o", "out", "--no-check")[0] == 0
    return run


def test_diffusers_reads_over_the_contract_in_silence(exported, tiny_folders, tmp_path, caplog):
    """No `config attributes were passed ... but are not expected`, which frightens; also for a whole pipeline."""
    student = finished_run(tmp_path / "whole", tiny_folders[1], "full", ())
    index = student / "student" / "model_index.json"
    index.write_text(json.dumps(json.loads(index.read_text()) | {CONFIG_KEY: contract_of("out/controlnet").to_dict()}))
    logger = logging.getLogger("diffusers")
    logger.addHandler(caplog.handler)
    try:
        branch = ControlNetModel.from_pretrained("out/controlnet")
        StableDiffusionPipeline.from_pretrained(student / "student")
    finally:
        logger.removeHandler(caplog.handler)
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert CONFIG_KEY in json.loads(Path("out/controlnet/config.json").read_text())
    assert branch.config.block_out_channels == [16, 32]


@pytest.mark.parametrize(
    ("card", "entries"),
    [
        ({"license": "mit", "license_link": "LICENSE"}, {"license": "mit"}),
        ({"license": "other", "license_name": "sai-nc-community", "license_link": "LICENSE.md"},  # SDXL-Turbo's
         {"license": "other", "license_name": "sai-nc-community",
          "license_link": "https://huggingface.co/owner/name/blob/main/LICENSE.md"}),
        ({"license": "other", "license_link": "https://stability.ai/license"},
         {"license": "other", "license_link": "https://stability.ai/license"}),
        ({}, {}),
    ],
)  # fmt: skip
def test_a_licence_is_told_as_the_hub_takes_it(card, entries):
    """It refuses a `license:` that is not on its list, as the name of another one is not."""
    assert license_entries(*read_license(card, "owner/name")) == entries


def test_a_licence_that_is_not_the_hubs_goes_on_by_its_name(tiny_folders, tmp_path, monkeypatch, jdmctl_command):
    student = shutil.copytree(tiny_folders[1], tmp_path / "student")
    told = "license: other\nlicense_name: sai-nc-community\nlicense_link: https://stability.ai/terms\n"
    (student / "README.md").write_text(f"---\n{told}---\n# a student\n")
    run = finished_run(tmp_path / "run", student)
    monkeypatch.chdir(tmp_path)
    assert jdmctl_command("export", run, "-o", "out", "--no-check")[0] == 0
    _, front, text = Path("out/README.md").read_text().split("---\n", 2)
    entries = {key: value for key, value in yaml.safe_load(front).items() if "license" in key}
    assert entries == yaml.safe_load(told)
    assert "[sai-nc-community](https://stability.ai/terms), that of `student`" in text
    assert contract_of("out/controlnet").license == "sai-nc-community"


def test_the_card_tells_what_is_known_and_its_code_runs(exported, tiny_folders, tmp_path):
    """The code draws the very picture that the run draws; what was not measured is not told."""
    text = Path("out/README.md").read_text()
    front = text.split("---")[1]
    assert "library_name: diffusers" in front and "- controlnet" in front
    assert "license:" not in front and "base_model:" not in front  # not known, and no hub name
    assert "Not measured." in text and "canny (low 100, high 200, tolerance_px 1)" in text and "Not known here:" in text

    Path("student").symlink_to(tiny_folders[1])
    torch.manual_seed(5)
    condition = (torch.rand(3, 64, 64) > 0.8).float()
    pixels = (condition * 255).byte().permute(1, 2, 0).numpy()
    Image.fromarray(pixels).save("canny.png")
    scope: dict = {}
    exec(text.split("```python\n")[1].split("```")[0].replace('"./student"', '"student"'), scope)
    family = build_roles(load_recipe(exported), "cpu")
    family.add_control_branch("canny", exported / "controlnet").eval()
    ours = draw(family, ["a prompt"], [0], {"canny": condition[None]})[0]
    theirs = torch.tensor(list(scope["image"].getdata())).reshape(64, 64, 3).permute(2, 0, 1) / 255
    assert (ours - theirs).abs().max() <= 1 / 255
    assert isinstance(scope["pipe"], StableDiffusionControlNetPipeline)


def test_measured_numbers_come_from_rows_of_this_run_only(exported, jdmctl_command):
    row = Row("tiny", "canny", "jdm", 1, "canny f1", 0.8, 0.7, 0.9, [0], 500, "jdmctl eval runs/run --split test", "s")
    other = Row("tiny", "canny", "dsm", 1, "canny f1", 0.5, 0.4, 0.6, [0], 500, "jdmctl eval runs/run-2", "s")
    write(Path("rows.json"), [row, other])
    export = ("export", exported, "--no-check", "--results", "rows.json", "-o")
    assert jdmctl_command(*export, "measured")[0] == 0
    text = Path("measured/README.md").read_text()
    assert "0.8 [0.7, 0.9]" in text and "0.5 [0.4, 0.6]" not in text and row.command in text
    write(Path("rows.json"), [other])
    code, _, error = jdmctl_command(*export, "nothing")
    assert code == 1 and "has no row whose command names run" in error and not Path("nothing").exists()


def test_what_a_tool_cannot_hold_is_refused_before_anything_is_written(exported, jdmctl_command):
    """The random world's VAE shrinks 4 times, like the embedded world's; ControlNet's hint block shrinks 8 times."""
    code, _, error = jdmctl_command("export", exported, "-o", "single", "--format", "comfyui", "--format", "kohya")
    assert code == 1 and not Path("single").exists()
    assert "makes a condition 4 times smaller" in error and "kohya: it is a format for LoRAs" in error


def test_only_an_export_is_replaced_and_only_by_force(exported, jdmctl_command):
    again = ("export", exported, "--no-check", "-o")
    assert "already there" in jdmctl_command(*again, "out")[2]
    assert jdmctl_command(*again, "out", "--force")[0] == 0
    Path("mine").mkdir()
    Path("mine/thesis.txt").write_text("years of work")
    code, _, error = jdmctl_command(*again, "mine", "--force")
    assert code == 1 and "is no export" in error and Path("mine/thesis.txt").exists()


def test_an_export_that_draws_something_else_is_not_written(exported, jdmctl_command, monkeypatch):
    monkeypatch.setattr(jdmctl.export.check, "differences", lambda *_: {"folders": 0.5})
    code, _, error = jdmctl_command("export", exported, "-o", "wrong", "--check")
    assert code == 1 and "folders by 127.5/255" in error and not Path("wrong").exists()


def test_a_run_that_has_not_finished_names_how_to_go_on(exported, jdmctl_command):
    (exported / "controlnet").rename(exported / "gone")
    code, _, error = jdmctl_command("export", exported, "-o", "wrong")
    assert code == 1 and f"jdmctl add-control {exported} --resume" in error


def test_too_large_for_fp16(exported, jdmctl_command):
    """65504 is the largest number of fp16: it would become infinite."""
    net = ControlNetModel.from_pretrained(exported / "controlnet")
    with torch.no_grad():
        net.conv_in.bias[0] = 1e6
    net.save_pretrained(exported / "controlnet")
    code, _, error = jdmctl_command("export", exported, "-o", "half", "--no-check", "--dtype", "fp16")
    assert code == 1 and "conv_in.bias is too large for fp16" in error and not Path("half").exists()


def test_a_whole_student_and_what_was_not_trained_keeps_its_precision(tiny_folders, tmp_path, jdmctl_command):
    run = finished_run(tmp_path / "run", tiny_folders[1], "full", ())
    assert jdmctl_command("export", run, "-o", tmp_path / "out", "--dtype", "bf16", "--no-check")[0] == 0
    folder = tmp_path / "out" / "student"
    contract = contract_of(folder)
    assert (contract.pipeline, contract.student) == ("StableDiffusionPipeline", "mine")
    assert contract.made_from == (tiny_folders[1].name,)
    assert load_file(folder / "unet/diffusion_pytorch_model.safetensors")["conv_in.weight"].dtype == torch.bfloat16
    assert (
        load_file(folder / "vae/diffusion_pytorch_model.safetensors")["decoder.conv_in.weight"].dtype == torch.float32
    )
    assert 'from_pretrained("' + str(tmp_path / "out/student") in (tmp_path / "out/README.md").read_text()


@pytest.mark.parametrize("form", ["pipeline", "weights", "lora"])
def test_students_in_other_forms_and_families(form, tmp_path, jdmctl_command, monkeypatch):
    """SDXL-Turbo's form, from noise times sigma; DMD2's, a UNet's weights at timestep 399 beside the teacher's folder;
    Hyper-SD's, a LoRA. Plain diffusers is told each by its code (here in the same process, to save time)."""
    torch.manual_seed(0)
    pipeline = random_sdxl(tmp_path / "tokenizer-source")
    standard_sizes(pipeline)
    pipeline.save_pretrained(tmp_path / "teacher")
    given = {"family": "sdxl", "teacher": str(tmp_path / "teacher"), "student": str(tmp_path / "student.safetensors")}
    if form == "pipeline":
        pipeline.scheduler = EulerAncestralDiscreteScheduler.from_config(pipeline.scheduler.config)
        pipeline.scheduler.register_to_config(timestep_spacing="trailing")
        pipeline.save_pretrained(tmp_path / "student")
        given["student"] = str(tmp_path / "student")
    elif form == "weights":
        weights = {key: value + 0.01 * torch.randn_like(value) for key, value in pipeline.unet.state_dict().items()}
        save_file(weights, given["student"])
        given |= {"student_timestep": 399, "student_prediction": "sample"}
    else:
        pipeline.unet.add_adapter(
            LoraConfig(r=2, lora_alpha=2, target_modules=["to_q", "conv1"], init_lora_weights=False)
        )
        layers = get_peft_model_state_dict(pipeline.unet)
        save_file({f"unet.{key}": value.contiguous() for key, value in layers.items()}, given["student"])
    run = finished_run(tmp_path / "run", tmp_path, model=given)
    run_plain_here(monkeypatch)
    code, text, error = jdmctl_command("export", run, "-o", tmp_path / "out", "--format", "comfyui", "--json")
    assert code == 0, error
    record = json.loads(text)
    assert max(record["largest_difference"].values()) <= 1 / 255
    contract = contract_of(tmp_path / "out" / "controlnet")
    told = (contract.pipeline, contract.timestep, contract.scheduler["_class_name"], contract.call.get("timesteps"))
    wanted = {
        "pipeline": (999, "EulerDiscreteScheduler", None),
        "weights": (399, "LCMScheduler", [399]),
        "lora": (999, "LCMScheduler", None),
    }
    assert told == ("StableDiffusionXLControlNetPipeline", *wanted[form])
    card = (tmp_path / "out" / "README.md").read_text()
    assert str(tmp_path / "teacher") not in card and str(tmp_path / "student") not in card
    assert ("prediction_type='sample'" in card) == (form == "weights")


@pytest.mark.parametrize("family", ["sd3", "flux", "qwen_image", "z_image", "sana", "pixart_alpha", "pixart_sigma"])
def test_transformers_are_called_as_their_students_need(family, tmp_path, jdmctl_command, monkeypatch):
    """SD3's T5 cut to 32 tokens where its pipeline asks for 256, schnell's 256 for 512, Z-Image's guidance from 0, and
    sizes that pipelines would not take from their parts. SD3 is drawn in a process of its own, the others here.
    """
    STAND_INS[family].write(tmp_path)
    student = tmp_path / ("teacher" if family == "sana" else "student")
    if family == "sd3":
        short = T5Tokenizer.from_pretrained(student / "tokenizer_3", model_max_length=32)
        for role in ("teacher", "student"):
            short.save_pretrained(tmp_path / role / "tokenizer_3")
    else:
        run_plain_here(monkeypatch)
    model = {"family": family, "teacher": str(tmp_path / "teacher"), "student": str(student)}
    has_pipeline = not family.startswith("pixart")
    controls = ("canny",) if has_pipeline else ()
    run = finished_run(tmp_path / "run", student, "frozen" if has_pipeline else "full", controls, model)
    code, text, error = jdmctl_command("export", run, "-o", tmp_path / "out", "--json", "--check")
    assert code == 0, error
    assert json.loads(text)["largest_difference"]["folders"] <= 1 / 255
    call = contract_of(tmp_path / "out" / ("controlnet" if has_pipeline else "student")).call
    assert (call["height"], call["width"]) == (64, 64)
    assert call.get("max_sequence_length") == {"sd3": 32, "flux": 256}.get(family)
    card = (tmp_path / "out" / "README.md").read_text()
    assert all(f"    {key}={value}," in card for key, value in call.items())


def test_a_pipeline_that_cannot_be_told_the_students_time():
    """FluxPipeline takes sigmas, no timesteps."""
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    assert one_step_call(scheduler, 1000, "FluxPipeline") == {"num_inference_steps": 1}
    with pytest.raises(BadInputError, match="FluxPipeline takes 1000 and cannot be told another"):
        one_step_call(scheduler, 750, "FluxPipeline")


@pytest.fixture
def sprint(tmp_path):
    """What a recipe says of a SANA and its SANA-Sprint, and the folder of that one."""
    STAND_INS["sana"].write(tmp_path)
    model = {"family": "sana", "teacher": str(tmp_path / "teacher"), "student": str(tmp_path / "student")}
    return model, tmp_path / "student"


@pytest.mark.parametrize(
    ("trainable", "told", "angle"), [("full", {}, 1.5708), ("lora", {"student_timestep": 900}, 1.46014)]
)
def test_a_sana_sprint_is_called_at_its_angle_with_the_guidance_it_is_told(
    sprint, trainable, told, angle, tmp_path, jdmctl_command, monkeypatch
):
    """Of the network's 0.9 it is atan(0.9 / 0.1), and the noise is smaller there. Without intermediate_timesteps: None
    its pipeline refuses one step, with guidance 1 it draws something else. The first in a process of its own."""
    model, student = sprint
    run = finished_run(tmp_path / "run", student, trainable, (), model | told)
    if told:
        run_plain_here(monkeypatch)
    code, text, error = jdmctl_command("export", run, "-o", tmp_path / "out", "--json")
    assert code == 0, error
    assert json.loads(text)["largest_difference"]["folders"] <= 1 / 255
    contract = contract_of(tmp_path / "out" / ("student" if trainable == "full" else "student_lora"))
    assert (contract.pipeline, contract.timestep, contract.prediction) == ("SanaSprintPipeline", angle, "trigflow")
    assert contract.scheduler["_class_name"] == "SCMScheduler"
    asked = {"num_inference_steps": 1, "max_timesteps": angle, "intermediate_timesteps": None, "guidance_scale": 4.5}
    assert contract.call.items() >= asked.items()
    card = (tmp_path / "out" / "README.md").read_text()
    assert all(f"    {key}={value}," in card for key, value in asked.items())


def test_the_check_sees_a_sana_sprint_at_another_angle(sprint, tmp_path, jdmctl_command, monkeypatch):
    model, student = sprint
    run = finished_run(tmp_path / "run", student, "full", (), model)
    run_plain_here(monkeypatch)
    other = {"num_inference_steps": 1, "max_timesteps": 1.56, "intermediate_timesteps": None}
    monkeypatch.setattr(jdmctl.build_export, "one_step_call", lambda *_: other)
    left, _, _ = jdmctl_command("export", run, "-o", tmp_path / "out")
    assert "its network is called at [1.5" in str(left) and "not at [1.5708]" in str(left)
    assert not (tmp_path / "out").exists()


def test_a_branch_of_a_sana_sprint_is_exported_for_jdmctl_alone(sprint, tmp_path, jdmctl_command):
    """diffusers has SanaControlNetPipeline, which does not call a SANA-Sprint as it must be."""
    model, student = sprint
    run = finished_run(tmp_path / "run", student, "frozen", ("canny",), model)
    code, text, error = jdmctl_command("export", run, "-o", tmp_path / "out", "--check", "--json")
    assert code == 0, error
    assert json.loads(text)["largest_difference"] is None
    contract = contract_of(tmp_path / "out" / "controlnet")
    assert (contract.pipeline, contract.timestep, contract.control) == ("", 1.5708, "canny")
    theirs = SanaControlNetModel.from_pretrained(tmp_path / "out" / "controlnet").state_dict()
    ours = SanaControlNetModel.from_pretrained(run / "controlnet").state_dict()
    assert theirs.keys() == ours.keys() and all(torch.equal(theirs[name], value) for name, value in ours.items())
    assert "diffusers has no pipeline that takes such a control branch" in (tmp_path / "out" / "README.md").read_text()


def test_no_contract(tiny_folders):
    with pytest.raises(BadInputError, match="carries no contract"):
        contract_of(tiny_folders[1])
