"""Parquet files and data sets of the library `datasets`; nothing is downloaded."""

import pytest

datasets = pytest.importorskip("datasets")

from data_folders import GREYS, TEXTS, png, table_columns  # noqa: E402

from jdmctl.data.formats import find_format, open_rows  # noqa: E402
from jdmctl.data.options import ReadOptions  # noqa: E402
from jdmctl.data.rows import PairedPictures, Pictures  # noqa: E402
from jdmctl.errors import BadInputError  # noqa: E402


@pytest.fixture
def options(tmp_path):
    return ReadOptions(cache=tmp_path / "cache")


def table(**changes):
    """As on the hub: columns of the feature Image, except those that `changes` adds or, by None, removes."""
    columns = {name: values for name, values in (table_columns() | changes).items() if values is not None}
    made = datasets.Dataset.from_dict(columns)
    for name in {"image", "conditioning_image"} & set(columns) - set(changes):
        made = made.cast_column(name, datasets.Image())
    return made


def write_parquet(folder, **changes):
    folder.mkdir()
    made = table(**changes)
    for part in range(2):
        made.shard(2, part, contiguous=True).to_parquet(str(folder / f"train-0000{part}.parquet"))
    return str(folder)


def check(rows):
    pictures = Pictures(rows, 8)
    assert [rows.text(i) for i in range(len(rows))] == list(TEXTS)
    assert [pictures.image(i).mean().item() for i in range(4)] == pytest.approx([grey / 255 for grey in GREYS])


def test_parquet(tmp_path, options):
    path = write_parquet(tmp_path / "data")
    assert find_format(path) == "parquet"
    rows = open_rows(path, options)
    check(rows)
    assert PairedPictures(rows, ["canny"], 8, path).conditions(0)["canny"].mean().item() == pytest.approx(0.8)
    assert open_rows(path, options).identity() == rows.identity()


def test_parquet_that_other_tools_wrote(tmp_path, options):
    """Plain bytes under names of its own; the text column is the only one of strings."""
    path = write_parquet(
        tmp_path / "data", image=None, conditioning_image=None, text=None,
        jpg=[png(grey) for grey in GREYS], blip_caption=list(TEXTS), width=[16] * 4,
    )  # fmt: skip
    check(open_rows(path, options))


def test_files_of_another_split_stay_out(tmp_path, options):
    path = write_parquet(tmp_path / "data")
    table(text=["other"] * 4).to_parquet(f"{path}/test-00000.parquet")
    check(open_rows(path, options))
    rows = open_rows(path, ReadOptions(cache=options.cache, split="test"))
    assert [rows.text(i) for i in range(len(rows))] == ["other"] * 4
    with pytest.raises(BadInputError, match="data cannot be read: .*val"):
        open_rows(path, ReadOptions(cache=options.cache, split="val"))


def test_parquet_in_folders_that_are_links(tmp_path, options):
    """Files beside them count too; those of other splits stay out as elsewhere."""
    write_parquet(tmp_path / "elsewhere")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "more").symlink_to(tmp_path / "elsewhere")
    table(text=["other"] * 4).to_parquet(str(tmp_path / "data" / "test-00000.parquet"))
    path = str(tmp_path / "data")
    assert find_format(path) == "parquet"
    check(open_rows(path, options))
    assert len(open_rows(path, ReadOptions(cache=options.cache, stream=2))) == 2
    rows = open_rows(path, ReadOptions(cache=options.cache, split="test"))
    assert [rows.text(i) for i in range(len(rows))] == ["other"] * 4
    with pytest.raises(BadInputError, match="no files of split 'val', but of train, test"):
        open_rows(path, ReadOptions(cache=options.cache, split="val"))


def test_columns_that_cannot_be_guessed(tmp_path, options):
    path = write_parquet(tmp_path / "data", text=None, one=list(TEXTS), two=list(TEXTS))
    with pytest.raises(BadInputError, match=r"which column is the text\? It has image \(PIL.*one \(string\)") as caught:
        open_rows(path, options)
    assert "data.text_column=one" in caught.value.hint
    check(open_rows(path, ReadOptions(cache=options.cache, text_column="two")))
    for asked, message in (("three", "there is no 'three'"), ("image", "its 'image' is")):
        with pytest.raises(BadInputError, match=message):
            open_rows(path, ReadOptions(cache=options.cache, text_column=asked))


def test_rows_that_are_empty(tmp_path, options):
    path = write_parquet(tmp_path / "data", text=["a", None, "c", None])
    with pytest.raises(BadInputError, match="2 problems:\n  row 1: no 'text'\n  row 3: no 'text'"):
        open_rows(path, options)


def test_saved_to_disk(tmp_path, options):
    table().save_to_disk(str(tmp_path / "one"))
    datasets.DatasetDict({"train": table(), "test": table()}).save_to_disk(str(tmp_path / "several"))
    for name in ("one", "several"):
        assert find_format(str(tmp_path / name)) == "saved"
        check(open_rows(str(tmp_path / name), options))
    with pytest.raises(BadInputError, match="no split 'val', but train, test"):
        open_rows(str(tmp_path / "several"), ReadOptions(cache=options.cache, split="val"))


def test_streaming_keeps_the_first_rows(tmp_path, options, monkeypatch):
    """Of four rows two are fetched; the second time they come from the cache, without a stream."""
    path = write_parquet(tmp_path / "data")
    asked = ReadOptions(cache=options.cache, stream=2)
    rows = open_rows(path, asked)
    assert [rows.text(i) for i in range(len(rows))] == ["a", "b"]
    assert Pictures(rows, 8).image(1).mean().item() == pytest.approx(0.4)
    monkeypatch.setattr(datasets, "load_dataset", None)
    assert len(open_rows(path, asked)) == 2
    assert not list((options.cache / "streams").glob(".partial*"))


def test_what_cannot_be_had(tmp_path, options):
    """A damaged file, and a name that the hub, which tests never reach, does not answer to."""
    (tmp_path / "a.parquet").write_bytes(b"PAR1 no more")
    with pytest.raises(BadInputError, match="a.parquet cannot be read"):
        open_rows(str(tmp_path / "a.parquet"), options)
    with pytest.raises(BadInputError, match="no folder nobody/nothing, and it cannot be had from the hub") as caught:
        open_rows("nobody/nothing", options)
    assert "data.split" in caught.value.hint
