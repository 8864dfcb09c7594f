"""A miniature world is built by the same command that builds the shipped one, from scenes and from a folder."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import ControlNetModel, StableDiffusionControlNetPipeline, StableDiffusionPipeline
from PIL import Image
from transformers import AutoModelForDepthEstimation, AutoModelForImageClassification

from jdmctl.errors import BadInputError, JdmError
from jdmctl.tinyworld.make import build_world
from jdmctl.tinyworld.source import captioned_folder, scenes
from jdmctl.tinyworld.stages import student_lora
from jdmctl.tinyworld.workshop import Workshop
from jdmctl.tinyworld.world import NUM_PICTURES, rendered


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_miniature_world_is_made_of_ordinary_folders(tmp_path, monkeypatch):
    monkeypatch.setenv("JDMCTL_CACHE", str(tmp_path / "cache"))
    for split in ("reference", "val"):
        monkeypatch.setitem(NUM_PICTURES, split, 40)
    world = tmp_path / "world"
    said = []
    build_world(lambda split: scenes(split, 40, tmp_path), world, budget=0.0005, say=said.append)

    pipe = StableDiffusionPipeline.from_pretrained(world / "teacher", safety_checker=None)
    assert pipe("a red cone", num_inference_steps=2, output_type="np").images.shape == (1, 64, 64, 3)
    pipe.load_lora_weights(world / "student_lora")
    assert np.isfinite(pipe("a red cone", num_inference_steps=1, guidance_scale=0.0, output_type="np").images).all()
    branch = ControlNetModel.from_pretrained(world / "controlnet_depth")
    student = StableDiffusionControlNetPipeline.from_pretrained(
        world / "student", controlnet=branch, safety_checker=None
    )
    drawn = student(
        "a red cone", image=torch.rand(1, 3, 64, 64), num_inference_steps=1, guidance_scale=0.0, output_type="np"
    )
    assert student.scheduler.timesteps.tolist() == [999]
    assert np.isfinite(drawn.images).all()
    for name in ("depth", "depth_heldout"):
        network = AutoModelForDepthEstimation.from_pretrained(world / name)
        assert network(torch.rand(1, 3, 64, 64)).predicted_depth.shape == (1, 64, 64)
    assert AutoModelForImageClassification.from_pretrained(world / "classifier").config.id2label[0] == "shape: sphere"
    report = json.loads((world / "report.json").read_text())
    assert {"vae psnr", "teacher guidance", "val: classifier shape", "val: controlnet_canny f1"} <= set(report)
    assert not list(world.rglob("*.bin"))

    said.clear()
    assert build_world(lambda split: scenes(split, 40, tmp_path), world, budget=0.0005, say=said.append) == report
    assert said == [f"{world}: done before"] and not (tmp_path / "world-unfinished").exists()


def test_a_folder_of_captioned_images_is_split_by_caption(tmp_path):
    rows = []
    for i in range(120):
        Image.new("RGB", (40, 40), (i, 0, 0)).save(tmp_path / f"{i}.png")
        rows.append({"file_name": f"{i}.png", "text": f"a {'red' if i % 2 else 'dark'} square number {i // 2}"})
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    splits = {name: captioned_folder(tmp_path, name, 16) for name in ("train", "reference", "val", "test")}
    assert sum(map(len, splits.values())) == 120
    texts = [{row[0] for row in part.captions} for part in splits.values()]
    assert len(set.union(*texts)) == sum(map(len, texts))
    train = splits["train"]
    red = train.labels.index("red: yes")
    for i in range(len(train)):
        assert train.truth[i, red] == ("red" in train.text(i))
        assert train.truth[i].sum() == len(train.labels) / 2


def test_a_picture_of_several_captions_is_in_one_split(tmp_path):
    rows = []
    for i in range(60):
        Image.new("RGB", (16, 16), (i, 0, 0)).save(tmp_path / f"{i}.png")
        rows += [{"file_name": f"{i}.png", "text": f"square {i} in words {wording}"} for wording in range(3)]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    seen = [captioned_folder(tmp_path, name, 16).images[:, 0, 0, 0].tolist() for name in ("train", "reference", "test")]
    assert all(part.count(red) == 3 for part in seen for red in part)


@pytest.mark.parametrize("content", [b"", b"PK damaged"])
def test_scenes_that_are_damaged_are_drawn_again(tmp_path, content):
    first = scenes("val", 2, tmp_path)
    (file,) = tmp_path.iterdir()
    file.write_bytes(content)
    assert scenes("val", 2, tmp_path).images.equal(first.images)


def test_a_cache_that_cannot_be_made_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInputError, match="cannot keep the scenes in .*file/scenes: Not a directory") as told:
        scenes("val", 2, tmp_path / "file" / "scenes")
    assert "JDMCTL_CACHE" in told.value.hint


def test_a_folder_too_small_for_a_split_is_told(tmp_path):
    Image.new("RGB", (40, 40)).save(tmp_path / "a.png")
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "a.png", "text": "a square"}')
    found = []
    for split in ("train", "reference", "val", "test"):
        try:
            found.append(captioned_folder(tmp_path, split, 16))
        except BadInputError as problem:
            assert "none of which fell to the split" in str(problem)
    assert len(found) == 1


def test_no_lora_is_distilled_where_too_few_pictures_would_judge_it(tmp_path):
    said = []
    shop = Workshop(lambda split: range(3), tmp_path / "folders", tmp_path / "states", say=said.append)
    student_lora.build(shop)
    assert "the split val has 3 pictures and 4 are needed" in said[0]
    assert not list(tmp_path.iterdir())


def test_a_build_says_how_to_measure_what_it_made(monkeypatch, jdmctl_command):
    """The building's own numbers are of val: of the judges, not of teacher and student."""
    monkeypatch.setattr("jdmctl.tinyworld.make.build_world", lambda *_: {"vae psnr": 30.0})
    code, out, error = jdmctl_command("world", "build", "-o", "my world")
    assert code == 0 and out == "vae psnr  30.0000\nworld: my world\n"
    assert error.endswith(": JDMCTL_WORLD='my world' jdmctl world report\n")


