"""Light control branches of UNets: say nothing at first, train only what is theirs, and run in plain diffusers."""

from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from diffusers import ControlNetModel, StableDiffusionAdapterPipeline, StableDiffusionXLAdapterPipeline, T2IAdapter
from test_family_contract import PROMPTS, condition_of, drawn, noise_of, quiet, recipe, speak
from tiny_pipelines import FAMILIES

from jdmctl.build_export import build_products
from jdmctl.build_run import build_run
from jdmctl.errors import BadInputError, ConditionMismatchError, RecipeError
from jdmctl.families.names import family_class
from jdmctl.families.unet_branches import new_adapter
from jdmctl.recipe_files import parse_recipe
from jdmctl.training.run import make_accelerator, train

UNETS = [tiny for tiny in FAMILIES if tiny.family in ("stable_diffusion", "sdxl")]
ADAPTER_PIPELINES = {"stable_diffusion": StableDiffusionAdapterPipeline, "sdxl": StableDiffusionXLAdapterPipeline}
KINDS = ["controlnet_lora", "t2i_adapter"]


@pytest.fixture(scope="module", params=UNETS, ids=str)
def tiny(request):
    return request.param


@pytest.mark.parametrize("kind", KINDS)
def test_a_new_one_says_nothing_and_can_learn(family, kind):
    """Also beside another branch. A gradient reaches the condition's way in or the way out at once."""
    before = drawn(family)
    controls = {name: condition_of(family) for name in ("canny", "depth")}
    family.add_control_branch("canny", kind=kind, rank=2)
    family.add_control_branch("depth")
    assert torch.equal(drawn(family, controls), before)
    family.student.generate(noise_of(family), family.encode_prompt(PROMPTS), controls).square().sum().backward()
    branch = family.student.branches["canny"]
    assert any(p.grad is not None and p.grad.any() for p in branch.parameters())
    assert all(p.grad is None for p in family.student.backbone.parameters())
    speak(branch)
    assert (drawn(family, controls) - before).abs().max() > 1e-3
    family.student.control_scales["canny"] = 0.0
    assert torch.equal(drawn(family, controls), before)


def test_a_controlnet_lora_holds_the_encoder_once(family):
    branch = family.add_control_branch("canny", kind="controlnet_lora", rank=2)
    own = {p.data_ptr() for p in family.student.backbone.parameters()}
    frozen = [p for p in branch.parameters() if not p.requires_grad]
    assert frozen and all(p.data_ptr() in own for p in frozen)
    trained = {name for name, p in branch.named_parameters() if p.requires_grad}
    assert trained == {n for n, _ in branch.named_parameters() if n.startswith("controlnet_") or "lora_" in n}


def test_a_controlnet_lora_is_saved_as_an_ordinary_controlnet(tiny, family, folder, tmp_path):
    speak(family.add_control_branch("canny", kind="controlnet_lora", rank=2))
    controls = {"canny": condition_of(family)}
    ours = drawn(family, controls)
    family.save_control_branch("canny", tmp_path / "branch")
    assert torch.equal(drawn(family, controls), ours), "saving changes nothing"
    branch = ControlNetModel.from_pretrained(tmp_path / "branch")
    pipe = quiet(tiny.control_pipeline.from_pretrained(folder / "student", controlnet=branch, safety_checker=None))
    theirs = pipe(PROMPTS, latents=noise_of(family), image=controls["canny"], **tiny.one_step).images
    assert (ours - theirs).abs().max() < 1e-4


def test_an_adapter_runs_in_diffusers_adapter_pipeline(tiny, family, folder, tmp_path):
    speak(family.add_control_branch("canny", kind="t2i_adapter"))
    controls = {"canny": condition_of(family)}
    ours = drawn(family, controls)
    family.save_control_branch("canny", tmp_path / "branch")
    other = family_class(tiny.family).load(folder / "teacher", folder / "student")
    other.add_control_branch("canny", tmp_path / "branch")
    assert torch.equal(drawn(other, controls), ours)
    adapter = T2IAdapter.from_pretrained(tmp_path / "branch")
    kind = ADAPTER_PIPELINES[tiny.family]
    pipe = quiet(kind.from_pretrained(folder / "student", adapter=adapter, safety_checker=None))
    asked = {"image": controls["canny"], **tiny.one_step, "output_type": "latent"}
    theirs = family.codec.decode(pipe(PROMPTS, latents=noise_of(family), **asked).images).clamp(0, 1)
    assert (ours - theirs).abs().max() < 1e-4


