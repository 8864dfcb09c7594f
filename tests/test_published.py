"""Every published full-size configuration, on the meta device: as many parameters as its published weights hold."""

import functools
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from jdmctl.families import FAMILIES
from jdmctl.families.names import family_class
from jdmctl.families.published import find_published, published
from jdmctl.families.students import students

UNITS = {"B": 1, "MB": 10**6, "GB": 10**9}
HEADER = 2 * 10**6  # of a safetensors file, at most


@functools.cache
def built(name: str):
    return published().components[name].build()


def branch(name: str, kind: str):
    """A new control branch of a published model; a family needs its backbone and its VAE for that alone."""
    model = published().models[name]
    family = object.__new__(family_class(model.family))
    family.parts, denoiser = {"vae": built(model.vae)}, SimpleNamespace(backbone=built(model.backbone))
    with torch.device("meta"):
        return family.new_branch(denoiser) if kind == "controlnet" else family.light_branch(denoiser, kind, 64)


TOLD = Path(__file__).parents[1] / "docs" / "memory.md"
MODELS = "sd15 sd21 sdxl pixart-512 sd35-large flux sana-sprint-1.6b sana-sprint-0.6b z-image qwen-image".split()
BRANCHES = [(name, "controlnet") for name in MODELS]
BRANCHES += [("sdxl", "controlnet_lora"), ("sd15", "t2i_adapter"), ("sdxl", "t2i_adapter")]


@pytest.mark.slow
@pytest.mark.skipif(not TOLD.is_file(), reason="docs are not in the package")
@pytest.mark.parametrize(("name", "kind"), BRANCHES)
def test_a_branch_is_as_large_as_the_docs_say(name, kind):
    """Parameters, all of them, of the published configuration; a ControlNet-LoRA borrows all that is not trained."""
    new = branch(name, kind)
    if kind == "controlnet_lora":
        new.open()
    count = sum(p.numel() for p in new.parameters() if p.requires_grad)
    assert all(p.is_meta for p in new.parameters())
    assert f"| `{name}` | `{kind}` | {count:,} |" in TOLD.read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "kind", "size", "bytes_each", "missing"),
    [
        # huggingface.co/lllyasviel/control_v11p_sd15_canny, diffusion_pytorch_model.safetensors
        ("sd15", "controlnet", 1.45e9, 4, 0),
        # huggingface.co/alx-ai/canny_21, control_v11p_sd21_canny.safetensors (refs/pr/5)
        ("sd21", "controlnet", 728e6, 2, 0),
        # huggingface.co/thingthatis/controlnet-canny-sdxl-1.0, of diffusers/: diffusion_pytorch_model.fp16.safetensors
        ("sdxl", "controlnet", 2.5e9, 2, 0),
        # huggingface.co/TencentARC/t2iadapter_canny_sd15v2, diffusion_pytorch_model.bin; it sees one channel, not three
        ("sd15", "t2i_adapter", 308e6, 4, 2 * 8 * 8 * 320 * 3 * 3),
    ],
)  # fmt: skip
def test_a_branch_is_as_large_as_published_ones(name, kind, size, bytes_each, missing):
    """To the last digit that the page of its file tells, which is half a hundredth or less."""
    count = sum(p.numel() for p in branch(name, kind).parameters()) - missing
    assert count * bytes_each == pytest.approx(size, rel=0.005)


@pytest.mark.parametrize("name", [name for name, one in published().components.items() if one.size])
def test_as_large_as_published(name):
    """Told to the byte: equal but for a file's header. Told as 9.52 GB: equal to the last digit told."""
    component = published().components[name]
    number, unit = component.size.split()
    count = built(name).num_parameters() + component.buffers
    expected = count * component.bytes_each
    if unit == "B":
        assert 0 <= int(number) - expected < HEADER
    else:
        digits = len(number.partition(".")[2])
        half = 0.5 * 10**-digits
        assert abs(expected / UNITS[unit] - float(number)) <= half * 1.2, f"{expected / UNITS[unit]} {unit}"


@pytest.mark.parametrize(
    ("name", "million"),
    [("sd15-unet", 859.520964), ("sdxl-unet", 2567.463684), ("flux-schnell-transformer", 11891.17856)],
)
def test_parameters_of_some(name, million):
    """859.5 M, 2.57 B and 11.9 B: what the exact sizes above come to."""
    assert built(name).num_parameters() == round(million * 1e6)


def test_models_name_components_and_known_families():
    known = published().components
    for model in published().models.values():
        assert {model.backbone, model.vae, *model.text_encoders} <= known.keys()
    assert {one.family for one in published().models.values()} == set(FAMILIES)
    assert FAMILIES.keys() - {one.family for one in students().values()} == {"pixart_sigma"}  # only a teacher


@pytest.mark.parametrize("name", list(published().models))
def test_pictures_are_as_large_as_said(name):
    """A backbone's sample_size, or else its VAE's, makes them so; 1024 px where neither is told."""
    model, known = published().models[name], published().components
    vae = known[model.vae].config
    blocks = vae.get("block_out_channels") or vae.get("encoder_block_out_channels")
    if side := known[model.backbone].config.get("sample_size"):
        assert side * 2 ** (len(blocks) - 1) == model.resolution_px
    else:
        assert vae.get("sample_size", 1024) == model.resolution_px


@pytest.mark.parametrize(("name", "side"), [("sdxl-turbo", 512), ("sd-turbo", 512), ("pixart-dmd", 512)])
def test_a_student_is_planned_as_large_as_it_is_drawn(name, side):
    """By the registry; SDXL-Turbo had its teacher's 1024 px."""
    assert students()[name].resolution_px == find_published(students()[name].repository).resolution_px == side


def test_stable_diffusion_2_1_has_two_sizes():
    for owner in ("stabilityai", "sd2-community"):
        model, base = (find_published(f"{owner}/stable-diffusion-2-1{end}") for end in ("", "-base"))
        assert (model.resolution_px, base.resolution_px) == (768, 512)


def test_every_whole_student_has_a_published_model():
    """So that jdmctl plan can tell what it needs before it is downloaded; the family is the same in both files."""
    for student in students().values():
        for repository in [student.repository] * (student.weights == "folder") + [student.teacher]:
            model = find_published(repository)
            assert model is None or model.family == student.family, repository
            assert model or repository in NOT_TOLD, repository


NOT_TOLD = {  # teachers whose configuration no stored page told
    "Efficient-Large-Model/Sana_600M_1024px_diffusers",
    "XCLiu/2_rectified_flow_from_sd_1_5",
}


def test_what_no_page_tells_the_size_of():
    untold = {name for name, one in published().components.items() if not one.size}
    assert untold == {"qwen-image-vae"}


def test_nothing_is_allocated():
    assert all(p.is_meta for p in built("qwen-image-transformer").parameters())
