"""What `--dry-run` refuses, as the run itself would."""

import json
import sys

import pytest

from jdmctl.build_check import check_data, check_options
from jdmctl.build_stand_ins import absent
from jdmctl.cli import app as cli
from jdmctl.data.formats import find_format
from jdmctl.errors import JdmError
from jdmctl.recipe_files import load_recipe
from jdmctl.weights import require_possible


def dry_run(monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", ["jdmctl", "add-control", *words, "--dry-run", "--json"])
    cli.app()


def with_data(text: str, *more: str):
    return load_recipe("tiny/lowres", [f"data={text}", *more])


def test_data_that_is_not_there_is_refused(monkeypatch, in_tiny_world):
    with pytest.raises(JdmError, match="no file nothere.txt"):
        dry_run(monkeypatch, "tiny/lowres", "--data", "nothere.txt")


@pytest.mark.parametrize("name", ["./nope", "../x/y", "/nope/x", "~/nope", "a/b/c", "nope.safetensors"])
def test_a_model_that_only_a_path_can_be_is_not_taken_for_one_on_the_hub(name):
    with pytest.raises(JdmError, match="no folder or file") as refused:
        absent(load_recipe("tiny/lowres", [f"model.student={name}"]))
    assert "from here it is /" in refused.value.hint


@pytest.mark.parametrize("name", ["nope", "owner/name", "owner/name/file.safetensors", "owner/name/a/file.safetensors"])
def test_other_names_may_be_on_the_hub(name):
    require_possible(name)
    assert absent(load_recipe("tiny/lowres", [f"model.student={name}"])) == [name]


def test_data_of_every_source_is_looked_for(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.txt").write_text("\n")
    (tmp_path / "maps").mkdir()
    (tmp_path / "maps/metadata.jsonl").write_text(json.dumps({"text": "a", "conditioning_image": "a.png"}))
    for data, message in (
        ("{source: prompts, path: empty.txt}", "has no prompts"),
        ("{source: images, path: ./photos}", "no folder ./photos"),
        ("{source: images, path: photos, format: kohya}", "no folder photos"),
        ("{source: images, path: photos, format: parquet}", "no folder photos"),
        ("{source: images, path: maps}", "maps and no pictures"),
        ("{source: conditions, path: maps}", "line 1: .* no file maps.a.png"),
    ):
        with pytest.raises(JdmError, match=message):
            check_data(with_data(data))
    check_data(with_data("{source: prompts, path: tiny}"))
    check_data(with_data("{source: images, path: x-*.tar, format: webdataset}"))


def test_a_folder_here_is_no_name_on_the_hub():
    assert find_format("owner/name") == "hub"
    for path in ("./photos", "../photos", "photos/.."):
        with pytest.raises(JdmError, match="no folder"):
            find_format(path)


def test_options_that_are_missing_or_of_no_use_are_refused():
    canny = "controls=[{name: canny, options: {low: 300}}]"
    for changes, message in (
        ([canny], "low is 300 and high is 200"),
        (["controls=[{name: depth}]"], "needs the option network"),
        (["rewards=[{name: clip}]"], "reward 'clip' needs the option folder"),
    ):
        with pytest.raises(JdmError, match=message):
            check_options(load_recipe("tiny/lowres", changes))
