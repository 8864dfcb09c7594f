"""Whether a resumed run still sees the samples that it began with."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jdmctl.errors import BadInputError
from jdmctl.training.batches import Samples

_NUM_CAPTIONS = 128  # of those trained on, and of those held out


@dataclass(frozen=True)
class SameData:
    """What a checkpoint keeps of a run's samples; data that was asked for otherwise on purpose may be other data."""

    asked: Mapping[str, Any]  # what a recipe says of its data; JSON
    nums: Sequence[int]  # of samples to train on, and of those held out
    captions: str  # a digest

    def state_dict(self) -> dict[str, Any]:
        return {"asked": dict(self.asked), "nums": list(self.nums), "captions": self.captions}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Raises BadInputError for a state of other samples, where the recipe asked for the same."""
        if state == self.state_dict() or state["asked"] != self.asked:
            return
        (train, val), (now_train, now_val) = state["nums"], self.nums
        change = f"it had {train} samples to train on and {val} held out, and has {now_train} and {now_val}"
        if (train, val) == (now_train, now_val):
            change = "its captions are others, or in another order"
        raise BadInputError(
            f"the data of this run changed since its last checkpoint: {change}; what was held out would be trained on",
            hint="put the data back as it was, or begin a new run with another --output",
        )


def same_data(asked: Mapping[str, Any], train: Samples, val: Samples) -> SameData:
    """The state of samples as they are now; captions are those of evenly spread samples."""
    texts = [[part.text(index) for index in _spread(len(part))] for part in (train, val)]
    digest = hashlib.sha256(json.dumps(texts).encode()).hexdigest()
    return SameData(asked, (len(train), len(val)), digest)


def _spread(size: int) -> list[int]:
    num = min(size, _NUM_CAPTIONS)
    return [size * number // num for number in range(num)]
