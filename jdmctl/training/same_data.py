"""Whether a resumed run still sees the samples that it began with."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jdmctl.errors import BadInputError
from jdmctl.training.batches import Samples
from jdmctl.training.samples import Part

_NUM_CAPTIONS = 128  # of those trained on, and of those held out


@dataclass(frozen=True)
class SameData:
    """What a checkpoint keeps of a run's samples; data that was asked for otherwise on purpose may be other data."""

    asked: Mapping[str, Any]  # what a recipe says of its data; JSON
    nums: Sequence[int]  # of samples to train on, and of those held out
    captions: str  # a digest
    pictures: str  # likewise; older checkpoints do not know them

    def state_dict(self) -> dict[str, Any]:
        known = {"nums": list(self.nums), "captions": self.captions, "pictures": self.pictures}
        return {"asked": dict(self.asked), **known}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Raises BadInputError for a state of other samples, where the recipe asked for the same."""
        now = self.state_dict()
        if state["asked"] != now["asked"] or all(value == now[key] for key, value in state.items()):
            return
        (train, val), (now_train, now_val) = state["nums"], self.nums
        change = f"it had {train} samples to train on and {val} held out, and has {now_train} and {now_val}"
        if (train, val) == (now_train, now_val):
            what = "captions" if state["captions"] != self.captions else "pictures"
            change = f"its {what} are others, or in another order"
            if "pictures" not in state:
                change += "; or they are the same, and it was begun by a version that held out the last of them"
        raise BadInputError(
            f"the data of this run changed since its last checkpoint: {change}; what was held out would be trained on",
            hint="put the data back as it was, or begin a new run with another --output",
        )


def same_data(asked: Mapping[str, Any], train: Samples, val: Samples) -> SameData:
    """The state of samples as they are now: captions of evenly spread ones, and which pictures all of them are."""
    texts = [[part.text(index) for index in _spread(len(part))] for part in (train, val)]
    digest = hashlib.sha256(json.dumps(texts).encode()).hexdigest()
    return SameData(asked, (len(train), len(val)), digest, _pictures((train, val)))


def _pictures(parts: Sequence[Samples]) -> str:
    """A digest of the pictures that each part is of; of the embedded world, whose splits are its own, of none."""
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, Part):
            for index in part.indices:
                digest.update(f"{part.pictures[index]!a}\n".encode())
        digest.update(b"\n")
    return digest.hexdigest()


def _spread(size: int) -> list[int]:
    num = min(size, _NUM_CAPTIONS)
    return [size * number // num for number in range(num)]
