"""How large pictures are: as a recipe says, or a known student's one file, or the student's own configuration."""

import json

import pytest
import torch
from diffusers import DiffusionPipeline
from export_runs import finished_run, run_plain_here
from safetensors.torch import load_file, save_file
from tiny_pipelines import FAMILIES
from tiny_transformers import TRANSFORMERS

from jdmctl.build import build_family, build_roles, build_trained, model_at_start, picture_side
from jdmctl.build_export import build_products
from jdmctl.build_skeletons import skeletons
from jdmctl.build_stand_ins import with_stand_ins
from jdmctl.errors import BadInputError
from jdmctl.families.names import family_class
from jdmctl.recipe_files import load_recipe, parse_recipe
from jdmctl.recipe_sections import Model

TURBO = "sd_xl_turbo_1.0_fp16.safetensors"


@pytest.fixture(scope="module", params=[*FAMILIES, *TRANSFORMERS], ids=str)
def tiny(request):
    return request.param


def test_a_recipe_s_size_is_that_of_latents_and_of_the_pipeline_s_call(tiny, folder):
    """Twice the side of stand-ins, whose pictures have 64 px or fewer."""
    kind, places = family_class(tiny.family), (folder / "teacher", folder / "student")
    own = kind.load(*places, **tiny.student)
    channels, side, _ = own.latent_shape
    size = 2 * own.resolution_px
    family = kind.load(*places, **tiny.student, resolution_px=size)
    assert (family.latent_shape, family.resolution_px) == ((channels, 2 * side, 2 * side), size)
    assert family.call_options == own.call_options | {"height": size, "width": size}
    noise = torch.randn(1, *family.latent_shape)
    with torch.no_grad():
        x0 = family.student.generate(noise, family.encode_prompt(["a red cone"]))
        assert family.codec.decode(x0).shape == (1, 3, size, size)
    same = kind.load(*places, **tiny.student, resolution_px=own.resolution_px)
    assert same.given_px is None and same.call_options == own.call_options
    odd = size + own.side_step_px // 2
    with pytest.raises(BadInputError, match=f"are multiples of {own.side_step_px} px, and resolution_px is {odd}"):
        kind.load(*places, **tiny.student, resolution_px=odd)


def written(tmp_path, name=""):
    """An SDXL stand-in of 64 px, and its student's UNet as one file."""
    FAMILIES[1].write(tmp_path)
    file = tmp_path / (name or "mine.safetensors")
    save_file(load_file(tmp_path / "student" / "unet" / "diffusion_pytorch_model.safetensors"), file)
    return {"family": "sdxl", "teacher": str(tmp_path / "teacher"), "student": str(file)}


def test_a_known_student_s_file_is_drawn_as_large_as_the_registry_says(tmp_path):
    """SDXL-Turbo's is 512 px, whatever its teacher's; another file has its teacher's; a folder speaks for itself."""
    given = written(tmp_path, TURBO)
    assert build_family(Model(**given), "cpu").resolution_px == 512
    assert build_family(Model(**given, resolution_px=128), "cpu").resolution_px == 128
    folder = tmp_path / "sd_turbo" / "student"
    assert picture_side(Model(**given | {"student": str(folder)})) is None
    assert build_family(Model(**written(tmp_path / "other")), "cpu").resolution_px == 64
    assert picture_side(Model(**given | {"family": "stable_diffusion"})) is None


@pytest.mark.parametrize(
    ("name", "side"),
    [
        ("sd15/canny", 512), ("sd15_lcm/canny", 512), ("sdxl_dmd2/canny", 1024), ("sdxl_hyper/canny", 1024),
        ("qwen_image_lightning/canny", 1024), ("sdxl_turbo/canny", None), ("pixart_dmd/canny", None),
        ("tiny/canny", None), ("tiny/distill", None),
    ],
)  # fmt: skip
def test_what_is_known_of_the_shipped_recipes_students(name, side):
    """Of those that are files, and as large as their teachers by the same file; folders have configurations."""
    assert picture_side(model_at_start(load_recipe(name))) == side


def test_what_is_planned_has_that_size_too(tmp_path):
    """A published file that is not here gets its teacher's shapes, but not its size."""
    values = {"name": "x", "controls": [{"name": "canny"}], "data": {"source": "prompts", "path": "p.txt"}}
    model = {"family": "sdxl", "teacher": "stabilityai/stable-diffusion-xl-base-1.0"}
    recipe = parse_recipe(values | {"model": model | {"student": f"stabilityai/sdxl-turbo/{TURBO}"}})
    with skeletons(recipe) as local:
        assert local.model.resolution_px == 512
    assert with_stand_ins(recipe, tmp_path).model.resolution_px is None


def test_a_student_that_a_run_leaves_says_its_size_itself(tmp_path):
    given = written(tmp_path, TURBO) | {"resolution_px": 128}
    run = finished_run(tmp_path / "run", tmp_path / "student", "full", (), given)
    recipe = load_recipe(run)
    assert build_trained(recipe, run, {}).resolution_px == 128
    pipe = DiffusionPipeline.from_pretrained(run / "student")
    assert pipe.default_sample_size * pipe.vae_scale_factor == 128


def test_an_export_draws_at_that_size(tmp_path, jdmctl_command, monkeypatch):
    given = written(tmp_path) | {"resolution_px": 128}
    run = finished_run(tmp_path / "run", tmp_path / "student", model=given)
    recipe = load_recipe(run)
    contract = build_products(recipe, run, build_roles(recipe, "cpu"))[0].contract
    assert contract.resolution_px == contract.call["height"] == contract.call["width"] == 128
    run_plain_here(monkeypatch)
    code, text, error = jdmctl_command("export", run, "-o", tmp_path / "out", "--json")
    assert code == 0, error
    assert json.loads(text)["largest_difference"]["folders"] <= 1 / 255


def test_a_sample_s_command_says_it(tmp_path, jdmctl_command):
    given = written(tmp_path)
    places = ["--student", given["student"], "--teacher", given["teacher"], "--resolution-px", "128"]
    code, text, error = jdmctl_command("sample", *places, "-o", tmp_path / "out", "--json")
    assert code == 0, error
    record = json.loads(text.splitlines()[0])
    assert "--resolution-px 128" in record["command"]
