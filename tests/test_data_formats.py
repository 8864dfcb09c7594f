"""Every format comes down to the same rows; what is wrong with one is said at once, with its place."""

import io
import json
import sys
from dataclasses import replace

import numpy as np
import pytest
from data_folders import (
    GREYS,
    TEXTS,
    png,
    save,
    write_fill50k,
    write_kohya,
    write_shard,
    write_shards,
    write_videox,
)
from PIL import Image
from typer.testing import CliRunner

from jdmctl.cli.app import app
from jdmctl.cli.training import data_changes
from jdmctl.data.arrays import keep_arrays
from jdmctl.data.conditionfolder import ConditionFolder
from jdmctl.data.formats import find_format, open_rows
from jdmctl.data.meaning import meaning_of
from jdmctl.data.options import ReadOptions
from jdmctl.data.pictures import Packed, read_image, size_of
from jdmctl.data.rows import PairedPictures, Pictures
from jdmctl.errors import BadInputError
from jdmctl.recipe_sections import Data


@pytest.fixture
def options(tmp_path):
    return ReadOptions(cache=tmp_path / "cache")


def show(rows) -> list[tuple[str, float]]:
    """Caption and brightness of every row."""
    pictures = Pictures(rows, 8)
    return [(rows.text(i), round(pictures.image(i).mean().item(), 2)) for i in range(len(rows))]


EXPECTED = [("a", 0.2), ("b", 0.4), ("c", 0.6), ("d", 0.8)]


@pytest.mark.parametrize(
    ("write", "format"), [(write_fill50k, "controlnet"), (write_videox, "videox"), (write_shards, "webdataset")]
)
def test_pictures_with_conditions(tmp_path, options, write, format):
    """Condition i is the negative of picture i, 1 - 0.2 (i + 1)."""
    folder = str(write(tmp_path / "data"))
    assert find_format(folder) == format
    rows = open_rows(folder, options)
    assert show(rows) == EXPECTED
    pairs = PairedPictures(rows, ["canny"], 8, folder)
    assert [round(pairs.conditions(i)["canny"].mean().item(), 2) for i in range(4)] == [0.8, 0.6, 0.4, 0.2]
    with pytest.raises(BadInputError, match="no conditioning_image_canny, conditioning_image_depth") as caught:
        PairedPictures(rows, ["canny", "depth"], 8, folder)
    assert "data.source=images" in caught.value.hint


def test_captions_beside_pictures(tmp_path, options):
    """Of a caption file the first line; without one, the name of the folder; 3 + 3 + 5 + 5 a epoch."""
    folder = str(write_kohya(tmp_path / "data"))
    assert find_format(folder) == "kohya"
    rows = open_rows(folder, options)
    assert show(rows) == [*EXPECTED[:2], ("sks dog", 0.6), ("sks dog", 0.8)]
    assert [rows.repeats(i) for i in range(4)] == [3, 3, 5, 5]


def test_what_systems_leave_in_a_folder_is_no_picture(tmp_path, options):
    """Jupyter's copies, and what a Mac puts beside each file and into each archive."""
    folder = write_kohya(tmp_path / "data")
    save(folder / "3_pictures" / ".ipynb_checkpoints" / "0-checkpoint.png", png(0))
    save(folder / "3_pictures" / "._0.png", b"Mac OS X")
    save(folder / "__MACOSX" / "3_pictures" / "0.png", b"Mac OS X")
    assert show(open_rows(str(folder), options)) == [*EXPECTED[:2], ("sks dog", 0.6), ("sks dog", 0.8)]
    listed = write_videox(tmp_path / "listed")
    save(listed / "._metadata.json", '[{"file_path": "0.png", "text": ""}]')
    assert show(open_rows(str(listed), options)) == EXPECTED
    only = tmp_path / "only"
    save(only / ".ipynb_checkpoints" / "0-checkpoint.png", png(0))
    save(only / ".ipynb_checkpoints" / "0-checkpoint.txt", "a")
    with pytest.raises(BadInputError, match="it holds nothing"):
        find_format(str(only))


