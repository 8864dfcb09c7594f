"""The card's and the check's code for pipelines and students that are not an ordinary folder."""

import json

import pytest
import torch
from export_runs import finished_run, run_plain_here
from peft import get_peft_model_state_dict
from safetensors.torch import save_file

from jdmctl.families.names import family_class
from jdmctl.families.standins.write import STAND_INS


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
