"""The teacher's own samples: as many as are asked for, the same whoever asks, no more kept than there is room for."""

from dataclasses import replace

import pytest
import torch

from jdmctl.training import teacher_samples
from jdmctl.training.batches import Batches
from jdmctl.training.draws import order
from jdmctl.training.samples import PromptSamples
from jdmctl.training.teacher_samples import TeacherSamples, first_wanted

SHAPE = (1, 2, 2)


class Captions(list):
    text = list.__getitem__


def teacher(asked: list[int], in_turn, at_once: int) -> TeacherSamples:
    """What it makes of a noise depends on the place in its batch; it writes down how many it is asked for."""

    def sample(noise, texts):
        asked.append(len(texts))
        return noise * torch.arange(1, len(texts) + 1).view(-1, 1, 1, 1)

    return TeacherSamples(sample, str, in_turn, at_once, SHAPE, seed=3)


def test_a_sample_does_not_depend_on_who_asks():
    """Its noise follows from its number, its answer from its company too, which is the same in any order of asking."""
    asked: list[int] = []
    in_turn = range(39, -1, -1)
    noise, latents = teacher(asked, in_turn, 16).take([35, 2, 17])
    again, others = teacher(asked, in_turn, 16).take([2, 35])
    alone, _ = teacher([], range(40), 1).take([35])
    assert torch.equal(noise[[1, 0]], again) and torch.equal(latents[[1, 0]], others)
    assert torch.equal(noise[:1], alone)
    torch.testing.assert_close(latents[2], noise[2] * 7)  # 17 is the seventh of 23, 22, ..., 8
    assert asked == [16, 8, 16, 8, 16]


@pytest.mark.parametrize(("processes", "pieces"), [(1, 1), (2, 1), (1, 2)])
def test_no_more_are_drawn_than_a_batch_asks_for(processes, pieces):
    """100 updates of 16 among 20000 prompts: 1600 in all, each process its own share, and none of the second half is
    drawn again by a run that begins there."""
    size, share = 20000, 16 // (processes * pieces)
    in_turn = first_wanted(0, size, {"regression": 0, "critic": size})
    samples = PromptSamples(Captions(["a"] * size))
    for rank in range(processes):
        asked, resumed = [], []
        share_of = Batches(samples, tuple, 0, 16, pieces, process_index=rank, num_processes=processes)
        first, second = (
            replace(share_of, teacher=teacher(counts, in_turn, share), teacher_phases=["critic"])
            for counts in (asked, resumed)
        )
        whole = [first.batch("critic", update, piece).latents for update in range(100) for piece in range(pieces)]
        assert asked == [share] * 100 * pieces
        again = [second.batch("critic", update, piece).latents for update in range(50, 100) for piece in range(pieces)]
        assert resumed == [share] * 50 * pieces
        assert all(torch.equal(*both) for both in zip(whole[50 * pieces :], again, strict=True))


def test_the_phase_that_comes_second_finds_what_the_first_had():
    """Of 100 prompts 48 are wanted by three updates of 16; seven of the second phase want every other at some time."""
    walks = {"regression": 3 * 16, "critic": 100}
    in_turn = first_wanted(0, 100, walks)
    assert sorted(in_turn) == list(range(100)) and in_turn[:48] == order(0, "regression", 0, 100)[:48]
    asked: list[int] = []
    samples = PromptSamples(Captions(["a"] * 100))
    source = Batches(samples, tuple, 0, 16, teacher=teacher(asked, in_turn, 16), teacher_phases=walks)
    for update in range(3):
        source.batch("regression", update)
    assert asked == [16, 16, 16]
    seen = set(in_turn[:48])
    for update in range(7):
        source.batch("critic", update)
        seen |= {source.index("critic", number) for number in range(16 * update, 16 * update + 16)}
        assert len(seen) <= sum(asked) < len(seen) + 16
    assert sum(asked) == 100


def test_what_there_is_no_room_for_is_drawn_again_alike(monkeypatch):
    """Room for five latents of 16 bytes: four and one are kept of twelve, and the others come out the same."""
    monkeypatch.setattr(teacher_samples, "_KEPT_BYTES", 5 * 16 + 15)
    asked: list[int] = []
    source = teacher(asked, range(12), 4)
    first, again = source.take(range(12)), source.take(range(12))
    assert torch.equal(first[0], again[0]) and torch.equal(first[1], again[1])
    assert asked == [4, 4, 4, 4, 4] and len(source._kept) == 5
    wide = replace(source, _kept={})
    assert torch.equal(wide.take([11])[1], first[1][11:])