def test_captions_in_capitals(tmp_path, options):
    """As old cameras and Windows programs name their files, or a part of them."""
    for number, (grey, text) in enumerate(zip(GREYS, TEXTS, strict=True)):
        save(tmp_path / f"{number}.{('PNG', 'png')[number % 2]}", png(grey))
        save(tmp_path / f"{number}.{('TXT', 'CAPTION')[number // 2]}", text)
    assert find_format(str(tmp_path)) == "kohya"
    assert show(open_rows(str(tmp_path), options)) == EXPECTED


def test_folders_that_are_links(tmp_path, options):
    """They are followed, but not round in circles: `5_sks dog` and all else stands elsewhere."""
    elsewhere, folder = write_kohya(tmp_path / "elsewhere"), tmp_path / "data"
    folder.mkdir()
    for inner in elsewhere.iterdir():
        (folder / inner.name).symlink_to(inner.absolute())
    (elsewhere / "5_sks dog" / "back").symlink_to(folder.absolute())
    (elsewhere / "5_sks dog" / "here").symlink_to("../5_sks dog")
    assert find_format(str(folder)) == "kohya"
    assert show(open_rows(str(folder), options)) == [*EXPECTED[:2], ("sks dog", 0.6), ("sks dog", 0.8)]
    write_shards(tmp_path / "shards")
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "more").symlink_to(tmp_path / "shards")
    assert find_format(str(tmp_path / "linked")) == "webdataset"
    assert show(open_rows(str(tmp_path / "linked"), options)) == EXPECTED


def test_a_picture_is_called_the_same_where_its_folder_is_moved(tmp_path, options):
    """By which a resumed run knows it again."""
    for write in (write_kohya, write_fill50k, write_shards):
        folder = write(tmp_path / write.__name__)
        rows = open_rows(str(folder), options)
        before = [rows.shown(i) for i in range(4)]
        assert len(set(before)) == 4
        moved = open_rows(str(folder.rename(tmp_path / f"moved {write.__name__}")), options)
        assert [moved.shown(i) for i in range(4)] == before


def test_captions_that_are_missing(tmp_path, options):
    for name in ("a", "b", "c"):
        save(tmp_path / "data" / f"{name}.png", png(0))
    save(tmp_path / "data" / "b.txt", "b")
    with pytest.raises(BadInputError, match="2 problems") as caught:
        open_rows(str(tmp_path / "data"), options)
    assert "a.png: no a.txt or a.caption beside it" in str(caught.value) and "c.png" in str(caught.value)


def test_bad_rows_of_prompt_json(tmp_path, options):
    folder = write_fill50k(tmp_path / "data")
    lines = (folder / "prompt.json").read_text().splitlines()
    lines[1:3] = ['{"source": "source/1.png", "target": "nowhere.png", "prompt": "b"}', '{"source": "source/2.png"}']
    (folder / "prompt.json").write_text("\n".join([*lines, "{"]))
    with pytest.raises(BadInputError) as caught:
        open_rows(str(folder), options)
    headline, *problems = str(caught.value).splitlines()
    assert headline.endswith("prompt.json has 3 problems:")
    for problem, start in zip(
        problems, ['line 2: "target": no file', 'line 3: no "target"', "line 5: not valid json"], strict=True
    ):
        assert problem.strip().startswith(start)


def test_bad_rows_of_videox(tmp_path, options):
    folder = write_videox(tmp_path / "data", type="video")
    with pytest.raises(BadInputError, match="4 problems") as caught:
        open_rows(str(folder), options)
    assert "row 1: \"type\" is 'video': only pictures are read" in str(caught.value)
    save(folder / "metadata.json", '[{"file_path": "train/0.png", "text": "a"}, {"file_path": "train/1.png"},\n "x"]')
    with pytest.raises(BadInputError, match=r'row 2: no "text"\n  row 3: not an object'):
        open_rows(str(folder), options)
    save(folder / "metadata.json", '[{"file_path": "train/0.png",\n "text": }]')
    with pytest.raises(BadInputError, match="line 2: not valid json"):
        open_rows(str(folder), options)
    save(folder / "more.json", '[{"file_path": "train/0.png"}]')
    with pytest.raises(BadInputError, match="2 of them: metadata.json, more.json"):
        open_rows(str(folder), options)


