"""examples/taste on the embedded world: what a student's pictures are measured by."""

from pathlib import Path

import pytest

from jdmctl.families.stable_diffusion import StableDiffusion
from jdmctl.tinyworld.world import world_folder


@pytest.mark.slow
def test_marks_of_the_student_before(tmp_path, monkeypatch):
    """Measured against itself a student has gained nothing; pictures turned red have, since the taste is for warmth."""
    monkeypatch.setenv("JDMCTL_CACHE", str(tmp_path))
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "examples" / "taste"))
    import study

    family = StableDiffusion.load(world_folder() / "teacher", world_folder() / "student")
    exam = study.Exam.make("val", 16, family)
    images = study.draw(family, exam.captions, 0, "score")
    before = exam.marks(images)
    assert before["true taste gain"] == pytest.approx((0, 0, 0))
    assert before["frechet"][0] > 0 and 0 <= before["stated accuracy"][0] <= 1
    images[:, 0] += (1 - images[:, 0]) / 2
    after = exam.marks(images)
    assert after["true taste gain"][1] > 0 and after["open entropy"][0] >= 0
