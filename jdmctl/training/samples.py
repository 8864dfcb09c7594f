"""Samples from the kinds of data there are: pictures, condition maps, or prompts alone."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from jdmctl import __version__
from jdmctl.controls.base import Control
from jdmctl.data.cache import ConditionCache
from jdmctl.training.draws import SampleDraws, order
from jdmctl.types import Codec, Prompt, Student

_KEPT_BYTES = 2**30  # of conditions and pictures in memory; beyond that they are made or read again


class Pictures(Protocol):
    def __len__(self) -> int: ...

    def text(self, index: int) -> str: ...

    def image(self, index: int) -> Tensor: ...  # [3, H, W] in [0, 1]


class Prompts(Protocol):
    def __len__(self) -> int: ...

    def text(self, index: int) -> str: ...


class Pairs(Pictures, Protocol):
    def conditions(self, index: int) -> Mapping[str, Tensor]: ...  # [3, H, W] in [0, 1]


class ConditionMaps(Protocol):
    def __len__(self) -> int: ...

    def text(self, index: int) -> str: ...

    def conditions(self, index: int) -> Mapping[str, Tensor]: ...  # [3, H, W] in [0, 1]


@dataclass(frozen=True)
class StudentPictures:
    """Prompts, each with the picture that the frozen student draws for it: no data set is needed.

    Conditions of such pictures are what the student can draw, so requests match what it knows.
    """

    texts: Sequence[str]
    student: Student
    codec: Codec
    encode_prompt: Callable[[Sequence[str]], Prompt]
    latent_shape: tuple[int, int, int]
    seed: int
    device: torch.device | str = "cpu"

    def __len__(self) -> int:
        return len(self.texts)

    def text(self, index: int) -> str:
        return self.texts[index]

    @torch.no_grad()
    def image(self, index: int) -> Tensor:
        draws = SampleDraws(self.seed, "student pictures", [index], self.device)
        noise = draws.normal("noise", self.latent_shape)
        x0 = self.student.generate(noise, self.encode_prompt([self.texts[index]]), None)
        return self.codec.decode(x0)[0].clamp(0, 1).cpu()


@dataclass(frozen=True)
class PictureSamples:
    """Pictures with the conditions that are extracted from them when they are first asked for.

    One picture at a time: what a network makes of a picture can differ in the last bit with the
    rest of its batch, and a resumed run must see what it would have seen.
    """

    pictures: Pictures
    extractors: Mapping[str, Callable[[Tensor], Tensor]]  # control -> ([B,3,H,W] -> [B,3,H,W])
    _kept: dict[int, tuple[Tensor, dict[str, Tensor]]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.pictures)

    def text(self, index: int) -> str:
        return self.pictures.text(index)

    def take(self, indices: Sequence[int]) -> tuple[Tensor, dict[str, Tensor]]:
        rows = [self._row(index) for index in indices]
        conditions = {name: torch.stack([row[name] for _, row in rows]) for name in self.extractors}
        return torch.stack([image for image, _ in rows]), conditions

    def _row(self, index: int) -> tuple[Tensor, dict[str, Tensor]]:
        if index in self._kept:
            return self._kept[index]
        image = self.pictures.image(index)
        row = (image, {name: make(image[None])[0] for name, make in self.extractors.items()})
        if len(self._kept) < _KEPT_BYTES // (image.nbytes * (1 + len(self.extractors))):
            self._kept[index] = row
        return row


@dataclass(frozen=True)
class MapSamples:
    """Ready-made condition maps with prompts; their pictures are not known."""

    maps: ConditionMaps

    def __len__(self) -> int:
        return len(self.maps)

    def text(self, index: int) -> str:
        return self.maps.text(index)

    def take(self, indices: Sequence[int]) -> tuple[None, dict[str, Tensor]]:
        rows = [self.maps.conditions(index) for index in indices]
        return None, {name: torch.stack([row[name] for row in rows]) for name in rows[0]}


@dataclass(frozen=True)
class PairSamples:
    """Pictures with the condition maps that came with them."""

    pairs: Pairs

    def __len__(self) -> int:
        return len(self.pairs)

    def text(self, index: int) -> str:
        return self.pairs.text(index)

    def take(self, indices: Sequence[int]) -> tuple[Tensor, dict[str, Tensor]]:
        rows = [self.pairs.conditions(index) for index in indices]
        images = torch.stack([self.pairs.image(index) for index in indices])
        return images, {name: torch.stack([row[name] for row in rows]) for name in rows[0]}


@dataclass(frozen=True)
class PromptSamples:
    """Prompts with nothing beside them."""

    prompts: Prompts

    def __len__(self) -> int:
        return len(self.prompts)

    def text(self, index: int) -> str:
        return self.prompts.text(index)

    def take(self, indices: Sequence[int]) -> tuple[None, dict[str, Tensor]]:
        return None, {}


Whole = PictureSamples | MapSamples | PairSamples | PromptSamples


@dataclass(frozen=True)
class Part:
    """Some of the samples, some of them perhaps more than once: a split."""

    whole: Whole
    indices: Sequence[int]
    pictures: Sequence[Hashable]  # which each of the whole is of

    def __len__(self) -> int:
        return len(self.indices)

    def text(self, index: int) -> str:
        return self.whole.text(self.indices[index])

    def take(self, indices: Sequence[int]) -> tuple[Tensor | None, dict[str, Tensor]]:
        return self.whole.take([self.indices[index] for index in indices])


def _once(index: int) -> int:
    return 1


def split(
    whole: Whole,
    num_samples: int,
    num_validation: int,
    repeats: Callable[[int], int] = _once,
    shown: Callable[[int], Hashable] | None = None,
) -> tuple[Part, Part]:
    """Samples to train on, and others held out, which are spread over all: data often lies sorted by what it shows.

    Of the whole the first `num_samples`; 0 takes all. `shown` says which picture a sample is of; without it each is of
    its own, told by its text. Pictures are held out with all their samples, in a shuffled order that is the same each
    time, until these are as many as asked. At most a quarter of the pictures is held out; from fewer than four nothing
    can be, and training samples serve twice. `repeats` says how often an epoch of training shows a sample.
    """
    shown = shown or (lambda index: (index, whole.text(index)))
    pictures = [shown(index) for index in range(min(num_samples or len(whole), len(whole)))]
    times = Counter(pictures)
    held_out: set[Hashable] = set()
    num_held_out = 0
    for picture in (pictures[index] for index in order(0, "held out", 0, len(pictures))):
        if len(held_out) == len(times) // 4 or num_held_out >= num_validation:
            break
        num_held_out += 0 if picture in held_out else times[picture]
        held_out.add(picture)
    kept = [index for index, picture in enumerate(pictures) if picture not in held_out]
    train = Part(whole, [index for index in kept for _ in range(repeats(index))], pictures)
    val = [index for index, picture in enumerate(pictures) if picture in held_out]
    return train, Part(whole, val, pictures) if val else train


def extractor(
    control: Control, options: Mapping[str, Any], cache: Path, device: torch.device | str, resolution_px: int
) -> Callable[[Tensor], Tensor]:
    """Exact conditions of pictures on the CPU, [B, 3, H, W] both.

    What a network extracts is kept on disk by the picture's content; the others cost less to make
    again than to read. What it makes of a test chart stands for its code in the key.
    """

    def extract(images: Tensor) -> Tensor:
        return control.condition(images.to(device)).float().cpu()

    if control.gradient != "network":
        return extract
    named = {**options, "of the test chart": _of_the_test_chart(extract, resolution_px)}
    return ConditionCache(cache, extract, control.name, named, __version__)


def _of_the_test_chart(extract: Callable[[Tensor], Tensor], resolution_px: int) -> str:
    """Means over 8 x 8 fields in steps of 1/256, so that the last bits of another run or device do not count."""
    x, y = torch.meshgrid(*[torch.linspace(0, 1, resolution_px)] * 2, indexing="xy")
    checks = ((8 * x).floor() + (8 * y).floor()) % 2
    means = F.adaptive_avg_pool2d(extract(torch.stack([x, y, checks])[None]), 8)
    return hashlib.sha256((256 * means).round().to(torch.int16).numpy().tobytes()).hexdigest()