def test_prompt_json_needs_no_conditions_in_videox(tmp_path, options):
    folder = write_videox(tmp_path / "data", control_file_path=None)
    assert open_rows(str(folder), options).conditions == ()


# Shards


def test_shards_by_pattern_and_by_file(tmp_path, options):
    folder = write_shards(tmp_path / "data")
    assert show(open_rows(f"{folder}/*.tar", options)) == EXPECTED
    assert show(open_rows(f"{folder}/00001.tar", options)) == EXPECTED[2:]


def test_shards_by_braces(tmp_path, options):
    pytest.importorskip("webdataset")
    folder = write_shards(tmp_path / "data")
    assert show(open_rows(f"{folder}/{{00000..00001}}.tar", options)) == EXPECTED
    with pytest.raises(BadInputError, match=r"1 problem:\n  no file .*00002.tar"):
        open_rows(f"{folder}/{{00000..00002}}.tar", options)


def test_shards_of_webdataset_itself(tmp_path, options):
    """What its own writer writes is read, and in the same order."""
    webdataset = pytest.importorskip("webdataset")
    with webdataset.TarWriter(str(tmp_path / "a.tar")) as sink:
        for grey, text in zip(GREYS, TEXTS, strict=True):
            sink.write({"__key__": f"some/folder/{grey}", "png": png(grey), "txt": text})
    assert show(open_rows(str(tmp_path / "a.tar"), options)) == EXPECTED


def test_shards_are_indexed_once(tmp_path, options, monkeypatch):
    """The second time no tar header is read; a shard that was written again is read again."""
    import jdmctl.data.shards as shards

    folder, seen, index = write_shards(tmp_path / "data"), [], shards._index
    monkeypatch.setattr(shards, "_index", lambda shard, options: seen.append(shard.name) or index(shard, options))
    for _ in range(2):
        rows = open_rows(str(folder), options)
    assert seen == ["00000.tar", "00001.tar"]
    assert [rows.text(i) for i in (3, 0, 2, 1)] == ["d", "a", "c", "b"]
    write_shard(folder / "00001.tar", [("x.jpg", png(0)), ("x.txt", "new")])
    rows = open_rows(str(folder), options)
    assert seen[2:] == ["00001.tar"] and [rows.text(i) for i in range(3)] == ["a", "b", "new"]


def test_samples_of_a_shard_that_are_not_whole(tmp_path, options):
    members = [("a.jpg", png(0)), ("b.jpg", png(0)), ("b.txt", "b"), ("c.txt", "c"), ("__note__", ""), ("d", "")]
    shard = write_shard(tmp_path / "a.tar", members)
    with pytest.raises(BadInputError, match="2 problems") as caught:
        open_rows(str(shard), options)
    assert "a.tar: a: no caption, only .jpg\n  a.tar: c: no picture, only .txt" in str(caught.value)


def test_two_samples_of_one_name_in_a_row(tmp_path, options):
    members = [("a.png", png(51)), ("a.txt", "one"), ("a.PNG", png(102)), ("a.txt", "two"), ("b.png", png(0))]
    shard = write_shard(tmp_path / "a.tar", [*members, ("b.txt", "b")])
    with pytest.raises(BadInputError, match="a.tar: a: two samples of this name in a row, both with .png, .txt"):
        open_rows(str(shard), options)


@pytest.mark.parametrize(
    ("train", "validation"),
    [("train/0.tar", "val/0.tar"), ("0.tar", "dev/0.tar"), ("a-train-0.tar", "a-validation-0.tar"), ("a/0", "a/Val_0")],
)
def test_shards_of_another_split_stay_out(tmp_path, options, train, validation):
    for name, text in ((train, "to train on"), (validation, "held out")):
        members = [("a.png", png(51)), ("a.txt", text)]
        write_shard((tmp_path / "data" / name).with_suffix(".tar"), members)
    folder = str(tmp_path / "data")
    assert show(open_rows(folder, options)) == [("to train on", 0.2)]
    for split in ("validation", "val"):
        assert show(open_rows(folder, replace(options, split=split))) == [("held out", 0.2)]
    with pytest.raises(BadInputError, match="no files of split 'test', but of ") as caught:
        open_rows(folder, replace(options, split="test"))
    assert "--set data.split=" in caught.value.hint
    with pytest.raises(BadInputError, match="says itself which shards are meant"):
        open_rows(f"{folder}/*/*.tar", replace(options, split="test"))


