"""The embedded world as the package ships it."""

import pytest
import torch
from diffusers import StableDiffusionPipeline

from jdmctl.build import build_family
from jdmctl.recipe_sections import Model
from jdmctl.tinyworld.judge import Judge
from jdmctl.tinyworld.stages.student import draw
from jdmctl.tinyworld.world import SHIPPED, own_students, samples


def test_weights_are_safetensors_of_25_megabytes_at_most():
    weights = [file for file in SHIPPED.rglob("*") if file.is_file() and file.suffix not in (".json", ".txt")]
    assert {file.suffix for file in weights} == {".safetensors"}
    assert sum(file.stat().st_size for file in weights) <= 25_000_000


def test_its_students_are_known(tiny_world, monkeypatch):
    """Both of the shipped world's; one that was built without a LoRA has the other alone."""
    assert own_students() == ["tiny/student", "tiny/student_lora"]
    monkeypatch.setenv("JDMCTL_WORLD", str(tiny_world))
    assert own_students() == ["tiny/student"]


def test_the_student_that_is_a_lora_is_one_to_plain_diffusers():
    """Its file on the teacher's pipeline gives the same epsilon as the student that jdmctl makes of both."""
    pipe = StableDiffusionPipeline.from_pretrained(SHIPPED / "teacher", safety_checker=None)
    x_t, text = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(0)), torch.zeros(2, 8, 96)
    before = pipe.unet(x_t, 999, text).sample
    pipe.load_lora_weights(SHIPPED / "student_lora")
    found = pipe.unet(x_t, 999, text).sample
    family = build_family(Model(teacher="tiny", student="tiny/student_lora"), "cpu")
    wanted = family.student.backbone(x_t, 999, text).sample
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=0)
    assert (found - before).abs().mean() > 0.01


@pytest.mark.slow
def test_the_student_that_is_a_lora_is_nearer_to_true_pictures():
    """By a tenth and more, on 600 captions of val (docs/results.md has both on test)."""
    judge, val, reference = Judge.load(SHIPPED), samples("val"), samples("reference").image(slice(0, 1000))
    distance = {
        name: judge.frechet(
            draw(build_family(Model(teacher="tiny", student=name), "cpu"), val, range(600), 1), reference
        )
        for name in ("tiny/student", "tiny/student_lora")
    }
    assert distance["tiny/student_lora"] < 0.9 * distance["tiny/student"]
