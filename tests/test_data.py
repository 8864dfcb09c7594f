"""Sources of samples, the condition cache, and the refusal of weight files that must not be opened."""

import json
import multiprocessing

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from jdmctl.data.cache import ConditionCache
from jdmctl.data.conditionfolder import ConditionFolder
from jdmctl.data.imagefolder import ImageFolder
from jdmctl.data.prompts import PromptList
from jdmctl.errors import BadInputError, MissingWeightsError
from jdmctl.weights import fingerprint, require_safetensors


def write_rows(folder, rows):
    lines = (row if isinstance(row, str) else json.dumps(row) for row in rows)
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n")


def write_picture(path, value):
    path.parent.mkdir(exist_ok=True)
    Image.new("L", (16, 16), value).save(path)


# Pictures


def test_image_folder(tmp_path):
    write_picture(tmp_path / "a.png", 51)
    write_picture(tmp_path / "more" / "b.png", 102)
    rows = [{"file_name": "a.png", "text": "a"}, {"file_name": "more/b.png", "text": "", "x": 1}]
    write_rows(tmp_path, [rows[0], "", rows[1]])
    source = ImageFolder(tmp_path, resolution_px=8)
    assert len(source) == 2
    assert [source.text(i) for i in range(2)] == ["a", ""]
    assert source.image(0).shape == (3, 8, 8)
    assert source.image(1).mean() == pytest.approx(0.4)  # 102 / 255


def test_every_bad_row_is_told_by_its_line(tmp_path):
    write_picture(tmp_path / "a.png", 0)
    good = {"file_name": "a.png", "text": "a"}
    bad = ['{"file_name": "a.png",', {"text": "a"}, {"file_name": "a.png"}, [1], '"a.png"']
    bad += [{"file_name": "b.png", "text": "b"}, {"file_name": "a.png", "text": 3}, {"file_name": None, "text": "a"}]
    write_rows(tmp_path, [good, *bad, good])
    with pytest.raises(BadInputError) as caught:
        ImageFolder(tmp_path, 8)
    headline, *problems = str(caught.value).splitlines()
    assert headline.endswith("metadata.jsonl has 8 problems:")
    expected = [
        "line 2: not valid json", 'line 3: no "file_name"', 'line 4: no "text"', "line 5: not an object",
        "line 6: not an object", 'line 7: "file_name": no file', 'line 8: "text" is 3', 'line 9: "file_name" is None',
    ]  # fmt: skip
    for problem, start in zip(problems, expected, strict=True):
        assert problem.strip().startswith(start)


def test_of_many_bad_rows_twenty_are_shown(tmp_path):
    write_rows(tmp_path, [{"text": "a"}] * 23)
    with pytest.raises(BadInputError) as caught:
        ImageFolder(tmp_path, 8)
    lines = str(caught.value).splitlines()
    assert len(lines) == 22
    assert lines[0].endswith("23 problems:") and lines[-1] == "  and 3 more"


def test_an_image_folder_that_is_none(tmp_path):
    with pytest.raises(BadInputError, match="no folder"):
        ImageFolder(tmp_path / "nowhere", 8)
    with pytest.raises(BadInputError, match="no metadata.jsonl") as caught:
        ImageFolder(tmp_path, 8)
    assert "file_name" in caught.value.hint
    write_rows(tmp_path, ["", "  "])
    with pytest.raises(BadInputError, match="no rows"):
        ImageFolder(tmp_path, 8)
    (tmp_path / "metadata.jsonl").write_bytes(b'{"text": "\xff"}')
    with pytest.raises(BadInputError, match="not UTF-8"):
        ImageFolder(tmp_path, 8)


# Ready-made conditions