def test_a_cached_table_with_a_column_of_no_use(tmp_path, options, monkeypatch):
    """As numpy before 2.1 wrote one, of an argument of its own that it did not know."""
    import jdmctl.data.shards as shards

    folder, keep = write_shards(tmp_path / "data"), shards.keep_arrays
    odd = {"allow_pickle": np.array(False)}
    monkeypatch.setattr(shards, "keep_arrays", lambda file, arrays: keep(file, {**arrays, **odd}))
    for _ in range(2):
        rows = open_rows(str(folder), options)
        assert rows.conditions == ("conditioning_image",) and show(rows) == EXPECTED


def test_arrays_are_kept_by_calls_that_every_numpy_knows(tmp_path, monkeypatch):
    """numpy before 2.1 takes whatever else is said for one more array."""
    said = {}
    monkeypatch.setattr(np, "savez", lambda file, **arrays: said.update(arrays))
    keep_arrays(tmp_path / "a.npz", {"one": np.zeros(1)})
    assert list(said) == ["one"]


def test_a_json_member_without_a_caption(tmp_path, options):
    shard = write_shard(tmp_path / "a.tar", [("a.jpg", png(0)), ("a.json", '{"title": "x", "caption": null}')])
    with pytest.raises(BadInputError, match="a.tar: a.json: no caption or text or prompt, but title, caption"):
        open_rows(str(shard), options)
    asked = ReadOptions(cache=options.cache, text_column="title")
    assert open_rows(str(shard), asked).text(0) == "x"


def test_an_empty_shard_among_others(tmp_path, options):
    folder = write_shards(tmp_path / "data")
    write_shard(folder / "00000a.tar", [])
    rows = open_rows(str(folder), options)
    assert show(rows) == EXPECTED and rows.conditions == ("conditioning_image",)
    with pytest.raises(BadInputError, match="has no samples"):
        open_rows(str(folder / "00000a.tar"), options)


def test_a_member_whose_name_is_not_utf8(tmp_path, options):
    members = [(f"{name}\udce9.{kind}", what) for name in "ab" for kind, what in (("png", png(51)), ("txt", name))]
    rows = open_rows(str(write_shard(tmp_path / "a.tar", members)), options)
    assert show(rows) == [("a", 0.2), ("b", 0.2)] and str(rows.picture(0)).endswith("a.tar: a\\xe9")


def test_half_a_character(tmp_path, options):
    """Json can hold what no text can: one half of an emoji."""
    shard = write_shard(tmp_path / "a.tar", [("a.jpg", png(0)), ("a.json", '{"caption": "party \\ud83c"}')])
    with pytest.raises(BadInputError, match="a.tar: a.json: 'party .ud83c' has half a character"):
        open_rows(str(shard), options)
    save(tmp_path / "data" / "a.png", png(0))
    save(tmp_path / "data" / "metadata.jsonl", '{"file_name": "a.png", "text": "party \\ud83c"}')
    with pytest.raises(BadInputError, match="line 1: \"text\" is 'party .ud83c', which has half a character"):
        open_rows(str(tmp_path / "data"), options)


@pytest.mark.parametrize("text", ["[" * 100_000, '{"caption": "a", "number": ' + "1" * 5000 + "}"])
def test_json_that_no_one_can_read(tmp_path, options, text):
    """Nested too deep, or with a number of more digits than Python takes."""
    shard = write_shard(tmp_path / "a.tar", [("a.jpg", png(0)), ("a.json", text)])
    with pytest.raises(BadInputError, match="a.tar: a.json: (maximum recursion|Exceeds the limit)"):
        open_rows(str(shard), options)
    for name in ("metadata.jsonl", "prompt.json"):
        save(tmp_path / name / name, text)
        with pytest.raises(BadInputError, match="line 1: json that cannot be read .(maximum recursion|Exceeds the)"):
            open_rows(str(tmp_path / name), options)
    save(tmp_path / "list.json", text)
    with pytest.raises(BadInputError, match="list.json: json that cannot be read .(maximum recursion|Exceeds the)"):
        open_rows(str(tmp_path / "list.json"), options, "videox")


