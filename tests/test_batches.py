"""Batches follow from where a run stands, whoever asks and however often."""

import json
from collections import Counter
from dataclasses import dataclass, field, replace

import pytest
import torch

from jdmctl.errors import BadInputError
from jdmctl.training.batches import Batches
from jdmctl.training.checkpoint import Checkpoints
from jdmctl.training.same_data import same_data
from jdmctl.training.samples import PictureSamples, PromptSamples, extractor, split
from jdmctl.training.state import TrainingState


@dataclass
class Numbers:
    """Ten pictures, each of its own grey."""

    opened: list[int] = field(default_factory=list)

    def __len__(self):
        return 10

    def text(self, index):
        return f"number {index}"

    def image(self, index):
        self.opened.append(index)
        return torch.full((3, 2, 2), index / 10)


class Captions(list):
    """Prompts and nothing beside them."""

    text = list.__getitem__


def batches(**changes) -> Batches:
    samples = PictureSamples(Numbers(), {"invert": lambda image: 1 - image})
    return Batches(**({"samples": samples, "encode_prompt": tuple, "seed": 0, "batch_size": 4} | changes))


def shown(batch) -> list[str]:
    return list(batch.prompt)


def test_every_epoch_shows_every_sample_once_in_another_order():
    source = batches(batch_size=5)
    epochs = [shown(source.batch("student", 2 * e)) + shown(source.batch("student", 2 * e + 1)) for e in range(3)]
    assert all(sorted(epoch) == sorted(f"number {i}" for i in range(10)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]


def test_phases_walk_in_orders_of_their_own():
    source = batches(batch_size=10)
    assert shown(source.batch("student", 0)) != shown(source.batch("fake_score", 0))


@pytest.mark.parametrize(("processes", "pieces"), [(2, 1), (1, 2), (2, 2)])
def test_shares_make_up_the_whole_batch(processes, pieces):
    """Each process and piece has its part: texts, pictures, conditions and noise are those of one process alone."""
    whole = batches().batch("student", 7)
    parts = [
        replace(batches(), process_index=rank, num_processes=processes, num_pieces=pieces).batch("student", 7, piece)
        for piece in range(pieces)
        for rank in range(processes)
    ]
    assert sum((shown(part) for part in parts), []) == shown(whole)
    assert torch.equal(torch.cat([part.images for part in parts]), whole.images)
    noise = [part.draws.normal("student_noise", (3,)) for part in parts]
    assert torch.equal(torch.cat(noise), whole.draws.normal("student_noise", (3,)))


def test_conditions_belong_to_their_pictures_and_texts():
    batch = batches().batch("student", 3)
    assert torch.equal(batch.conditions["invert"], 1 - batch.images)
    assert [f"number {round(10 * image.mean().item())}" for image in batch.images] == shown(batch)


def test_prompts_are_dropped_as_often_as_asked():
    """Of 2000 samples 500 +- 4 standard deviations (19.4 each) are without a prompt."""
    source = batches(batch_size=2000, prompt_dropout=0.25)
    texts = shown(source.batch("student", 0))
    assert 422 < texts.count("") < 578
    assert shown(source.batch("student", 0)) == texts


def test_a_batch_that_cannot_be_shared_is_refused():
    with pytest.raises(ValueError, match="multiple"):
        batches(num_processes=3)


def test_pictures_are_opened_once():
    source = batches(batch_size=10)
    for update in range(3):
        source.batch("student", update)
    assert sorted(source.samples.pictures.opened) == list(range(10))


def test_split_holds_out_at_most_a_quarter_and_the_same_each_time():
    samples = PictureSamples(Numbers(), {})
    train, val = split(samples, 0, 64)
    assert [len(train), len(val)] == [8, 2]
    assert sorted([*train.indices, *val.indices]) == list(range(10))
    assert split(samples, 0, 64)[1].indices == val.indices
    train, val = split(samples, 5, 1)
    assert [len(train), len(val)] == [4, 1] and max(*train.indices, *val.indices) == 4
    train, val = split(samples, 3, 64)
    assert len(train) == len(val) == 3


def test_what_is_held_out_is_spread_over_data_that_is_sorted():
    """Of ten classes of a hundred pictures, a quarter held out: 25 of each on the average, and a standard deviation
    of sqrt(100 x 0.25 x 0.75 x 900 / 999) = 4.1; within 4 of these, 9 to 41.
    """
    train, val = split(PromptSamples(Captions(f"class {i // 100}" for i in range(1000))), 0, 250)
    held_out = Counter(index // 100 for index in val.indices)
    assert len(val) == 250 and len(held_out) == 10
    assert all(9 <= count <= 41 for count in held_out.values())


def test_pictures_are_held_out_with_all_their_captions():
    """Five pictures of two captions each, not side by side: one may be held out, with both."""
    samples = PictureSamples(Numbers(), {})
    train, val = split(samples, 0, 1, shown=lambda index: index % 5)
    assert len(val) == 2 and val.indices[1] == val.indices[0] + 5
    assert sorted([*train.indices, *val.indices]) == list(range(10))
    assert split(samples, 0, 64, shown=lambda index: index % 5)[1].indices == val.indices
    train, val = split(samples, 0, 64, shown=lambda index: index % 3)
    assert len(train) == len(val) == 10


@dataclass
class Network:
    """A control of somebody's own, whose code may change."""

    shift: float = 0.0
    name: str = "own"
    gradient: str = "network"

    def condition(self, images):
        return (images + self.shift).clamp(0, 1)


def test_conditions_are_made_again_when_a_controls_code_changes(tmp_path):
    image = torch.full((1, 3, 8, 8), 0.5)
    for shift in (0.0, 0.1, 0.0, 1e-7):
        made = extractor(Network(shift), {}, tmp_path, "cpu", 16)(image)
        assert made.sub(0.5 + shift).abs().max() < 1e-6
    assert len(list(tmp_path.rglob("*.npz"))) == 2


def test_data_that_changed_is_noticed():
    asked, one = {"path": "photos"}, PromptSamples(Numbers())
    before = same_data(asked, *split(one, 0, 2))
    same_data(asked, *split(one, 0, 2)).load_state_dict(json.loads(json.dumps(before.state_dict())))
    same_data({"path": "others"}, *split(one, 5, 2)).load_state_dict(before.state_dict())
    with pytest.raises(BadInputError, match="it had 8 samples to train on and 2 held out, and has 4 and 1"):
        same_data(asked, *split(one, 5, 2)).load_state_dict(before.state_dict())
    train, val = split(one, 0, 2)
    with pytest.raises(BadInputError, match="its captions are others, or in another order; what was"):
        same_data(asked, replace(train, indices=train.indices[::-1]), val).load_state_dict(before.state_dict())


def test_other_pictures_of_the_same_captions_are_noticed():
    """As many of them, with the same captions, on the same sides: only their names tell."""
    alike = PromptSamples(Captions(["sks dog"] * 10))
    before, same, other = (
        same_data({}, *split(alike, 0, 2, shown=[f"{name}{i}.png" for i in range(10)].__getitem__)) for name in "aab"
    )
    same.load_state_dict(before.state_dict())
    with pytest.raises(BadInputError, match="its pictures are others, or in another order; what was"):
        other.load_state_dict(before.state_dict())
    train, val = split(alike, 0, 2, shown=[f"a{i}.png" for i in range(10)].__getitem__)
    moved = replace(train, indices=[*train.indices[1:], val.indices[0]])
    with pytest.raises(BadInputError, match="its pictures are others"):
        same_data({}, moved, replace(val, indices=[train.indices[0], val.indices[1]])).load_state_dict(
            before.state_dict()
        )


def test_a_checkpoint_that_does_not_know_its_pictures_is_compared_by_its_captions():
    """As they were kept before, when the last samples were held out."""
    samples = PromptSamples(Numbers())
    train, val = split(samples, 0, 2)
    now = same_data({}, train, val)
    old = {key: value for key, value in now.state_dict().items() if key != "pictures"}
    now.load_state_dict(old)
    last = same_data({}, replace(train, indices=range(8)), replace(val, indices=range(8, 10))).state_dict()
    with pytest.raises(BadInputError, match="was begun by a version that held out the last of them"):
        now.load_state_dict({key: last[key] for key in old})


def test_a_checkpoint_that_does_not_know_its_data_is_resumed(tmp_path):
    checkpoints, data = Checkpoints(tmp_path), same_data({}, *split(PromptSamples(Numbers()), 0, 2))
    for name, kept in (("old", {}), ("new", {"data": data})):
        state = TrainingState([], {}, 0.9)
        state.enter(0, ())
        state.save(checkpoints, name, kept)
    now = same_data({}, *split(PromptSamples(Numbers()), 5, 2))
    state.load(checkpoints, tmp_path / "old", [()], {"data": now})
    with pytest.raises(BadInputError, match="data of this run changed"):
        state.load(checkpoints, tmp_path / "new", [()], {"data": now})
