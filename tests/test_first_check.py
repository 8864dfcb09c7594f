"""The first check of a student, on the embedded world that comes with jdmctl."""

import contextlib
import json
from itertools import islice

import pytest
import torch
from accelerate.state import AcceleratorState

from jdmctl.build import build_family
from jdmctl.cli.doctor import doctor
from jdmctl.errors import JdmError
from jdmctl.evaluation.contract import better, distances, other_calls, spectral_distance
from jdmctl.families.standins.write import STAND_INS
from jdmctl.first_check import FirstCheck
from jdmctl.recipe_sections import Model
from jdmctl.training.draws import SampleDraws
from jdmctl.training.run import make_accelerator


def test_spectral_distance():
    """Half the amplitude is a quarter of the power at all frequencies: log 4 apart; the same is 0."""
    torch.manual_seed(0)
    latents = torch.randn(4, 2, 16, 16)
    assert spectral_distance(latents, latents) == 0
    assert spectral_distance(0.5 * latents, latents) == pytest.approx(1.3863, abs=1e-3)


def test_the_right_call_is_preferred_to_wrong_ones():
    """The embedded student, distilled at t = 1 with v: whatever else it is called as, its own call is clearly better,
    but for t = 0.8, which is as good."""
    family = build_family(Model(teacher="tiny", student="tiny"), "cpu")
    prompt = family.encode_prompt(["a red cone on a tan floor", "a blue ball on a white floor"] * 4)
    noise = SampleDraws(0, "contract", range(8)).normal("noise", family.latent_shape)
    reference = family.multistep(noise, prompt, 15)
    right = (1.0, "v_prediction")
    calls = other_calls(right)
    assert len(calls) == 8
    found = distances(family.student, noise, prompt, reference, calls)
    assert better(right, found) is None, found
    assert (family.student.student_time, family.student.prediction) == right
    for wrong in calls:
        if wrong not in (right, (0.8, "v_prediction")):
            assert better(wrong, found) is not None, (wrong, found)


def test_doctor_with_a_student(tmp_path, capsys):
    """Every check of the embedded student passes, and pictures and a ControlNet are written."""
    doctor(student="tiny", teacher="tiny", output=tmp_path / "check", device="cpu", as_json=True)
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    checks = {row["check"]: row for row in rows if "check" in row}
    assert len(checks) == 6 and all(row["ok"] for row in checks.values()), checks
    assert (tmp_path / "check" / "one-step.png").is_file()
    assert (tmp_path / "check" / "run" / "controlnet" / "config.json").is_file()


def test_all_of_it_has_one_precision(tmp_path, monkeypatch):
    """A second accelerator of a process must not ask for another, as one for bf16 after one for float32 would."""
    asked = []

    def make(device, precision):
        asked.append(precision)
        return make_accelerator("cpu", precision)

    monkeypatch.setattr("jdmctl.first_check.make_accelerator", make)
    monkeypatch.setattr("jdmctl.first_check.FirstCheck._precision", "bf16")
    AcceleratorState._reset_state()
    found = list(FirstCheck("tiny", "tiny", "cpu", tmp_path / "check").run())
    assert len(found) == 6 and all(one.ok for one in found), found
    assert asked == ["bf16", "bf16"]
    AcceleratorState._reset_state()


def test_the_angle_of_an_unknown_sana_sprint_is_pure_noise(tmp_path):
    """1.5708, and no timestep near 0."""
    STAND_INS["sana"].write(tmp_path)
    check = FirstCheck(str(tmp_path / "student"), str(tmp_path / "teacher"), "cpu", tmp_path / "check")
    assert all(one.ok for one in islice(check.run(), 2))
    assert check.state["model"].student_time == 1


def test_a_teacher_tells_the_family_of_what_fits_several(tmp_path):
    """PixArt's Alpha and Sigma have one transformer: its own folder does not tell which it is of."""
    backbone, teacher = tmp_path / "backbone", tmp_path / "teacher"
    for folder, file, kind in (
        (backbone, "config.json", "PixArtTransformer2DModel"),
        (teacher, "model_index.json", "PixArtSigmaPipeline"),
    ):
        folder.mkdir()
        (folder / file).write_text(json.dumps({"_class_name": kind}))
    check = FirstCheck(str(backbone), str(teacher), "cpu", tmp_path / "check")
    assert check._identity()[0] and check.state["model"].family == "pixart_sigma"


def test_doctor_does_not_say_that_it_can_go_on(tmp_path):
    (tmp_path / "recipe.yaml").touch()
    with pytest.raises(JdmError, match="is already there") as caught:
        doctor(student="tiny", output=tmp_path, device="cpu")
    assert caught.value.hint == "choose another --output"


def test_a_folder_that_cannot_be_written_to_is_told_before_anything_is_loaded(tmp_path):
    (tmp_path / "file").touch()
    check = FirstCheck("tiny", "tiny", "cpu", tmp_path / "file" / "check")
    with pytest.raises(JdmError, match="could not save .*one-step.png"):
        next(check.run())
    assert not check.state


def test_doctor_names_what_there_is(tmp_path, monkeypatch, capsys):
    """Nothing, where no picture was drawn yet."""
    for ok in (False, True):

        def drawn(check, ok=ok):
            if ok:
                (check.folder / "one-step.png").touch()
            return ok, "", ""

        monkeypatch.setattr(FirstCheck, "_checks", lambda check, one=drawn: {"draws": lambda: one(check)})
        with contextlib.suppress(JdmError):
            doctor(student="tiny", output=tmp_path / str(ok), device="cpu")
        assert (f"in {tmp_path / str(ok)}: one-step.png" in capsys.readouterr().err) == ok


def test_doctor_stops_at_the_first_check_that_fails(tmp_path, capsys):
    with pytest.raises(JdmError, match="did not pass: what it is"):
        doctor(student=str(tmp_path), output=tmp_path / "check", device="cpu", as_json=True)
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines() if '"check"' in line]
    assert [row["ok"] for row in rows] == [True, False] and rows[-1]["do"]