def test_condition_folder_of_one_control(tmp_path):
    write_picture(tmp_path / "a.png", 51)
    write_picture(tmp_path / "b.png", 102)
    write_rows(
        tmp_path,
        [
            {"text": "a", "conditioning_image": "a.png"},
            {"text": "b", "conditioning_image": "a.png", "conditioning_image_depth": "b.png"},
        ],
    )
    source = ConditionFolder(tmp_path, ["depth"], 8)
    assert (len(source), source.text(1)) == (2, "b")
    assert source.conditions(0)["depth"].mean() == pytest.approx(0.2)
    assert source.conditions(1)["depth"].mean() == pytest.approx(0.4)


def test_condition_folder_of_several_controls(tmp_path):
    write_picture(tmp_path / "a.png", 51)
    row = {"text": "a", "conditioning_image_depth": "a.png", "conditioning_image_canny": "a.png"}
    write_rows(tmp_path, [row])
    assert set(ConditionFolder(tmp_path, ["depth", "canny"], 8).conditions(0)) == {"depth", "canny"}
    write_rows(tmp_path, [{"text": "a", "conditioning_image": "a.png"}])
    with pytest.raises(BadInputError, match='no "conditioning_image_depth"'):
        ConditionFolder(tmp_path, ["depth", "canny"], 8)


# Prompts


