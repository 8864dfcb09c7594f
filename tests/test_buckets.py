"""Pictures of several aspect ratios: which bucket each is in, and batches that are of one bucket each."""

from collections import Counter
from dataclasses import replace

import pytest
from data_folders import png, save
from test_batches import batches

from jdmctl.data.aspect import bucket_sizes, buckets_of, nearest
from jdmctl.data.formats import open_rows
from jdmctl.data.options import ReadOptions
from jdmctl.errors import BadInputError
from jdmctl.training.buckets import Buckets

BUCKETS = Buckets(members=(tuple(range(7)), (7, 8), (9,)), latent_shapes=((4, 8, 8), (4, 4, 16), (4, 16, 4)))


def test_bucket_sizes():
    """At 512 px in steps of 64, worked out by hand: widths 256, 320, ..., 1024, heights 512^2 / width rounded down."""
    expected = [(1024, 256), (768, 320), (640, 384), (576, 448), (512, 512), (448, 576), (384, 640), (320, 704)]
    expected += [(320, 768), (256, 832), (256, 896), (256, 960), (256, 1024)]
    assert list(bucket_sizes(512, 64)) == [(height, width) for height, width in expected]


def test_nearest_is_by_the_factor_between_ratios():
    """2:1 lies between 1:1 and 4:1 in equal factors; a little wider is nearer to 4:1."""
    sizes = ((8, 8), (4, 16))
    assert [nearest((100, width), sizes) for width in (100, 199, 201, 900)] == [0, 0, 1, 1]


def test_sizes_are_of_the_rows_asked_for(tmp_path):
    """As many rows with the same last one, but others."""
    for name, size in (("a", (16, 16)), ("b", (32, 16)), ("c", (16, 16))):
        save(tmp_path / "data" / f"{name}.png", png(0, size))
        save(tmp_path / "data" / f"{name}.txt", name)
    rows = open_rows(str(tmp_path / "data"), ReadOptions(cache=tmp_path))
    sizes = ((16, 16), (16, 32))
    assert buckets_of(rows, sizes, [0, 2], tmp_path) == {0: 0, 2: 0}
    assert buckets_of(rows, sizes, [1, 2], tmp_path) == {1: 1, 2: 0}


def test_sizes_are_measured_once(tmp_path, monkeypatch):
    import jdmctl.data.aspect as aspect

    for name, size in (("a", (16, 16)), ("b", (40, 10)), ("c", (12, 40))):
        save(tmp_path / "data" / f"{name}.png", png(0, size))
        save(tmp_path / "data" / f"{name}.txt", name)
    rows = open_rows(str(tmp_path / "data"), ReadOptions(cache=tmp_path))
    sizes, measured, measure = ((8, 8), (4, 16), (16, 4)), [], aspect._measure
    monkeypatch.setattr(aspect, "_measure", lambda *asked: measured.append(1) or measure(*asked))
    for _ in range(2):
        assert buckets_of(rows, sizes, range(3), tmp_path / "sizes") == {0: 0, 1: 1, 2: 2}
    assert len(measured) == 1
    save(tmp_path / "data" / "c.png", b"x")
    with pytest.raises(BadInputError, match="1 problem:\n  .*c.png is not a picture"):
        rows = open_rows(str(tmp_path / "data"), ReadOptions(cache=tmp_path))
        buckets_of(rows, sizes, range(3), tmp_path / "sizes")


def bucketed(**changes):
    return batches(buckets=BUCKETS, **changes)


def numbers(batch) -> list[int]:
    return [int(text.split()[1]) for text in batch.prompt]


def test_every_batch_is_of_one_bucket_and_says_its_shape():
    source = bucketed(batch_size=3)
    for update in range(40):
        batch = source.batch("student", update)
        (bucket,) = {next(b for b in range(3) if n in BUCKETS.members[b]) for n in numbers(batch)}
        assert batch.latent_shape == BUCKETS.latent_shapes[bucket]


def test_every_sample_is_shown_as_often_as_any_other():
    """In 12 epochs of 10 samples, batches of 4: each bucket's batches are complete (84, 24 and 12 samples), so each
    sample comes exactly 12 times, also that of the bucket with one."""
    source = bucketed(batch_size=4)
    counts = Counter(n for update in range(30) for n in numbers(source.batch("student", update)))
    assert counts == dict.fromkeys(range(10), 12)
    first = [numbers(source.batch("student", update)) for update in range(30)]
    assert first != [numbers(source.batch("student", update)) for update in range(30, 60)]


def test_what_is_shown_follows_from_where_a_run_stands():
    """Any process and piece, in any order of asking, as after a resume."""
    whole = [numbers(bucketed().batch("student", update)) for update in range(9)]
    for update in reversed(range(9)):
        parts = [
            replace(bucketed(), process_index=rank, num_processes=2, num_pieces=2).batch("student", update, piece)
            for piece in range(2)
            for rank in range(2)
        ]
        assert sum(map(numbers, parts), []) == whole[update]
        assert len({part.latent_shape for part in parts}) == 1
