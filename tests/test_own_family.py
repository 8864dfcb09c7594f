"""examples/own_family: a model that is not of diffusers, brought by another package's entry point."""

import importlib
import json
import sys
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file, save_file

from jdmctl.build import build_family
from jdmctl.build_memory import cache_latents
from jdmctl.cli import app as cli
from jdmctl.errors import BadInputError, JdmError
from jdmctl.families.names import family_class, family_names
from jdmctl.recipe_sections import Model

EXAMPLE = Path(__file__).parents[1] / "examples" / "own_family"


@pytest.fixture
def own_family(tmp_path, monkeypatch) -> Path:
    """The example as an installed package, and folders teacher/ and student/ of random weights."""
    info = tmp_path / "site" / "jdm_small_ddpm-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: jdm-small-ddpm\nVersion: 1.0\n")
    _, _, points = (EXAMPLE / "pyproject.toml").read_text().partition('[project.entry-points."jdmctl.families"]\n')
    entries = "[jdmctl.families]\n" + points.partition("\n\n")[0].replace('"', "") + "\nbroken = absent:Absent\n"
    (info / "entry_points.txt").write_text(entries)
    for path in (EXAMPLE, tmp_path / "site"):
        monkeypatch.syspath_prepend(path)
    importlib.invalidate_caches()
    from ddpm import DDPM

    torch.manual_seed(0)
    DDPM().save(tmp_path / "teacher")
    DDPM().save(tmp_path / "student")
    yield tmp_path
    for name in ("ddpm", "small_ddpm"):
        sys.modules.pop(name, None)


@pytest.fixture
def family(own_family):
    return build_family(
        Model(family="small_ddpm", teacher=str(own_family / "teacher"), student=str(own_family / "student")), "cpu"
    )


def test_it_is_found_and_what_is_broken_is_told(own_family):
    assert {"small_ddpm", "broken", "stable_diffusion"} <= set(family_names())
    assert family_class("small_ddpm").name == "small_ddpm"
    with pytest.raises(JdmError, match="'broken' cannot be imported from absent:Absent"):
        family_class("broken")


def test_a_control_is_added_and_drawn_with(own_family, photos, monkeypatch, capsys):
    """From the command line: a step of JDM, resumed for another, and a picture of the run; then a student's LoRA."""
    monkeypatch.chdir(own_family)
    monkeypatch.setenv("JDMCTL_CACHE", str(own_family / "cache"))
    quick = ("training.batch_size=2", "training.save_every_steps=1", "training.validate_every_steps=1",
             "fake_score.warmup_min_steps=0", "fake_score.warmup_max_steps=1", "data.num_validation_samples=2",
             "model.family=small_ddpm")  # fmt: skip

    def jdmctl(*words):
        AcceleratorState._reset_state()
        monkeypatch.setattr(sys, "argv", ["jdmctl", *map(str, words), "--device", "cpu"])
        with pytest.raises(SystemExit) as left:
            cli.app()
        assert not left.value.code, capsys.readouterr().err

    options = ("--teacher", "teacher", "--student", "student", "--control", "softedge", "--data", photos)
    options += tuple(word for change in quick for word in ("--set", change))
    jdmctl("add-control", *options, "--num-steps", 1, "-o", "run")
    jdmctl("add-control", "run", "--resume", "--num-steps", 2)
    assert Path("run/checkpoints/step-000002").is_dir()
    assert load_file("run/controlnet/branch.safetensors")["say.weight"].any()  # zeros at first
    jdmctl("sample", "run", "--num", 2, "-o", "drawn")
    assert list(Path("drawn").glob("*.png"))
    jdmctl("add-control", *options, "--num-steps", 1, "-o", "lora", "--set", "student.trainable=lora",
           "--set", "objective.divergence=js")  # fmt: skip
    assert any(value.any() for name, value in load_file("lora/student_lora/lora.safetensors").items() if "_B" in name)


def test_one_step_and_a_branch_at_its_start(family):
    """x0 = (x_t - sigma epsilon) / alpha at the last of 200 levels; a new branch changes no bit of it."""
    noise, prompt = torch.randn(2, *family.latent_shape), family.encode_prompt(["a red cone", "words"])
    assert prompt.tolist() == [1, 0]
    epsilon = family.student.backbone(noise, torch.tensor([199, 199]), prompt)
    one = torch.ones(1)
    alpha, sigma = family.schedule.alpha(one), family.schedule.sigma(one)
    drawn = family.student.generate(noise, prompt)
    torch.testing.assert_close(drawn, (noise - sigma * epsilon) / alpha, rtol=1e-4, atol=1e-4)
    family.add_control_branch("canny")
    assert torch.equal(family.student.generate(noise, prompt, {"canny": torch.rand(2, 3, 16, 16)}), drawn)


def test_latents_are_kept_where_there_is_no_vae_too(family, tmp_path, monkeypatch):
    monkeypatch.setenv("JDMCTL_CACHE", str(tmp_path / "cache"))
    pictures = torch.rand(2, 3, family.resolution_px, family.resolution_px)
    wanted = family.codec.encode(pictures)
    cache_latents(family)
    assert torch.equal(family.codec.encode(pictures), wanted) and family.image_encoder is None
    assert len(list((tmp_path / "cache" / "latents").rglob("*.npz"))) == 2


def test_its_students_come_as_folders_or_weights_alone(own_family, family, tmp_path):
    kind, noise = family_class("small_ddpm"), torch.randn(1, *family.latent_shape)
    drawn = family.student.generate(noise, family.encode_prompt(["cone"]))
    save_file(load_file(own_family / "student" / "ddpm.safetensors"), tmp_path / "weights.safetensors")
    family.save_student(tmp_path / "saved")
    for source in ("weights.safetensors", "saved"):
        other = kind.load(own_family / "teacher", tmp_path / source)
        assert torch.equal(other.student.generate(noise, other.encode_prompt(["cone"])), drawn)
    (tmp_path / "saved" / "config.json").write_text(json.dumps({"model": "large-ddpm"}))
    with pytest.raises(BadInputError, match="is a large-ddpm"):
        kind.load(own_family / "teacher", tmp_path / "saved")
