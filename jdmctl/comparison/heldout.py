"""Which pictures a method is scored on: a split of the world in use, or folders of the user's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from PIL import Image

from jdmctl.comparison.scenes import Judge, Scenes
from jdmctl.controls.base import Control
from jdmctl.data.imagefolder import ImageFolder
from jdmctl.data.pictures import read_image
from jdmctl.errors import BadInputError
from jdmctl.evaluation.extractors import FeatureJudge, load_features
from jdmctl.tinyworld.judge import Judge as WorldJudge
from jdmctl.tinyworld.source import Pictures
from jdmctl.tinyworld.world import samples, world_folder, world_name

_FEWEST = 8
_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")


@dataclass(frozen=True)
class HeldOut:
    """Captioned pictures to make conditions from, others as the reference of distances, and a judge."""

    name: str
    pictures: Pictures
    reference: Pictures
    train: Pictures  # to look for copies in
    judge: Judge
    num: int

    @classmethod
    def of_world(cls, split: str, num: int) -> HeldOut:
        """The first `num` pictures of a split of the world in use, with its judge."""
        judge = WorldJudge.load(world_folder())
        return cls(world_name(), samples(split), samples("reference"), samples("train"), judge, num)

    @classmethod
    def of_folders(cls, data: Path, reference: Path | None, features: str, resolution_px: int, num: int) -> HeldOut:
        """The pictures in `data`, and the reference; without one, every other picture of `data` becomes it.

        Raises:
            BadInputError: there are too few pictures, or no such features.
        """
        pictures = others = captioned(data, resolution_px)
        if reference is None:
            pictures, others = _chosen(pictures, slice(0, None, 2)), _chosen(pictures, slice(1, None, 2))
        elif reference != data:
            others = captioned(reference, resolution_px)
        if min(num, len(pictures), len(others)) < _FEWEST:
            raise BadInputError(
                f"{len(pictures)} pictures to draw after and {len(others)} to compare with are too few for a distance",
                hint=f"give {_FEWEST} or more of each: --data FOLDER --reference FOLDER",
            )
        return cls(data.name, pictures, others, others, FeatureJudge(load_features(features)), num)

    def scenes(self, controls: Mapping[str, Control]) -> Scenes:
        return Scenes.make(
            self.name, self.pictures, self.num, dict(controls), self.judge, self.reference, self.train
        )  # fmt: skip

    def described_by(self, drawn: Pictures) -> HeldOut:
        """As many of the pictures as of those drawn, with their captions: to compare a set with a set."""
        n = min(len(drawn), len(self.pictures))
        return replace(self, pictures=replace(_chosen(self.pictures, slice(0, n)), captions=drawn.captions[:n]))


@dataclass(frozen=True)
class Asked:
    """What the user wants methods to be scored on; opened once the resolution is known."""

    data: Path | None = None  # None: the world in use
    reference: Path | None = None
    features: str = ""
    split: str = "test"
    num: int = 500

    def open(self, resolution_px: int) -> HeldOut:
        if self.data is None:
            return HeldOut.of_world(self.split, self.num)
        return HeldOut.of_folders(self.data, self.reference, self.features, resolution_px, self.num)


def captioned(folder: Path, resolution_px: int = 0) -> Pictures:
    """All pictures of a folder, of an imagefolder with their captions; by default at the size of the first.

    Raises:
        BadInputError: there are none, or one cannot be read.
    """
    if (folder / "metadata.jsonl").is_file():
        source = ImageFolder(folder, resolution_px or _size_of(_files(folder)[0]))
        images = [source.image(i) for i in range(len(source))]
        texts = [source.text(i) for i in range(len(source))]
    else:
        files = _files(folder)
        images = [read_image(file, resolution_px or _size_of(files[0])) for file in files]
        texts = [""] * len(files)
    nothing = torch.zeros(len(images), 0, dtype=torch.bool)
    pixels = torch.stack([(image * 255).round().to(torch.uint8) for image in images])
    return Pictures(pixels, tuple((text,) for text in texts), nothing, nothing[:, None], ())


def _files(folder: Path) -> list[Path]:
    files = sorted(file for file in folder.rglob("*") if file.suffix.lower() in _SUFFIXES)
    if not files:
        raise BadInputError(f"{folder} holds no pictures", hint="give a folder with PNG, JPEG or WebP files")
    return files


def _size_of(file: Path) -> int:
    with Image.open(file) as picture:
        return min(picture.size)


def _chosen(pictures: Pictures, which: slice) -> Pictures:
    return replace(
        pictures,
        images=pictures.images[which],
        captions=pictures.captions[which],
        truth=pictures.truth[which],
        stated=pictures.stated[which],
    )
