"""What single families of transformers promise beyond the contract of all."""

import json

import pytest
import torch
from diffusers import (
    DDPMScheduler,
    DiffusionPipeline,
    FluxControlNetModel,
    PixArtAlphaPipeline,
    SanaControlNetPipeline,
    StableDiffusion3ControlNetPipeline,
    ZImageControlNetModel,
    ZImageControlNetPipeline,
)
from test_family_contract import PROMPTS, condition_of, drawn, noise_of, quiet, speak
from tiny_transformers import SIZE, TRANSFORMERS, UNBINNED, signed

from jdmctl.errors import ConditionMismatchError
from jdmctl.families.names import family_class
from jdmctl.families.standins.transformers import (
    random_flux,
    random_pixart,
    random_qwen_image,
    random_sana,
    random_sd3,
    random_z_image,
)

ONE_STEP = {"num_inference_steps": 1, "output_type": "pt", "guidance_scale": 1.0}


def test_a_plain_sana_with_a_branch_is_its_control_pipeline(tmp_path):
    """The contract's student is a SANA-Sprint, whose pipeline takes no ControlNet."""
    torch.manual_seed(0)
    random_sana(tmp_path).save_pretrained(tmp_path / "teacher")
    family = family_class("sana").load(tmp_path / "teacher", tmp_path / "teacher")
    branch = family.add_control_branch("canny")
    speak(branch)
    pipe = quiet(SanaControlNetPipeline.from_pretrained(tmp_path / "teacher", controlnet=branch.eval()))
    condition = condition_of(family)
    theirs = pipe(PROMPTS, latents=noise_of(family), control_image=signed(condition), **ONE_STEP, **UNBINNED, **SIZE)
    assert (drawn(family, {"canny": condition}) - theirs.images).abs().max() < 1e-4


def test_a_controlnet_of_sd3_without_pooled_text_is_called_as_it_was_trained(tmp_path):
    """InstantX' ControlNets get zeros for it, and a condition's latent without the VAE's shift."""
    torch.manual_seed(0)
    random_sd3(tmp_path).save_pretrained(tmp_path / "teacher")
    family = family_class("sd3").load(tmp_path / "teacher", tmp_path / "teacher")
    branch = family.add_control_branch("canny")
    branch.register_to_config(force_zeros_for_pooled_projection=True)
    speak(branch)
    pipe = quiet(StableDiffusion3ControlNetPipeline.from_pretrained(tmp_path / "teacher", controlnet=branch.eval()))
    condition = condition_of(family)
    theirs = pipe(PROMPTS, latents=noise_of(family), control_image=signed(condition), **ONE_STEP)
    assert (drawn(family, {"canny": condition}) - theirs.images).abs().max() < 1e-4


def test_a_controlnet_of_z_image_with_room_for_inpainting_is_called_with_zeros_there(tmp_path):
    """Version 2's take 33 channels: the condition's latent, and what is to be kept."""
    torch.manual_seed(0)
    random_z_image(tmp_path).save_pretrained(tmp_path / "teacher")
    family = family_class("z_image").load(tmp_path / "teacher", tmp_path / "teacher")
    config = family.add_control_branch("canny").config
    wide = ZImageControlNetModel.from_config({**config, "control_in_dim": 9, "add_control_noise_refiner":
        "control_noise_refiner", "control_refiner_layers_places": [0]})  # fmt: skip
    speak(wide)
    wide.save_pretrained(tmp_path / "wide")
    family.add_control_branch("canny", tmp_path / "wide")
    pipe = quiet(ZImageControlNetPipeline.from_pretrained(tmp_path / "teacher", controlnet=wide.eval()))
    condition, asked = condition_of(family), ONE_STEP | {"guidance_scale": 0.0, "controlnet_conditioning_scale": 1.0}
    theirs = pipe([*PROMPTS], latents=noise_of(family), control_image=signed(condition), **SIZE, **asked).images
    assert (drawn(family, {"canny": condition}) - theirs).abs().max() < 1e-4


@pytest.mark.parametrize(("key", "kind"), [("num_mode", "a union"), ("conditioning_embedding_channels", "XLabs's")])
def test_a_flux_controlnet_that_is_called_in_another_way_is_refused(tmp_path, key, kind):
    torch.manual_seed(0)
    random_flux(tmp_path).save_pretrained(tmp_path / "teacher")
    family = family_class("flux").load(tmp_path / "teacher", tmp_path / "teacher")
    config = {k: v for k, v in family.add_control_branch("canny").config.items() if not k.startswith("_")}
    FluxControlNetModel.from_config({**config, key: 16}).save_pretrained(tmp_path / "other")
    with pytest.raises(ConditionMismatchError, match=f"is {kind}.* .{key} 16."):
        family.add_control_branch("depth", tmp_path / "other")