def test_sizes_of_another_column_are_others(tmp_path, options):
    members = [("a.jpg", png(0)), ("a.big.png", png(0, (32, 16))), ("a.txt", "a")]
    shard = str(write_shard(tmp_path / "a.tar", members))
    other = ReadOptions(cache=options.cache, image_column="big.png")
    assert open_rows(shard, options).identity() != open_rows(shard, other).identity()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (lambda whole: whole[:600], "is cut short|not a whole tar"),
        (lambda whole: b"\x1f\x8b" + whole, "is compressed"),
        (lambda whole: b"nothing" * 200, "not a whole tar"),
        (lambda whole: whole[:2560] + b"x" + whole[2561:], "bytes, those after 2560 cannot be read"),
        (lambda whole: whole[:2560], "is cut short: the zeros"),
        (lambda whole: whole + whole, "bytes, those after 3584 cannot be read"),
    ],
)
def test_bad_shards(tmp_path, options, content, message):
    shard = write_shard(tmp_path / "a.tar", [("a.bmp", bytes(2000)), ("a.txt", "a")])
    shard.write_bytes(content(shard.read_bytes()))
    with pytest.raises(BadInputError, match=message):
        open_rows(str(shard), options)


def test_shards_elsewhere(options):
    for path in ("https://example.org/{000..009}.tar", "pipe:cat a.tar"):
        assert find_format(path) == "webdataset"
        with pytest.raises(BadInputError, match="not on this machine"):
            open_rows(path, options)


def test_odd_pictures_in_a_shard(tmp_path, options):
    """16 bits and transparency as from a file; a damaged one is named with its shard."""
    Image.fromarray(np.full((32, 32), 51400, np.uint16)).save(tmp_path / "deep.png")
    members = [("a.png", (tmp_path / "deep.png").read_bytes()), ("a.txt", "a"), ("b.png", png(9)[:45]), ("b.txt", "b")]
    shard = write_shard(tmp_path / "a.tar", members)
    rows = open_rows(str(shard), options)
    assert Pictures(rows, 16).image(0).mean().item() == pytest.approx(200 / 255)
    with pytest.raises(BadInputError, match=r"a.tar: b"):
        Pictures(rows, 16).image(1)


# Finding and looking


def test_what_is_no_data_set(tmp_path, options):
    with pytest.raises(BadInputError, match="no folder"):
        find_format(str(tmp_path / "nowhere"))
    save(tmp_path / "a" / "x.csv", "a")
    with pytest.raises(BadInputError, match="it holds 1 .csv"):
        find_format(str(tmp_path / "a"))
    save(tmp_path / "a" / "x.png", png(0))
    with pytest.raises(BadInputError, match="1 .png") as caught:
        find_format(str(tmp_path / "a"))
    assert "captions" in caught.value.hint
    for name in ("owner/name", "owner/prompts-2.47M", "owner/name.v2"):
        assert find_format(name) == "hub"
    for name in ("photos/a.jpg", "photos/metadata.jsonl", "shards/0.tar", "owner/prompts.txt"):
        with pytest.raises(BadInputError, match="no folder"):
            find_format(name)


def test_a_misspelt_path_is_not_taken_for_a_hub_name_alone(options, monkeypatch):
    """Without the library `datasets`, which nobody needs for a folder."""
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(BadInputError, match="no folder data/fotos, and no file either") as told:
        open_rows("data/fotos", options)
    assert told.value.hint.startswith("check the path")


def turned(format, exif):
    """20 x 10 px as stored, its left half white."""
    picture, stream = Image.new("L", (20, 10)), io.BytesIO()
    picture.paste(255, (0, 0, 10, 10))
    picture.save(stream, format, exif=exif)
    return Packed("a", stream.getvalue())


