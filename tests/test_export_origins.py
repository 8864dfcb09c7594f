"""The card's and the check's code for pipelines and students that are not an ordinary folder."""

import json
import shutil
from pathlib import Path

import huggingface_hub
import pytest
import torch
from diffusers import UNet2DConditionModel
from export_runs import finished_run, run_plain_here
from peft import get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from test_student_forms import in_ldm_keys

from jdmctl.build_export import build_export_family
from jdmctl.errors import MissingWeightsError
from jdmctl.families.folders import load_component, variant_of
from jdmctl.families.names import family_class
from jdmctl.families.standins.write import STAND_INS
from jdmctl.recipe_files import load_recipe
from jdmctl.sampling import draw


def random_lora(family, folder, file):
    """A LoRA of the teacher's network that matters, as `distill --trainable lora` would leave it."""
    kind = family_class(family)
    model = kind.load(folder / "teacher", folder / "teacher")
    model.add_student_lora(2)
    layers = get_peft_model_state_dict(model.student.backbone)
    generator = torch.Generator().manual_seed(1)
    filled = {
        f"{kind.subfolder}.{key}": 0.1 * torch.randn(value.shape, generator=generator) for key, value in layers.items()
    }
    save_file(filled, file)


@pytest.mark.parametrize("family", ["pixart_alpha", "pixart_sigma"])
@pytest.mark.parametrize("form", ["pipeline", "lora"])
def test_a_pipeline_without_load_lora_weights(family, form, tmp_path, jdmctl_command, monkeypatch):
    """PixArt's: the card adds the layers to the weights, those of the run and those of a student that is a LoRA."""
    STAND_INS[family].write(tmp_path)
    student = tmp_path / "student"
    if form == "lora":
        student = tmp_path / "student.safetensors"
        random_lora(family, tmp_path, student)
    model = {"family": family, "teacher": str(tmp_path / "teacher"), "student": str(student)}
    run = finished_run(tmp_path / "run", student, "lora", (), model)
    run_plain_here(monkeypatch)
    code, text, error = jdmctl_command("export", run, "-o", tmp_path / "out", "--dtype", "bf16", "--json")
    assert code == 0, error
    assert json.loads(text)["largest_difference"]["folders"] <= 1 / 255
    card = (tmp_path / "out" / "README.md").read_text()
    assert "load_lora_weights" not in card
    assert card.count("= load_file(") == (2 if form == "lora" else 1)


def in_variant(folder, variant, pattern="**/*.safetensors"):
    """Weights of a folder in half precision under a variant's names alone, as `--include "*fp16*"` downloads them."""
    dtype = torch.bfloat16 if variant == "bf16" else torch.float16
    for file in [*folder.glob(pattern)]:
        half = {key: value.to(dtype) if value.is_floating_point() else value for key, value in load_file(file).items()}
        save_file(half, file.with_suffix(f".{variant}.safetensors"), metadata={"format": "pt"})
        file.unlink()


def in_hub_cache(folder, name, cache):
    """A folder as the hub's client keeps what it downloaded."""
    repository = cache / f"models--{name.replace('/', '--')}"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0" * 40)
    shutil.copytree(folder, repository / "snapshots" / ("0" * 40))


@pytest.mark.parametrize(
    ("form", "variant", "where"),
    [
        ("pipeline", "fp16", "folder"),
        ("pipeline", "bf16", "folder"),
        ("pipeline", "ema", "folder"),
        ("backbone", "bf16", "folder"),
        ("pipeline", "fp16", "hub"),
        ("pipeline", "bf16", "hub"),
    ],
)
def test_weights_that_are_there_in_a_variant_alone(form, variant, where, tmp_path, jdmctl_command, monkeypatch):
    """Plain diffusers says OSError without `variant=`. One component keeps its plain files, as mixed folders do."""
    STAND_INS["stable_diffusion"].write(tmp_path)
    student = tmp_path / "student" / "unet" if form == "backbone" else tmp_path / "student"
    for folder in (tmp_path / "teacher", tmp_path / "student"):
        in_variant(folder, variant, "unet/*.safetensors" if variant == "ema" else "**/*.safetensors")
    given = {"teacher": str(tmp_path / "teacher"), "student": str(student)}
    if where == "hub":
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        for role in given:
            in_hub_cache(tmp_path / role, f"owner/{role}", tmp_path / "cache")
            given[role] = f"owner/{role}"
    run = finished_run(tmp_path / "run", student, model=given)
    run_plain_here(monkeypatch)
    code, text, error = jdmctl_command("export", run, "-o", tmp_path / "out", "--json")
    assert code == 0, error
    assert json.loads(text)["largest_difference"]["folders"] <= 1 / 255
    card = (tmp_path / "out" / "README.md").read_text()
    assert card.count(f', variant="{variant}"') == (2 if form == "backbone" else 1)


