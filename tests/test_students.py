"""The registry of students: every fact has a source or says that it has none, and diffusers agrees where it can."""

import json
import math
from importlib.resources import files
from pathlib import Path

import diffusers
import pytest
from pydantic import ValidationError

from jdmctl.cli.students import students as list_or_show
from jdmctl.errors import BadInputError
from jdmctl.families.students import Student, find_student, registry, source, students, time_of


def entry(**changes) -> dict:
    given = students()["sd-turbo"].model_dump(by_alias=True)
    return given | changes


def test_the_file_is_valid_and_names_no_key_twice():
    """PyYAML keeps the last of two equal keys in silence: count them in the text."""
    text = files("jdmctl.families").joinpath("students.yaml").read_text()
    names = [line.strip(" :") for line in text.split("\nstudents:\n")[1].splitlines() if line.startswith("  ")
             and not line.startswith("   ")]  # fmt: skip
    assert names == list(students()) and len(names) > 20
    assert set(registry().sources) == {key for one in students().values() for key in one.sources.values()}


@pytest.mark.parametrize("name", list(students()))
def test_the_scheduler_of_each_gives_its_timestep(name):
    """set_timesteps(1) of the registered class and settings is the registered timestep; where the timestep has to be
    passed, the scheduler would by itself choose another, and takes it if asked."""
    student = students()[name]
    if student.scheduler is None:
        assert student.timestep_from == "argument"
        return
    scheduler = getattr(diffusers, student.scheduler.class_name)(**student.scheduler.settings)
    if student.prediction == "trigflow":
        scheduler.set_timesteps(1, intermediate_timesteps=None)
    elif student.scheduler.settings.get("use_dynamic_shifting"):
        scheduler.set_timesteps(1, mu=student.scheduler.settings["max_shift"])
    else:
        scheduler.set_timesteps(1)
    chosen = float(scheduler.timesteps[0])
    if student.timestep_from == "scheduler":
        assert chosen == pytest.approx(student.timestep, abs=1e-3)
    else:
        assert chosen != student.timestep
        scheduler.set_timesteps(timesteps=[int(student.timestep)])
        assert float(scheduler.timesteps[0]) == student.timestep
    assert scheduler.config.get("prediction_type", "flow_prediction") == student.prediction


def test_a_fact_without_source_is_refused():
    with pytest.raises(ValidationError, match="licence is to be either in sources or in unverified"):
        Student.model_validate(entry(sources={k: v for k, v in entry()["sources"].items() if k != "licence"}))
    with pytest.raises(ValidationError, match="prediction"):
        Student.model_validate(entry(prediction="x0"))
    Student.model_validate(entry())


def test_time_of_the_one_call():
    """399 of 999 rows; pure noise is 1 for tables, flows and the trigonometric flow."""
    assert students()["dmd2-sdxl-1step"].student_time == pytest.approx(399 / 999)
    for name in ("sd-turbo", "flux-schnell", "sana-sprint-0.6b"):
        assert students()[name].student_time == pytest.approx(1)
    assert time_of(math.pi / 4, "trigflow") == pytest.approx(0.5)  # as much noise as picture


@pytest.mark.parametrize(
    ("name", "timestep", "prediction"),
    [
        ("sd-turbo", None, None),
        ("flux-schnell", None, None),
        ("sana-sprint-0.6b", None, None),
        ("dmd2-sdxl-1step", 399, "epsilon"),
        ("hyper-sdxl-1step", 800, "epsilon"),
        ("sdxl-lightning-1step", None, "sample"),
        ("pixart-dmd", 400, "epsilon"),
    ],
)
def test_how_a_recipe_calls_it(name, timestep, prediction):
    """Its own folder tells what it predicts, a file of weights does not; None for the timestep is pure noise."""
    told = {"student_time": 1.0, "student_timestep": timestep, "student_prediction": prediction}
    assert students()[name].called_as == told


def test_finding_by_name_repository_and_slip():
    assert find_student("sd-turbo")[0] == find_student("StabilityAI/sd-turbo")[0] == "sd-turbo"
    with pytest.raises(BadInputError) as several:
        find_student("tianweiy/DMD2")
    assert "dmd2-sdxl-1step" in several.value.hint
    with pytest.raises(BadInputError) as slip:
        find_student("sdturbo")
    assert "sd-turbo" in slip.value.hint


def test_a_source_is_an_address_or_nothing():
    student = students()["sd35-large-turbo"]
    assert source(student, "licence").startswith("https://huggingface.co/stabilityai/")
    assert source(student, "guidance_scale") == "" and "guidance_scale" in student.unverified


def test_the_command_lists_and_shows(capsys):
    """Every student has a row, and the README tells how many facts in all have no source; one is shown with the address
    behind its timestep."""
    list_or_show(as_json=True)
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["name"] for row in rows] == list(students())
    without, facts = (sum(int(row["unverified"].split(" of ")[i]) for row in rows) for i in (0, 1))
    told = Path(__file__).parents[1].joinpath("README.md").read_text(encoding="utf-8")
    assert f"{without} of the {facts} facts" in told
    list_or_show("dmd2-sdxl-1step", as_json=True)
    shown = json.loads(capsys.readouterr().out)
    assert shown["timestep"] == 399 and "github.com/tianweiy/DMD2" in shown["sources"]["timestep"]
    list_or_show("dmd2-sdxl-1step")
    assert "pickle" in capsys.readouterr().out
