"""A miniature world is built by the same command that builds the shipped one, from scenes and from a folder."""

import contextlib
import copy
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import ControlNetModel, StableDiffusionControlNetPipeline, StableDiffusionPipeline
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import save_file
from transformers import AutoModelForDepthEstimation, AutoModelForImageClassification

from jdmctl.comparison.contest import world_rows
from jdmctl.comparison.heldout import Asked
from jdmctl.errors import BadInputError, JdmError
from jdmctl.tinyworld import models
from jdmctl.tinyworld.fit import FitSettings, fit
from jdmctl.tinyworld.make import build_world, pack
from jdmctl.tinyworld.source import FEWEST, _split_of, captioned_folder, require_enough, scenes
from jdmctl.tinyworld.stages import scorers
from jdmctl.tinyworld.workshop import Workshop
from jdmctl.tinyworld.world import NUM_PICTURES, SOURCE_FILE, in_use, rendered, samples

SPLITS = ("train", "reference", "val", "test")


def captioned(folder: Path, texts: list[str]) -> Path:
    """A folder with a picture for each caption."""
    folder.mkdir(exist_ok=True)
    for i in range(len(texts)):
        Image.new("RGB", (64, 64), (i % 256, i // 256, 0)).save(folder / f"{i}.png")
    rows = [json.dumps({"file_name": f"{i}.png", "text": text}) for i, text in enumerate(texts)]
    (folder / "metadata.jsonl").write_text("\n".join(rows))
    return folder


def fewest() -> list[str]:
    """Captions of the fewest pictures that a world can be built of."""
    texts = [f"square {i}" for i in range(300)]
    return [text for split in SPLITS for text in [text for text in texts if _split_of(text) == split][:FEWEST]]


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


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_world_of_the_fewest_pictures_is_built_and_measured(tmp_path):
    folder = captioned(tmp_path / "pictures", fewest())
    build_world(lambda split: captioned_folder(folder, split), tmp_path / "world", 0.0005, folder=folder)
    with in_use(tmp_path / "world"):
        rows = world_rows(Asked(), ["tiny/student", "tiny/student_lora"], [0], "", print)
    assert {"true pictures", "teacher", "student", "student_lora"} <= {row.method for row in rows}
    assert all(np.isfinite(row.value) for row in rows if row.metric in ("frechet", "kid", "precision", "recall"))


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


def test_labels_are_the_commonest_words_of_any_script_in_the_order_they_come(tmp_path):
    """Ten words in all captions, so none is commoner: by their hashes, as sets are, each process had its own order."""
    phrase = "Zwölf Boxkämpfer jagen Виктора quer über l’été_großen Deich"
    folder = captioned(tmp_path / "pictures", [phrase + " ·" * i for i in range(60)])
    train = captioned_folder(folder, "train", 16)
    words = "zwölf boxkämpfer jagen виктора quer über l été großen deich".split()
    assert train.labels == tuple(f"{word}: {answer}" for word in words for answer in ("no", "yes"))
    assert train.truth.tolist() == [[False, True] * 10] * len(train)


def test_a_world_of_own_pictures_keeps_the_labels_of_its_classifier(tmp_path):
    """Pictures that came later make other words the commonest, which would stand in the columns of the first."""
    folder, world = tmp_path / "pictures", tmp_path / "world"
    reds = [f"a red box {i}" for i in range(60)]
    labels = captioned_folder(captioned(folder, reds), "train").labels
    models.classifier(list(labels)).save_pretrained(world / "classifier")
    (world / "student").mkdir()
    (world / "student" / "model_index.json").touch()
    (world / SOURCE_FILE).write_text(json.dumps({"folder": str(folder)}))
    captioned(folder, [f"one blue ball of {i}" for i in range(120)] + reds)
    assert captioned_folder(folder, "train").labels != labels
    with in_use(world):
        train = samples("train")
    assert train.labels == labels
    red = labels.index("red: yes")
    assert train.truth[:, red].tolist() == ["red" in train.text(i) for i in range(len(train))]


def test_a_resumed_fit_repeats_an_uninterrupted_one(tmp_path):
    """In what batch norms have seen, too, which no gradient trains."""
    torch.manual_seed(0)
    once = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    killed, resumed = copy.deepcopy(once), copy.deepcopy(once)
    for module, num_steps, state in ((once, 4, "once"), (killed, 2, "twice"), (resumed, 4, "twice")):

        def loss(generator, module=module):
            return module(torch.randn(5, 3, generator=generator)).square().mean()

        fit(module, loss, FitSettings(num_steps, 0.1, "constant"), tmp_path / f"{state}.safetensors")
    assert all(value.equal(resumed.state_dict()[name]) for name, value in once.state_dict().items())


def test_a_full_disk_is_told_and_leaves_the_state_before(tmp_path, monkeypatch):
    """Of a stage that trains, and of the world at the end; the same command goes on then."""
    module, state = torch.nn.Linear(3, 2), tmp_path / "states" / "toy.safetensors"

    def loss(generator):
        return module(torch.randn(5, 3, generator=generator)).square().mean()

    def full(*args, **options):
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    fit(module, loss, FitSettings(2, 0.1, "constant"), state)
    before = state.read_bytes()
    with monkeypatch.context() as patch, pytest.raises(JdmError, match="disk is full: could not save .*toy.safetens"):
        patch.setattr("jdmctl.tinyworld.fit.save_file", full)
        fit(module, loss, FitSettings(4, 0.1, "constant"), state)
    assert state.read_bytes() == before and [path.name for path in state.parent.iterdir()] == ["toy.safetensors"]

    (tmp_path / "folders" / "vae").mkdir(parents=True)
    save_file({"a": torch.zeros(1)}, tmp_path / "folders" / "model.safetensors")
    monkeypatch.setattr("jdmctl.tinyworld.make.save_file", full)
    with pytest.raises(JdmError, match="disk is full: could not save .*world"):
        pack(tmp_path / "folders", tmp_path / "world")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folders", "states"]


@pytest.mark.parametrize("name", ["teacher.done", "report.json"])
def test_a_full_disk_between_stages_is_told(tmp_path, monkeypatch, quick_stages, name):
    write, touch = Path.write_text, Path.touch

    def unless_full(done):
        def called(path, *args, **options):
            if name in path.name:
                raise OSError(28, "No space left on device")
            return done(path, *args, **options)

        return called

    monkeypatch.setattr(Path, "write_text", unless_full(write))
    monkeypatch.setattr(Path, "touch", unless_full(touch))
    with pytest.raises(JdmError, match=f"disk is full: could not save .*{name}"):
        build_world(rendered, tmp_path / "world", 0.5)


def test_a_network_that_was_half_saved_is_saved_again(tmp_path):
    """Its folder stands for a finished one, so there is none before all is in it."""
    pictures = captioned_folder(captioned(tmp_path / "pictures", fewest()), "train")
    shop = Workshop(lambda split: pictures, tmp_path / "folders", tmp_path / "states", budget=0.0005)

    class Network(torch.nn.Linear):
        def save_pretrained(self, folder):
            Path(folder).mkdir(parents=True, exist_ok=True)
            (Path(folder) / "config.json").touch()
            if kills:
                raise RuntimeError(kills.pop())
            (Path(folder) / "model.safetensors").touch()

    def loss(network, images, truth):
        return network(images).square().mean()

    kills = ["killed"]
    for kept in (set(), {"config.json", "model.safetensors"}):
        with contextlib.suppress(RuntimeError):
            scorers._train(shop, "judge", Network(64, 1), 2, pictures.truth, loss, pictures, pictures.images)
        assert {file.name for file in (shop.output / "judge").glob("*")} == kept


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
        (shop.output / "vae").mkdir(parents=True, exist_ok=True)
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
        captioned(Path(name), fewest())
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


def test_a_build_is_not_answered_with_what_was_of_other_pictures(tmp_path, monkeypatch, quick_stages):
    """The same folder with another picture or caption is another; written anew with the same ones it is the same."""
    monkeypatch.chdir(tmp_path)
    said: list[str] = []

    def build():
        return build_world(rendered, Path("world"), 0.5, 0, said.append, Path("A"))

    captioned(Path("A"), fewest())
    build()
    captioned(Path("A"), fewest())
    build()
    assert said.pop().endswith("world: done before")
    captioned(Path("A"), ["square 1000", *fewest()])
    quick_stages.append("killed")
    with pytest.raises(RuntimeError, match="killed"):
        build()
    Image.new("RGB", (64, 64), "white").save("A/0.png")
    with pytest.raises(JdmError, match="another build: digest of pictures and captions [0-9a-f]{8}, not [0-9a-f]{8}$"):
        build()
    captioned(Path("A"), ["square 1000", *fewest()])
    build()
    assert said == ["teacher: done before"]


def test_pictures_too_few_for_a_world_are_told_before_anything_is_built(tmp_path, quick_stages):
    """Three of a split have no three neighbours each; captions that are ten names fall to few splits."""

    def refused(texts):
        folder = captioned(tmp_path / "pictures", texts)
        with pytest.raises(BadInputError) as caught:
            build_world(rendered, tmp_path / "world", 0.0005, folder=folder)
        assert [path.name for path in tmp_path.iterdir()] == ["pictures"]
        return str(caught.value)

    require_enough(captioned(tmp_path / "pictures", fewest()))
    assert "of 15 captioned pictures there are train 4, reference 4, val 4, test 3," in refused(fewest()[:-1])
    names = [f"{name} of ten" for name in range(10)]
    counts = {split: 12 * sum(_split_of(name) == split for name in names) for split in SPLITS}
    assert ", ".join(f"{split} {count}" for split, count in counts.items()) in refused(12 * names)
    assert "has a word" in refused(["!" * i for i in range(200)])


def test_a_build_that_is_killed_while_it_writes_goes_on(tmp_path, monkeypatch, quick_stages):
    write = Path.write_text

    def half(path, text, **options):
        is_report = "report.json" in path.name
        write(path, text[: len(text) // 2] if is_report else text, **options)
        if is_report:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Path, "write_text", half)
        build_world(rendered, tmp_path / "world", 0.5)
    assert build_world(rendered, tmp_path / "world", 0.5) == {"budget": 0.5}
