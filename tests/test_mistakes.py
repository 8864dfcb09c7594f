"""Mistakes at the command line: each is told in a sentence, and what can go on goes on."""

import json

import pytest


def test_recipes_validate_tells_of_all_and_ends_with_1(jdmctl_command, tmp_path):
    (tmp_path / "bad.yaml").write_text("name: x\n")
    names = ["tiny/canny", str(tmp_path / "bad.yaml"), "nope.yaml", "tiny/depth"]
    code, out, err = jdmctl_command("recipes", "validate", *names)
    assert code == 1 and out == "tiny/canny is valid\ntiny/depth is valid\n"
    assert "error: " in err and "3 problems" in err and "no recipe named nope.yaml" in err
    code, out, err = jdmctl_command("recipes", "validate", *names, "--json")
    assert code == 1 and "3 problems" in err
    rows = [json.loads(line) for line in out.splitlines()]
    assert [(row["recipe"], row["valid"]) for row in rows] == list(zip(names, (True, False, False, True), strict=True))
    assert "no recipe named nope.yaml" in rows[2]["problem"]


def test_a_recipe_that_is_no_text_is_a_mistake(jdmctl_command, tmp_path):
    file = tmp_path / "latin.yaml"
    file.write_bytes("name: caf\xe9\n".encode("latin-1"))
    for words in (("show", file), ("copy", file, tmp_path / "mine.yaml"), ("validate", file)):
        code, _, err = jdmctl_command("recipes", *words)
        assert code == 1 and f"error: {file} cannot be read" in err and "Traceback" not in err
    assert not (tmp_path / "mine.yaml").exists()


def test_a_recipe_that_cannot_be_written_is_a_mistake(jdmctl_command, tmp_path):
    (tmp_path / "file").write_text("")
    code, _, err = jdmctl_command("recipes", "copy", "tiny/canny", tmp_path / "file" / "mine.yaml")
    assert code == 1 and err.startswith(f"error: could not save {tmp_path}") and "Traceback" not in err


@pytest.mark.parametrize(
    "words",
    [
        ["recipes", "show"],
        ["inspect"],
        ["data", "inspect"],
        ["sample", "--student", "tiny", "--controlnet", "canny=x", "--control"],
    ],
)
def test_a_name_too_long_for_a_file_is_a_mistake(jdmctl_command, words):
    name = "n" * 300
    code, _, err = jdmctl_command(*words, f"canny={name}" if "--control" in words else name)
    assert code == 1 and err.startswith("error: nnnnnn") and "is too long for the name of a file" in err
    assert "\nhint: give a shorter name" in err


def test_a_student_of_another_kind_is_not_called_a_teacher(jdmctl_command, tmp_path):
    (tmp_path / "model_index.json").write_text('{"_class_name": "DiTPipeline"}')
    code, _, err = jdmctl_command("sample", "--student", tmp_path, "--device", "cpu")
    assert code == 1 and f"error: pipeline {tmp_path} is a DiTPipeline, this family takes" in err


def test_what_is_no_run_is_told_by_options_of_the_command(jdmctl_command, tmp_path):
    code, _, err = jdmctl_command("export", tmp_path, "-o", tmp_path / "out")
    assert code == 1 and "is not a run folder" in err and "--student" not in err
    code, _, err = jdmctl_command("sample", tmp_path, "--device", "cpu")
    assert code == 1 and "is not a run folder" in err and ", or --student" in err


@pytest.mark.parametrize(
    "words",
    [
        ["sample", "--student", "tiny", "--seed", 2**63],
        ["add-control", "tiny/canny", "--seed", 2**32],
        ["plan", "tiny/canny", "--fit", -3],
    ],
)
def test_numbers_out_of_range_are_refused(jdmctl_command, words):
    code, _, err = jdmctl_command(*words)
    assert code == 2 and f"Invalid value for '{words[-2]}': Input should be" in err


def test_first_captions_are_shown_on_a_line_each(jdmctl_command, tmp_path):
    (tmp_path / "long.jsonl").write_text(json.dumps({"text": "a\nb\x1b[1m" + "c" * 25_000}))
    code, out, _ = jdmctl_command("data", "inspect", tmp_path / "long.jsonl")
    assert code == 0
    assert out.splitlines()[1] == "  a\\nb\\x1b[1m" + "c" * 193 + "... (25007 characters)"
