"""Which pictures a method is scored on: a split of the world in use, or folders of the user's."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePath

import torch
from torch import Tensor

from jdmctl.comparison.scenes import Judge, Scenes
from jdmctl.controls.base import Control
from jdmctl.data.folders import files_below
from jdmctl.data.formats import is_known, open_rows
from jdmctl.data.options import ReadOptions
from jdmctl.data.pictures import SUFFIXES, size_of
from jdmctl.data.rows import ListedRows, Rows
from jdmctl.data.rows import Pictures as RowPictures
from jdmctl.errors import BadInputError
from jdmctl.evaluation.extractors import FeatureJudge, load_features
from jdmctl.evaluation.results import setup
from jdmctl.sampling import read_record
from jdmctl.tinyworld.judge import Judge as WorldJudge
from jdmctl.tinyworld.source import Pictures
from jdmctl.tinyworld.world import cache_folder, samples, world_folder, world_name

_FEWEST = 8


@dataclass(frozen=True)
class HeldOut:
    """Captioned pictures to make conditions from, others as the reference of distances, and a judge."""

    name: str
    pictures: Pictures
    reference: Pictures
    train: Pictures | None  # to look for copies in, where it is known
    judge: Judge
    num: int
    device: str = "cpu"  # of what draws and looks, where a comparison has a choice
    halved: Pictures | None = None  # all of the data, where every other picture of it is the reference
    split: str = ""  # of the world

    @classmethod
    def of_world(cls, split: str, num: int, device: str = "cpu") -> HeldOut:
        """The first `num` pictures of a split of the world in use, with its small judge, which stays on the CPU."""
        judge = WorldJudge.load(world_folder())
        return cls(
            world_name(), samples(split), samples("reference"), samples("train"), judge, num, device, split=split
        )  # fmt: skip

    @classmethod
    def of_folders(
        cls, data: Path, reference: Path | None, features: str, resolution_px: int, num: int, device: str = "cpu"
    ) -> HeldOut:
        """The pictures in `data`, and the reference; without one, every other picture of `data` becomes it.

        Raises:
            BadInputError: there are too few pictures, or no such features.
        """
        pictures = others = captioned(data, resolution_px)
        halved = pictures if reference is None else None
        if reference is None:
            pictures, others = chosen(pictures, slice(0, None, 2)), chosen(pictures, slice(1, None, 2))
        elif reference != data:
            others = captioned(reference, resolution_px)
        if min(num, len(pictures), len(others)) < _FEWEST:
            raise BadInputError(
                f"{len(pictures)} pictures to draw after and {len(others)} to compare with are too few for a distance",
                hint=f"give {_FEWEST} or more of each: --data FOLDER --reference FOLDER",
            )
        judge = FeatureJudge(load_features(features, device))
        return cls(data.resolve().name, pictures, others, None, judge, num, device, halved)

    def scenes(self, controls: Mapping[str, Control]) -> Scenes:
        made = Scenes.make(
            self.name, self.pictures, self.num, dict(controls), self.judge, self.reference, self.train, self.device
        )  # fmt: skip
        return replace(made, split=self.split)

    def described_by(self, drawn: Pictures) -> HeldOut:
        """As many of the pictures as of those drawn, some again if they are fewer, with the captions of those drawn: to
        compare a set with a set. Raises BadInputError if those are too few."""
        if len(drawn) < _FEWEST:
            raise BadInputError(f"{len(drawn)} pictures are too few for a distance", hint=f"give {_FEWEST} or more")
        which = torch.arange(len(drawn)) % len(self.pictures)
        return replace(self, pictures=replace(chosen(self.pictures, which), captions=drawn.captions))


@dataclass(frozen=True)
class Asked:
    """What the user wants methods to be scored on; opened once the resolution is known."""

    data: Path | None = None  # None: the world in use
    reference: Path | None = None
    features: str = ""
    split: str = "test"
    num: int = 500
    device: str = "cpu"  # as `find_device` gives it

    @property
    def name(self) -> str:
        """What rows call the pictures."""
        return self.data.resolve().name if self.data else world_name()

    @property
    def number(self) -> int | None:
        """Of pictures that are scored; None where they are the user's, and nobody has counted them yet."""
        return None if self.data else min(self.num, len(samples(self.split)))

    @property
    def setup(self) -> str:
        """As far as it is known now: how that of rows ends."""
        return setup("", torch.device(self.device).type, "" if self.data else self.split)

    def open(self, resolution_px: int) -> HeldOut:
        if self.data is None:
            return HeldOut.of_world(self.split, self.num, self.device)
        return HeldOut.of_folders(
            self.data, self.reference, self.features, resolution_px, self.num, self.device
        )  # fmt: skip


def captioned(place: Path, resolution_px: int = 0) -> Pictures:
    """All pictures of a data set in any layout, or of a folder without captions; by default as large as the first.

    Of a folder that `jdmctl sample` filled, what was drawn: neither the conditions nor the grid of all.

    Raises:
        BadInputError: there are none, or one cannot be read.
    """
    rows = _rows(place)
    source = RowPictures(rows, resolution_px or min(size_of(rows.picture(0))))
    pixels = torch.stack([(source.image(i) * 255).round().to(torch.uint8) for i in range(len(source))])
    nothing = torch.zeros(len(source), 0, dtype=torch.bool)
    texts = tuple((source.text(i),) for i in range(len(source)))
    return Pictures(pixels, texts, nothing, nothing[:, None], ())


def names(place: Path) -> list[str]:
    """Of the pictures of `captioned`, in its order."""
    rows = _rows(place)
    return [PurePath(str(rows.picture(i))).name for i in range(len(rows))]


def partners(those: Sequence[str], others: Sequence[str]) -> list[int]:
    """Where in `those`, names of files, the one is that belongs to each of the `others`, as many.

    By their names, or by these without suffix, if they match one to one; else as they stand.
    """
    for part in (str, lambda name: PurePath(name).stem):
        places = {part(name): i for i, name in enumerate(those)}
        wanted = [part(name) for name in others]
        if len(places) == len(those) and places.keys() == set(wanted):
            return [places[name] for name in wanted]
    return list(range(len(those)))


def _rows(place: Path) -> Rows:
    files = sorted((file for file in files_below(place) if file.suffix.lower() in SUFFIXES), key=_by_numbers)
    if files and not is_known(str(place)):
        drawn = [file for file in files if not _tells_of_drawn(file)]
        return ListedRows(place, drawn, [""] * len(drawn))
    return open_rows(str(place), ReadOptions(cache_folder()))


def _by_numbers(file: Path) -> list[tuple[int, str]]:
    """2.png before 10.png."""
    words = re.split(r"(\d+)", str(file))  # in turns: text, digits, text ...
    return [(int(word) if i % 2 else 0, word) for i, word in enumerate(words)]


def _tells_of_drawn(file: Path) -> bool:
    """Whether it is a condition or a grid that `jdmctl sample` put beside its pictures, by what is written in it."""
    if file.name != "grid.png" and file.parent.name != "conditions":
        return False
    try:
        return not {"control", "pictures"}.isdisjoint(read_record(file))
    except (BadInputError, OSError, ValueError):
        return False


def chosen(pictures: Pictures, which: slice | Tensor) -> Pictures:
    """Those at some places."""
    places = torch.arange(len(pictures))[which]
    return replace(
        pictures,
        images=pictures.images[which],
        captions=tuple(pictures.captions[i] for i in places.tolist()),
        truth=pictures.truth[which],
        stated=pictures.stated[which],
    )