@pytest.mark.parametrize("format", ["jpeg", "png", "webp", "tiff"])
def test_a_turned_picture(format):
    """EXIF orientation 6: its left becomes its top, so that it is 20 px high and white above."""
    exif = Image.Exif()
    exif[0x0112] = 6
    picture = turned(format, exif)
    assert size_of(picture) == (20, 10)
    read = read_image(picture, (20, 10))
    assert read[:, :8].min() > 0.95 and read[:, 12:].max() < 0.05
    assert size_of(Packed("a", png(0, (20, 10)))) == (10, 20)
    assert read_image(Packed("a", png(0, (20, 10))), (8, 24)).shape == (3, 8, 24)


@pytest.mark.parametrize("format", ["jpeg", "png", "webp"])
@pytest.mark.parametrize("exif", [b"garbage!", b"MM", b"MM\x00*", b"II*\x00\x08\x00\x00\x00\x05\x00\x12"])
def test_a_picture_with_damaged_exif_is_not_turned(format, exif):
    picture = turned(format, b"Exif\x00\x00" + exif)
    assert size_of(picture) == (10, 20)
    read = read_image(picture, (10, 20))
    assert read[:, :, :8].min() > 0.95 and read[:, :, 12:].max() < 0.05


def run(monkeypatch, tmp_path, *words):
    monkeypatch.setenv("JDMCTL_CACHE", str(tmp_path / "cache"))
    return CliRunner().invoke(app, ["data", "inspect", *map(str, words)])


def test_inspect(tmp_path, monkeypatch):
    folder = write_fill50k(tmp_path / "data")
    done = run(monkeypatch, tmp_path, folder)
    assert done.exit_code == 0, done.output
    assert "controlnet, 4 rows" in done.output and "4 of 16 x 16" in done.output
    for kind in ("target", "source"):
        save(folder / kind / "2.png", png(0, (30, 20)))
    (folder / "source" / "3.png").write_bytes(b"")
    done = run(monkeypatch, tmp_path, folder, "--json")
    found = json.loads(done.output)
    assert done.exit_code == 1 and found["sizes"] == {"16 x 16": 3, "30 x 20": 1}
    assert found["conditions"] == ["conditioning_image"] and found["captions_different"] == 4
    assert len(found["problems"]) == 1 and "source/3.png is not a picture" in found["problems"][0]


def test_inspect_kohya_and_prompts(tmp_path, monkeypatch):
    assert "4 rows, 16 an epoch" in run(monkeypatch, tmp_path, write_kohya(tmp_path / "data")).output
    save(tmp_path / "prompts.txt", "a\nb\n")
    assert "prompts, 2 rows" in run(monkeypatch, tmp_path, tmp_path / "prompts.txt").output
    assert isinstance(run(monkeypatch, tmp_path, tmp_path / "data", "--format", "x").exception, BadInputError)


def test_inspect_of_no_path(tmp_path, monkeypatch):
    for words in ([""], ["", "--format", "kohya"]):
        error = run(monkeypatch, tmp_path, *words).exception
        assert isinstance(error, BadInputError) and "its path is empty" in str(error)


def test_inspect_says_what_a_run_would_use(tmp_path, monkeypatch, options):
    """Conditions where they are sure to be; and how to ask for the others."""
    save(tmp_path / "maps" / "a.png", png(0))
    save(tmp_path / "maps" / "metadata.jsonl", '{"conditioning_image": "a.png", "text": "a"}')
    save(tmp_path / "both" / "a.png", png(0))
    save(tmp_path / "both" / "metadata.jsonl", '{"file_name": "a.png", "conditioning_image": "a.png", "text": "a"}')
    shards, pairs = write_shards(tmp_path / "shards"), write_fill50k(tmp_path / "pairs")
    for folder, source, other in (
        (tmp_path / "maps", "conditions", ""),
        (tmp_path / "both", "conditions", "images"),
        (shards, "images", "conditions"),
        (pairs, "conditions", "images"),
    ):
        assert data_changes(str(folder))["data.source"] == source
        done = run(monkeypatch, tmp_path, folder, "--json")
        assert done.exit_code == 0, done.output
        found = json.loads(done.output)
        assert (found["source"], found["conditions"]) == (source, ["conditioning_image"])
        told = run(monkeypatch, tmp_path, folder).output
        assert f"--set data.source={other}" in told if other else "without pictures" in told
    with pytest.raises(BadInputError, match="condition maps and no pictures"):
        open_rows(str(tmp_path / "maps"), options)