def test_prompt_lists(tmp_path):
    (tmp_path / "a.txt").write_text("a red cube\n\n  a blue cone \n")
    (tmp_path / "a.jsonl").write_text('{"text": "a red cube"}\n{"text": "a blue cone"}\n')
    for name in ("a.txt", "a.jsonl"):
        source = PromptList(tmp_path / name)
        assert [source.text(i) for i in range(len(source))] == ["a red cube", "a blue cone"]


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("a.txt", "\n \n", "no prompts"),
        ("a.jsonl", '{"prompt": "a"}', 'line 1: no "text"'),
        ("a.csv", "a", "no list of prompts"),
        ("a.txt", None, "no file"),
    ],
)
def test_bad_prompt_lists(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(BadInputError, match=message):
        PromptList(tmp_path / name)


# The cache


class Negative:
    """An extractor that counts the pictures it was given."""

    def __init__(self):
        self.count = 0

    def __call__(self, images):
        self.count += len(images)
        return 1 - images


def cache_of(folder, extract, control="negative", options=None, version="1"):
    return ConditionCache(folder, extract, control, options or {}, version)


def test_each_picture_is_extracted_once(tmp_path):
    images, extract = torch.rand(3, 3, 4, 4), Negative()
    assert torch.equal(cache_of(tmp_path, extract)(images[:2]), 1 - images[:2])
    assert extract.count == 2
    assert torch.equal(cache_of(tmp_path, extract)(images), 1 - images)  # another run
    assert extract.count == 3


def test_another_control_option_or_version_is_another_condition(tmp_path):
    image, extract = torch.rand(1, 3, 4, 4), Negative()
    for keys in ({}, {"control": "b"}, {"options": {"factor": 4}}, {"options": {"factor": 8}}, {"version": "2"}):
        cache_of(tmp_path, extract, **keys)(image)
    assert extract.count == 5


def test_an_option_that_names_a_file_counts_by_its_contents(tmp_path):
    image, extract, network = torch.rand(1, 3, 4, 4), Negative(), tmp_path / "network"
    network.mkdir()
    for content, count in (("a", 1), ("a", 1), ("b", 2), ("a", 2)):
        (network / "weights").write_text(content)
        cache_of(tmp_path / "cache", extract, options={"network": str(network)})(image)
        assert extract.count == count


def test_an_option_may_list_files_and_an_empty_one_is_text(tmp_path, monkeypatch):
    """`Path("")` is the working directory, which is no part of any condition."""
    monkeypatch.chdir(tmp_path)
    image, extract = torch.rand(1, 3, 4, 4), Negative()
    for content, count in (("a", 1), ("a", 1), ("b", 2)):
        (tmp_path / "weights").write_text(content)
        cache_of("cache", extract, options={"networks": ["weights", 3], "prefix": ""})(image)
        assert extract.count == count


def test_any_flipped_bit_is_noticed(tmp_path):
    image, extract = torch.rand(1, 3, 4, 4), Negative()
    cache_of(tmp_path, extract)(image)
    (entry,) = tmp_path.rglob("*.npz")
    whole = entry.read_bytes()
    for bit in range(0, 8 * len(whole), 7):
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        entry.write_bytes(damaged)
        assert torch.equal(cache_of(tmp_path, extract)(image), 1 - image), bit


def test_a_damaged_entry_is_made_again(tmp_path):
    image, extract = torch.rand(1, 3, 4, 4), Negative()
    cache_of(tmp_path, extract)(image)
    (entry,) = tmp_path.rglob("*.npz")
    for damaged in (b"", entry.read_bytes()[:-10]):
        entry.write_bytes(damaged)
        assert torch.equal(cache_of(tmp_path, extract)(image), 1 - image)
    assert extract.count == 3


def test_an_entry_is_never_unpickled(tmp_path):
    image, extract = torch.rand(1, 3, 4, 4), Negative()
    cache_of(tmp_path, extract)(image)
    (entry,) = tmp_path.rglob("*.npz")
    np.savez(entry, condition=np.array([{"a": 1}], dtype=object))
    assert torch.equal(cache_of(tmp_path, extract)(image), 1 - image)


def test_a_full_disk_gets_a_sentence_and_leaves_nothing(tmp_path, monkeypatch):
    def no_room(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez_compressed", no_room)
    with pytest.raises(BadInputError, match="No space left on device"):
        cache_of(tmp_path, Negative())(torch.rand(1, 3, 4, 4))
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def _fill(folder):
    images = torch.rand(20, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    return torch.equal(cache_of(folder, Negative())(images), 1 - images)


def test_processes_may_share_a_cache(tmp_path):
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        assert all(pool.map(_fill, [tmp_path] * 4))
    assert len(list(tmp_path.rglob("*.npz"))) == 20
    assert not list(tmp_path.rglob("*.part"))


# Weights


def test_whole_safetensors_are_accepted(tmp_path):
    save_file({"a": torch.zeros(100)}, tmp_path / "model.safetensors")
    (tmp_path / "pytorch_model.bin").write_bytes(b"")  # beside safetensors it is never opened
    assert require_safetensors(tmp_path) == [tmp_path / "model.safetensors"]
    assert require_safetensors(tmp_path / "model.safetensors") == [tmp_path / "model.safetensors"]


@pytest.mark.parametrize("kept", [0, 4, 60, 300])
def test_truncated_safetensors(tmp_path, kept):
    """The file has a header of about 70 bytes and 400 bytes of values."""
    file = tmp_path / "model.safetensors"
    save_file({"a": torch.zeros(100)}, file)
    file.write_bytes(file.read_bytes()[:kept])
    with pytest.raises(MissingWeightsError, match=f"not a whole safetensors file \\({kept} bytes"):
        require_safetensors(tmp_path)


@pytest.mark.parametrize("suffix", ["bin", "pt", "pth", "ckpt", "pkl"])
def test_pickles_are_refused_unopened(tmp_path, suffix):
    file = tmp_path / f"model.{suffix}"
    file.write_bytes(b"whatever")
    for path in (file, tmp_path):
        with pytest.raises(MissingWeightsError, match="refused") as caught:
            require_safetensors(path)
        assert "safetensors" in caught.value.hint


def test_absent_weights(tmp_path):
    with pytest.raises(MissingWeightsError, match="no weights at"):
        require_safetensors(tmp_path / "nowhere")
    with pytest.raises(MissingWeightsError, match=r"no \*.safetensors"):
        require_safetensors(tmp_path)


def test_a_fingerprint_follows_names_and_contents(tmp_path):
    (tmp_path / "a").write_text("1")
    first = fingerprint(tmp_path)
    assert fingerprint(tmp_path) == first
    (tmp_path / "a").rename(tmp_path / "b")
    renamed = fingerprint(tmp_path)
    (tmp_path / "b").write_text("2")
    assert len({first, renamed, fingerprint(tmp_path)}) == 3