@pytest.mark.parametrize(
    ("name", "make", "change", "says"),
    [
        ("sd3", random_sd3, {"pooled_projection_dim": 7}, "pooled_projection_dim is 7, needed 28"),
        ("sd3", random_sd3, {"patch_size": 1}, "patch_size is 1, needed 2"),
        ("sd3", random_sd3, {"extra_conditioning_channels": 1}, "inpainting .extra_conditioning_channels 1."),
        ("flux", random_flux, {"pooled_projection_dim": 7}, "pooled_projection_dim is 7, needed 16"),
        ("sana", random_sana, {"patch_size": 2}, "patch_size is 2, needed 1"),
        ("qwen_image", random_qwen_image, {"extra_condition_channels": 4}, "is one for inpainting"),
        ("z_image", random_z_image, {"control_in_dim": 3}, "control_in_dim is 3, needed 4 or more"),
        ("z_image", random_z_image, {"all_patch_size": (4,)}, r"all_patch_size is .*4.*, needed .*2"),
    ],
)
def test_a_controlnet_that_does_not_fit_is_refused(tmp_path, name, make, change, says):
    torch.manual_seed(0)
    make(tmp_path).save_pretrained(tmp_path / "teacher")
    family = family_class(name).load(tmp_path / "teacher", tmp_path / "teacher")
    config = {k: v for k, v in family.add_control_branch("canny").config.items() if not k.startswith("_")}
    family.branch_class.from_config({**config, **change}).save_pretrained(tmp_path / "other")
    with pytest.raises(ConditionMismatchError, match=f"the ControlNet at .* {says}"):
        family.add_control_branch("depth", tmp_path / "other")


def test_a_branch_of_another_class_is_refused(tmp_path):
    """diffusers would read what the two classes have in common, and tell of shapes at best."""
    torch.manual_seed(0)
    for make, name in ((random_sd3, "sd3"), (random_flux, "flux")):
        make(tmp_path).save_pretrained(tmp_path / name)
    sd3, flux = (family_class(name).load(tmp_path / name, tmp_path / name) for name in ("sd3", "flux"))
    flux.add_control_branch("canny").save_pretrained(tmp_path / "branch")
    with pytest.raises(ConditionMismatchError, match="is a FluxControlNetModel, and the family sd3 takes") as told:
        sd3.add_control_branch("canny", tmp_path / "branch")
    assert "SD3ControlNetModel" in str(told.value)


@pytest.mark.parametrize("sample_size", [8, 128])
def test_pixart_is_told_the_picture_s_size_where_it_wants_it(tmp_path, sample_size):
    """PixArt-alpha at 1024 px (its config says 128); drawn as the authors' DMD demo does, at timestep 400 by DDPM."""
    torch.manual_seed(0)
    pipe = random_pixart(PixArtAlphaPipeline, tmp_path, sample_size)
    pipe.scheduler = DDPMScheduler(beta_start=0.0001, beta_end=0.02, clip_sample=False)
    pipe.save_pretrained(tmp_path / "teacher")
    family = family_class("pixart_alpha").load(tmp_path / "teacher", tmp_path / "teacher", student_timestep=400)
    assert family.student.backbone.use_additional_conditions == (sample_size == 128)
    noise = noise_of(family)[..., :8, :8]
    pipe = quiet(PixArtAlphaPipeline.from_pretrained(tmp_path / "teacher"))
    theirs = pipe(PROMPTS, latents=noise, timesteps=[400], **SIZE, **UNBINNED, **ONE_STEP).images
    with torch.no_grad():
        x0 = family.student.generate(noise, family.encode_prompt(PROMPTS))
    assert (family.codec.decode(x0).clamp(0, 1) - theirs).abs().max() < 1e-4


SHIFTED = [tiny for tiny in TRANSFORMERS if tiny.family in ("flux", "qwen_image", "sd3", "z_image")]


@pytest.mark.parametrize("side", [64, 128])
@pytest.mark.parametrize("tiny", SHIFTED, ids=str)
def test_a_shift_that_depends_on_the_size_is_the_pipeline_s_own(tiny, side, tmp_path):
    """64 px are 64 tokens and 128 px 256, where mu is 0.4675 and 0.5; at 4096 it would be 1.15."""
    tiny.write(tmp_path)
    file = tmp_path / "teacher" / "scheduler" / "scheduler_config.json"
    dynamic = {"use_dynamic_shifting": True, "base_shift": 0.5, "max_shift": 1.15}
    dynamic |= {"shift_terminal": 0.02} if tiny.family == "qwen_image" else {}
    file.write_text(json.dumps(json.loads(file.read_text()) | dynamic))
    family = family_class(tiny.family).load(tmp_path / "teacher", tmp_path / "student", resolution_px=side)
    pipe = quiet(DiffusionPipeline.from_pretrained(tmp_path / "teacher"))
    asked = {**tiny.guided, "height": side, "width": side, "output_type": "pt"}
    noise = noise_of(family)
    theirs = pipe([*PROMPTS], latents=tiny.latents(noise), **asked).images
    torch.testing.assert_close(family.make_sampler(3, torch.device("cpu")).sigmas, pipe.scheduler.sigmas)
    ours = family.codec.decode(family.multistep(noise, family.encode_prompt(PROMPTS), 3, 2.0)).clamp(0, 1)
    assert (ours - theirs).abs().max() < 1e-4
    mu = {64: 0.4675, 128: 0.5}[side]
    odds = torch.tensor(3.0) * torch.tensor(mu).exp()  # at t = 0.75 sigma / (1 - sigma) is t / (1 - t), times e^mu
    torch.testing.assert_close(family.schedule.sigma(torch.tensor(0.75)), odds / (1 + odds))