def test_an_adapter_of_another_model_is_refused(family, tmp_path):
    T2IAdapter(channels=[16, 16], downscale_factor=8, adapter_type="full_adapter_xl").save_pretrained(tmp_path / "a")
    with pytest.raises(ConditionMismatchError, match="T2I-Adapter at .* channels is"):
        family.add_control_branch("canny", tmp_path / "a")
    T2IAdapter(channels=[16, 32], downscale_factor=16, adapter_type="full_adapter_xl").save_pretrained(tmp_path / "b")
    with pytest.raises(ConditionMismatchError, match="16 times"):
        family.add_control_branch("canny", tmp_path / "b")


def test_an_sdxl_adapter_in_the_published_form(tmp_path):
    """TencentARC's for SDXL have a fourth map, which diffusers' UNet adds to its middle block by itself."""
    tiny = next(tiny for tiny in UNETS if tiny.family == "sdxl")
    tiny.write(tmp_path)
    family = family_class("sdxl").load(tmp_path / "teacher", tmp_path / "student")
    wanted = new_adapter(family.student.backbone, family.pixels_per_latent).config
    channels = [*wanted.channels, wanted.channels[-1]]
    adapter = T2IAdapter(
        channels=channels, downscale_factor=wanted.downscale_factor, adapter_type="full_adapter_xl", num_res_blocks=2
    )
    adapter.save_pretrained(tmp_path / "adapter")
    before = drawn(family)
    family.add_control_branch("canny", tmp_path / "adapter")
    controls = {"canny": condition_of(family)}
    ours = drawn(family, controls)
    pipe = quiet(
        ADAPTER_PIPELINES["sdxl"].from_pretrained(
            tmp_path / "student", adapter=T2IAdapter.from_pretrained(tmp_path / "adapter")
        )
    )
    asked = {"image": controls["canny"], **tiny.one_step, "output_type": "latent"}
    theirs = family.codec.decode(pipe(PROMPTS, latents=noise_of(family), **asked).images).clamp(0, 1)
    assert (ours - before).abs().max() > 1e-3 and (ours - theirs).abs().max() < 1e-4
    T2IAdapter(
        in_channels=1, channels=channels, downscale_factor=wanted.downscale_factor, adapter_type="full_adapter_xl"
    ).save_pretrained(tmp_path / "grey")
    with pytest.raises(ConditionMismatchError, match="in_channels is 1, needed 3"):
        family.add_control_branch("depth", tmp_path / "grey")


def test_an_adapter_of_stable_diffusion_s_own_order_of_blocks(family):
    """SD 1.5: three blocks with attention and one without, which halves no more; each map fits the block's."""

    class Unet:
        class config:
            block_out_channels = (4, 8, 8, 8)
            down_block_types = ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",)

    maps = new_adapter(Unet, 8)(torch.rand(1, 3, 64, 64))
    assert [tuple(value.shape[1:]) for value in maps] == [(4, 8, 8), (8, 4, 4), (8, 2, 2), (8, 1, 1)]
    Unet.config.down_block_types = ("DownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D", "DownBlock2D")
    with pytest.raises(BadInputError, match="no T2I-Adapter for a UNet of DownBlock2D, CrossAttn"):
        new_adapter(Unet, 8)


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_trains_one(tiny, folder, photos, in_tiny_world, kind):
    AcceleratorState._reset_state()
    asked = recipe(tiny, folder, "data.source=images", f"data.path={photos}", f"controls.softedge.branch={kind}")
    accelerator = make_accelerator("cpu", "fp32")
    train(build_run(asked, accelerator), Path("run"), accelerator, lambda record: None)
    family = family_class(tiny.family).load(folder / "teacher", folder / "student")
    before = drawn(family)
    family.add_control_branch("softedge", "run/controlnet")
    assert (drawn(family, {"softedge": condition_of(family)}) - before).abs().max() > 0
    if kind == "t2i_adapter":
        with pytest.raises(BadInputError, match="softedge has a T2I-Adapter, which export does not know"):
            build_products(asked, Path("run"), family)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        (["branch=lora"], "must be controlnet or controlnet_lora or t2i_adapter"),
        (["branch=t2i_adapter", "init=x"], "starts new: leave out init: x"),
        (
            ["branch=t2i_adapter", "teacher_branch=x"],
            "redistill takes its branches from teacher_branch: leave out branch",
        ),
    ],
)
def test_what_a_recipe_may_not_say(changes, problem):
    method = "redistill" if "teacher_branch=x" in changes else "jdm"
    values = {"name": "x", "method": method, "model": {"teacher": "a", "student": "b"},
              "controls": [{"name": "canny"}], "data": {"source": "tiny"}}  # fmt: skip
    with pytest.raises(RecipeError, match=problem):
        parse_recipe(values, [f"controls.canny.{change}" for change in changes])