def test_maps_of_an_imagefolder_come_with_their_pictures(tmp_path, options):
    """What needs pictures, such as a critic, then has them: maps alone are another format."""
    save(tmp_path / "a.png", png(255))
    save(tmp_path / "b.png", png(51))
    row = {"file_name": "a.png", "conditioning_image": "b.png", "text": "a"}
    save(tmp_path / "metadata.jsonl", json.dumps(row))
    pairs = PairedPictures(open_rows(str(tmp_path), options), ["canny"], 8, str(tmp_path))
    assert pairs.image(0).mean() == 1 and pairs.conditions(0)["canny"].mean() == pytest.approx(0.2)
    meaning = meaning_of(str(tmp_path))
    assert Data(source=meaning.source, path=meaning.path, format=meaning.format).has_pictures
    save(tmp_path / "metadata.jsonl", f'{json.dumps(row)}\n{{"file_name": "a.png", "text": "a"}}')
    with pytest.raises(BadInputError, match='line 2: no "conditioning_image"'):
        open_rows(str(tmp_path), options)


def test_a_metadata_file_means_its_folder_and_no_other_list_of_pictures_is_a_list_of_prompts(tmp_path):
    for name in ("metadata.jsonl", "train.jsonl"):
        save(tmp_path / name, '\n{"file_name": "a.png", "text": "a"}')
    save(tmp_path / "prompts.jsonl", '{"text": "a"}')
    images = {"data.source": "images", "data.path": str(tmp_path), "data.format": "imagefolder"}
    assert data_changes(str(tmp_path / "metadata.jsonl")) == images
    assert data_changes(str(tmp_path / "prompts.jsonl"))["data.source"] == "prompts"
    with pytest.raises(BadInputError, match=r"train.jsonl lists pictures \(file_name\)") as caught:
        data_changes(str(tmp_path / "train.jsonl"))
    assert "--set data.source=prompts" in caught.value.hint


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"image_column": "big"}, "controlnet has no use for image_column 'big'"),
        ({"text_column": "t", "split": "test"}, "no use for text_column 't' and split 'test'"),
        ({"stream": 5}, "no use for streaming '5'"),
    ],
)
def test_options_without_effect_are_refused(tmp_path, option, message):
    folder = write_fill50k(tmp_path / "data")
    with pytest.raises(BadInputError, match=message) as caught:
        open_rows(str(folder), ReadOptions(cache=tmp_path, **option))
    assert caught.value.hint.startswith("leave it out; ")


def test_a_condition_of_another_shape_than_its_picture_is_refused(tmp_path, options, monkeypatch):
    folder = write_fill50k(tmp_path / "data")
    save(folder / "target" / "0.png", png(0, (128, 64)))
    save(folder / "source" / "0.png", png(0, (64, 64)))
    save(folder / "target" / "1.png", png(0, (101, 67)))
    save(folder / "source" / "1.png", png(0, (50, 33)))
    pairs = PairedPictures(open_rows(str(folder), options), ["canny"], 8, str(folder))
    message = "source/0.png is 64 x 64 px, another shape than the 128 x 64 of .*target/0.png"
    with pytest.raises(BadInputError, match=message) as caught:
        pairs.conditions(0)
    assert "resize it to 128 x 64" in caught.value.hint
    assert pairs.conditions(1)["canny"].shape == (3, 8, 8)
    found = json.loads(run(monkeypatch, tmp_path, folder, "--json").output)
    assert len(found["problems"]) == 1 and "another shape" in found["problems"][0]
    assert found["warnings"][0].startswith("1 of 4 conditioning_image are of another size than their picture")


def test_maps_of_several_controls_lie_over_one_another(tmp_path):
    for name, size in (("a", (16, 16)), ("b", (32, 16))):
        save(tmp_path / f"{name}.png", png(0, size))
    row = {"text": "a", "conditioning_image_canny": "a.png", "conditioning_image_depth": "b.png"}
    save(tmp_path / "metadata.jsonl", json.dumps(row))
    with pytest.raises(BadInputError, match="b.png is 32 x 16 px, another shape"):
        ConditionFolder(tmp_path, ["canny", "depth"], 8).conditions(0)
