"""From a data set in another tool's format to a trained branch: pictures, their own conditions, aspect ratios."""

import json
import sys
from pathlib import Path

import pytest
from data_folders import png, save, write_shard
from safetensors.torch import load_file
from test_add_control import SET, add_control  # noqa: F401  the fixture

from jdmctl.cli import app as cli
from jdmctl.cli.training import data_changes, plan
from jdmctl.errors import RecipeError
from jdmctl.recipe_files import load_recipe, parse_recipe
from jdmctl.training.draws import SampleDraws

TINY = ("--student", "tiny", "--teacher", "tiny", "--control", "lowres")
SIZES = ((64, 64), (128, 32), (60, 120), (64, 60))  # width, height


def write_pairs(folder: Path) -> Path:
    """Twelve captioned pictures of three aspect ratios beside conditions of the same, in fill50k's layout."""
    lines = []
    for number in range(12):
        for kind, grey in (("target", 20 * number), ("source", 255 - 20 * number)):
            save(folder / kind / f"{number}.png", png(grey, SIZES[number % 4]))
        row = {"source": f"source/{number}.png", "target": f"target/{number}.png", "prompt": f"number {number}"}
        lines.append(json.dumps(row))
    save(folder / "prompt.json", "\n".join(lines))
    return folder


def test_ready_made_conditions_with_their_pictures(in_tiny_world, add_control, tmp_path):  # noqa: F811
    """fill50k's layout is recognised; an ordinary ControlNet, which learns from pictures, can be trained on it."""
    folder = write_pairs(tmp_path / "data")
    add_control(*TINY, "--data", folder, "--method", "dsm", *SET, "-o", "run")
    data = load_recipe("run").data
    assert (data.source, data.format) == ("conditions", "controlnet")
    assert Path("run/controlnet/config.json").exists()


def test_shards_are_trained_on(in_tiny_world, add_control, tmp_path):  # noqa: F811
    members = [(f"{i}.{kind}", data) for i in range(8) for kind, data in (("png", png(30 * i, (64, 64))), ("txt", "x"))]
    shard = write_shard(tmp_path / "data" / "0.tar", members)
    add_control(*TINY, "--data", shard, *SET, "-o", "run")
    data = load_recipe("run").data
    assert (data.source, data.format) == ("images", "webdataset")


def test_buckets_are_trained_on_and_resumed_exactly(in_tiny_world, add_control, tmp_path, monkeypatch):  # noqa: F811
    """Two updates and two more are the same as four at once.

    In latents of 4 px a square is 16 x 16; 128 x 32 px is 8 high and 32 wide; 60 x 120 px is nearest to 48 x 80.
    """
    shapes, normal = set(), SampleDraws.normal
    monkeypatch.setattr(SampleDraws, "normal", lambda *asked: shapes.add(asked[2]) or normal(*asked))
    folder = write_pairs(tmp_path / "data")
    words = [*TINY, "--data", folder, *SET, "--set", "data.buckets=true", "--set", "data.bucket_step_px=16"]
    add_control(*words, "-o", "whole")
    assert {shape for shape in shapes if len(shape) == 3} == {(4, 16, 16), (4, 8, 32), (4, 20, 12)}
    add_control(*words, "--num-steps", 2, "-o", "parts")
    add_control("parts", "--resume", "--num-steps", 4)
    whole, parts = (load_file(f"{run}/controlnet/diffusion_pytorch_model.safetensors") for run in ("whole", "parts"))
    assert all(whole[name].equal(parts[name]) for name in whole)


def command(monkeypatch, *words) -> None:
    monkeypatch.setattr(sys, "argv", ["jdmctl", "add-control", *map(str, words)])
    cli.app(standalone_mode=False)


def test_data_that_options_name_take_the_place_of_a_recipes(tmp_path):
    """Nothing is left of its path and format, for which others have no use."""
    values = {
        "name": "x", "model": {"teacher": "tiny", "student": "tiny"}, "controls": [{"name": "canny"}],
        "data": {"source": "conditions", "path": "pairs", "format": "controlnet", "num_samples": 9},
    }  # fmt: skip
    save(tmp_path / "x.yaml", json.dumps(values))
    save(tmp_path / "prompts.txt", "a red cube")
    prompts = str(tmp_path / "prompts.txt")
    for named, expected in ((prompts, ("prompts", prompts, "", 9)), ("tiny", ("tiny", "", "", 9))):
        data = plan(str(tmp_path / "x.yaml"), data_changes(named), [], None, False)[0].data
        assert (data.source, data.path, data.format, data.num_samples) == expected


def refused(monkeypatch, *words) -> RecipeError:
    with pytest.raises(RecipeError) as caught:
        command(monkeypatch, *words)
    return caught.value


def test_a_step_that_is_no_multiple_of_a_latent(in_tiny_world, tmp_path, monkeypatch):
    """The tiny world's latents are of 4 px."""
    folder = write_pairs(tmp_path / "data")
    error = refused(
        monkeypatch, *TINY, "--data", folder, "--set", "data.buckets=true", "--set", "data.bucket_step_px=18"
    )
    assert "not a multiple of the 4 px" in str(error) and "data.bucket_step_px=16" in error.hint


def test_a_family_that_does_not_say_that_it_draws_other_shapes_is_refused(in_tiny_world, tmp_path, monkeypatch):
    monkeypatch.setattr("jdmctl.families.unet_family.UNetFamily.any_aspect", False)
    folder = write_pairs(tmp_path / "data")
    assert "other shapes than its square" in str(
        refused(monkeypatch, *TINY, "--data", folder, "--set", "data.buckets=true")
    )


def test_buckets_of_maps_without_pictures_are_refused(in_tiny_world, tmp_path, monkeypatch):
    save(tmp_path / "data" / "a.png", png(0))
    save(tmp_path / "data" / "metadata.jsonl", '{"conditioning_image": "a.png", "text": "a"}')
    words = [*TINY, "--data", tmp_path / "data", "--set", "data.buckets=true"]
    assert "have none" in str(refused(monkeypatch, *words))


@pytest.mark.parametrize(
    ("data", "changes", "message"),
    [
        ({"source": "images", "path": "x", "streaming": True}, [], "needs num_samples"),
        ({"source": "images", "path": "x", "streaming": True, "num_samples": 9, "format": "kohya"}, [], "for hub and"),
        ({"source": "tiny", "buckets": True}, [], "squares only"),
        (
            {"source": "tiny", "path": "photos", "split": "test"},
            [],
            "'tiny' has no use for path 'photos' and split 'test'",
        ),
        (
            {"source": "tiny", "format": "kohya", "text_column": "t"},
            [],
            "no use for format 'kohya' and text_column 't'",
        ),
        ({"source": "prompts", "path": "tiny", "image_column": "x"}, [], "'prompts' has no use for image_column 'x'"),
        ({"source": "prompts", "path": "x.txt", "streaming": True, "num_samples": 9}, [], "no use for streaming True"),
        ({"source": "images", "path": "x", "format": "tar"}, [], "data.format"),
        ({"source": "conditions", "path": "x"}, ["method=dsm"], "say data.format"),
        (
            {"source": "images", "path": "x", "buckets": True},
            ["objective.gan_weight=1", "critic.positives=teacher"],
            "do not go together",
        ),
    ],
)
def test_recipes_that_ask_for_too_much(data, changes, message):
    values = {
        "name": "x", "model": {"teacher": "t", "student": "s"},
        "controls": [{"name": "canny", "teacher_branch": "b"}], "data": data,
    }  # fmt: skip
    with pytest.raises(RecipeError, match=message):
        parse_recipe(values, changes)