def test_what_is_missing_in_every_variant_is_called_by_its_plain_name(tmp_path, monkeypatch):
    STAND_INS["stable_diffusion"].write(tmp_path)
    (tmp_path / "teacher" / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    in_hub_cache(tmp_path / "teacher", "owner/teacher", tmp_path / "cache")
    with pytest.raises(MissingWeightsError, match=r"diffusion_pytorch_model\.safetensors"):
        load_component(UNet2DConditionModel, "owner/teacher", "unet")


def test_which_variant_is_taken():
    """Plain files first, whatever lies beside them; parts are named as diffusers and transformers do, or once did."""
    for names, variant in (
        (["model.safetensors", "model.fp16.safetensors"], ""),
        (["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"], ""),
        (["diffusion_pytorch_model.non_ema.safetensors", "diffusion_pytorch_model.bf16.safetensors"], "bf16"),
        (["diffusion_pytorch_model.fp16-00001-of-00002.safetensors"], "fp16"),
        (["diffusion_pytorch_model-00001-of-00002.fp16.safetensors"], "fp16"),
        (["diffusion_pytorch_model.fp16.safetensors", "pytorch_lora_weights.safetensors"], "fp16"),
        (["some.weights.safetensors"], ""),
        ([], ""),
    ):
        assert variant_of(map(Path, names)) == variant


@pytest.mark.parametrize(
    ("family", "form"),
    [
        ("stable_diffusion", "lora"),
        ("stable_diffusion", "weights"),
        ("stable_diffusion", "checkpoint"),
        ("pixart_alpha", "lora"),
    ],
)
def test_a_student_that_is_a_file_of_a_hub_repository(family, form, tmp_path, jdmctl_command, monkeypatch):
    """The card names both, as everybody can have it, and draws what the run draws; the check reads the file here."""
    STAND_INS[family].write(tmp_path)
    file = tmp_path / "published" / "one" / "step.safetensors"
    file.parent.mkdir(parents=True)
    if form == "lora":
        random_lora(family, tmp_path, file)
    else:
        weights = load_file(tmp_path / "student" / "unet" / "diffusion_pytorch_model.safetensors")
        save_file({in_ldm_keys(key) if form == "checkpoint" else key: value for key, value in weights.items()}, file)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    in_hub_cache(tmp_path / "published", "owner/name", tmp_path / "cache")
    name = "owner/name/one/step.safetensors"
    given = {"family": family, "teacher": str(tmp_path / "teacher"), "student": name}
    run = finished_run(tmp_path / "run", tmp_path, "lora", (), given)
    run_plain_here(monkeypatch)
    code, text, error = jdmctl_command("export", run, "-o", tmp_path / "out", "--json")
    assert code == 0, error
    assert json.loads(text)["largest_difference"]["folders"] <= 1 / 255
    card = (tmp_path / "out" / "README.md").read_text()
    here = '"owner/name", weight_name="one/step.safetensors"'
    is_read = form != "lora" or family == "pixart_alpha"
    assert ('hf_hub_download("owner/name", "one/step.safetensors")' if is_read else here) in card
    assert ("from huggingface_hub import hf_hub_download" in card) == is_read
    assert "base_model: owner/name\n" in card and "./step" not in card and str(tmp_path / "cache") not in card

    monkeypatch.chdir(tmp_path)  # where ./teacher is
    scope: dict = {}
    exec(card.split("```python\n")[1].split("```")[0], scope)
    theirs = torch.tensor(list(scope["image"].getdata())).reshape(64, 64, 3).permute(2, 0, 1) / 255
    ours = draw(build_export_family(load_recipe(run), run, "cpu"), ["a prompt"], [0])[0]
    assert (ours - theirs).abs().max() <= 1 / 255