@pytest.mark.parametrize("where", ["photos", "."])
def test_a_build_replaces_nothing_but_a_world(tmp_path, monkeypatch, where):
    """It would be gone at the end of the build, so that is said before its beginning."""
    monkeypatch.chdir(tmp_path)
    Path("photos").mkdir()
    Path("photos", "one.png").touch()
    with pytest.raises(JdmError, match="already there, and is no world"):
        build_world(rendered, Path(where), budget=0.0005)
    with pytest.raises(BadInputError, match="no folder nowhere"):
        build_world(rendered, Path("world"), folder=Path("nowhere"))
    assert [path.name for path in tmp_path.rglob("*")] == ["photos", "one.png"]


@pytest.fixture
def quick_stages(monkeypatch):
    """Two stages that leave the budget, one of which fails once where it is told to."""
    fails = []

    def teacher(shop):
        (shop.output / "vae").mkdir(parents=True)
        shop.report["budget"] = shop.budget

    def report(shop):
        if fails:
            raise RuntimeError(fails.pop())

    monkeypatch.setattr("jdmctl.tinyworld.make.STAGES", {"teacher": teacher, "report": report})
    return fails


def test_a_build_is_not_answered_with_another_one(tmp_path, monkeypatch, quick_stages):
    """Neither a finished world nor stages of a stopped build pass for those of other pictures, budget or seed."""
    monkeypatch.chdir(tmp_path)
    for name in "AB":
        Path(name).mkdir()
    said: list[str] = []

    def build(budget, seed, folder):
        return build_world(rendered, Path("world"), budget, seed, said.append, Path(folder))

    assert build(0.25, 0, "A") == {"budget": 0.25}
    assert build(0.5, 0, "B") == {"budget": 0.5}
    assert json.loads(Path("world/pictures.json").read_text()) == {"folder": str(tmp_path / "B")} and not said
    assert build(0.5, 0, "B") == {"budget": 0.5} and said.pop().endswith("world: done before")

    quick_stages.append("killed")
    with pytest.raises(RuntimeError, match="killed"):
        build(0.25, 7, "A")
    with pytest.raises(JdmError, match=f"pictures {tmp_path}/A, not {tmp_path}/B; seed 7, not 0$") as caught:
        build(0.25, 0, "B")
    assert "or delete it" in caught.value.hint
    assert build(0.25, 7, "A") == {"budget": 0.25} and said == ["teacher: done before"]
    assert not Path("world-unfinished").exists()
