"""Where a world's pictures come from: the rendered scenes (default) or any folder of captioned images."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from jdmctl.data.arrays import DAMAGED
from jdmctl.data.imagefolder import ImageFolder, read_imagefolder
from jdmctl.data.rows import Rows
from jdmctl.errors import BadInputError
from jdmctl.evaluation.manifold import NEIGHBOURS
from jdmctl.tinyworld.captions import caption
from jdmctl.tinyworld.scenes import COLORS, FLOORS, SHAPES, Scenes, render
from jdmctl.weights import fingerprint

SPLIT_SEEDS = {"train": 1, "reference": 2, "val": 3, "test": 4}
FEWEST = NEIGHBOURS + 1  # pictures of a split, for precision and recall; all else is content with 2
SCENE_LABELS = tuple(
    f"{attribute}: {value}"
    for attribute, values in {
        "shape": SHAPES,
        "color": COLORS,
        "striped": ("no", "yes"),
        "floor": FLOORS,
        "checkered": ("no", "yes"),
    }.items()
    for value in values
)


@dataclass(frozen=True)
class Pictures:
    """N captioned pictures of one split.

    `labels` name what a classifier is to see, as `attribute: value`; of each attribute's values one is true. `truth`
    and `stated` are multi-hot over them: what a picture shows, and what a caption says of it.
    """

    images: Tensor  # uint8 [N, 3, H, W]
    captions: tuple[tuple[str, ...], ...]  # several wordings a picture
    truth: Tensor  # bool [N, L]
    stated: Tensor  # bool [N, wordings, L]
    labels: tuple[str, ...]  # L
    inverse_depth: Tensor | None = None  # float16 [N, H, W] in [0, 1]

    def __len__(self) -> int:
        return len(self.images)

    def image(self, index: int | slice | Tensor) -> Tensor:
        """[3, H, W] (or [B, 3, H, W]) in [0, 1]."""
        return self.images[index].float() / 255

    def text(self, index: int) -> str:
        return self.captions[index][0]

    def first(self, num: int) -> Pictures:
        depth = None if self.inverse_depth is None else self.inverse_depth[:num]
        return replace(
            self,
            images=self.images[:num],
            captions=self.captions[:num],
            truth=self.truth[:num],
            stated=self.stated[:num],
            inverse_depth=depth,
        )


def scenes(split: str, num: int, folder: Path, wordings: int = 4) -> Pictures:
    """`num` rendered scenes of a split, rendered once and kept in `folder`. Splits differ by seed.

    Raises BadInputError where they cannot be kept.
    """
    file = folder / f"scenes-{split}-{num}.npz"
    try:
        drawn = Scenes.load(file)
    except (*DAMAGED, KeyError):  # absent or damaged
        with _keeping(folder):
            folder.mkdir(parents=True, exist_ok=True)
        drawn = render(num, SPLIT_SEEDS[split], processes=os.cpu_count() or 1)
        partial = file.with_suffix(f".{os.getpid()}.npz")  # another process may be drawing the same
        with _keeping(folder):
            drawn.save(partial)
            partial.replace(file)
    rng = np.random.default_rng(SPLIT_SEEDS[split])
    words = [[caption(drawn, i, rng) for _ in range(wordings)] for i in range(len(drawn))]
    return Pictures(
        images=torch.from_numpy(drawn.image).permute(0, 3, 1, 2).contiguous(),
        captions=tuple(tuple(c.text for c in row) for row in words),
        truth=_multi_hot([_attributes(drawn, i) for i in range(len(drawn))]),
        stated=torch.stack([_multi_hot([c.stated for c in row]) for row in words]),
        labels=SCENE_LABELS,
        inverse_depth=torch.from_numpy(drawn.inverse_depth),
    )


@contextlib.contextmanager
def _keeping(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as problem:
        raise BadInputError(
            f"cannot keep the scenes in {folder}: {problem.strerror or problem}",
            hint="make room on the disk, or name another folder: JDMCTL_CACHE=FOLDER",
        ) from problem


def _attributes(drawn: Scenes, i: int) -> dict[str, int]:
    main = {name: int(getattr(drawn, name)[i, 0]) for name in ("shape", "color", "striped")}
    return main | {name: int(getattr(drawn, name)[i]) for name in ("floor", "checkered")}


def _multi_hot(rows: list[dict[str, int]]) -> Tensor:
    """[{attribute: class}] to bool [len(rows), L]."""
    attributes = [label.split(": ")[0] for label in SCENE_LABELS]
    hot = torch.zeros(len(rows), len(SCENE_LABELS), dtype=torch.bool)
    for row, classes in zip(hot, rows, strict=True):
        for attribute, value in classes.items():
            row[attributes.index(attribute) + value] = True
    return hot


def captioned_folder(
    folder: Path, split: str, resolution_px: int = 64, vocabulary: Sequence[str] | None = None
) -> Pictures:
    """A split of any folder of captioned images (imagefolder with metadata.jsonl).

    Pictures of equal caption stay in one split, so that held-out captions are held-out pictures; a picture in several
    rows goes where its first caption does. The labels are the words of `vocabulary`, each yes or no; by default the
    commonest of all captions, which are others once the folder is.
    """
    everything = ImageFolder(folder, resolution_px)
    texts = [everything.text(i) for i in range(len(everything))]
    vocabulary = vocabulary or _commonest(texts)
    chosen = [i for i, name in enumerate(_splits(everything.rows)) if name == split]
    if not chosen:
        raise BadInputError(
            f"{folder} has {len(texts)} pictures, none of which fell to the split {split}",
            hint="give a few hundred pictures or more",
        )
    says = torch.tensor([[word in _words(texts[i]) for word in vocabulary] for i in chosen])
    return Pictures(
        images=torch.stack([(everything.image(i) * 255).round().to(torch.uint8) for i in chosen]),
        captions=tuple((texts[i],) for i in chosen),
        truth=torch.stack([~says, says], -1).flatten(1),
        stated=torch.stack([torch.zeros_like(says), says], -1).flatten(1)[:, None],
        labels=tuple(f"{word}: {answer}" for word in vocabulary for answer in ("no", "yes")),
    )


def require_enough(folder: Path) -> None:
    """Raises BadInputError unless a world can be built of a folder's pictures, and measured on each split."""
    rows = read_imagefolder(folder)
    counts = Counter(_splits(rows))
    if min(counts[split] for split in SPLIT_SEEDS) < FEWEST:
        found = ", ".join(f"{split} {counts[split]}" for split in SPLIT_SEEDS)
        raise BadInputError(
            f"{folder} has too few pictures, or too few different captions, for a world: of {len(rows)} captioned "
            f"pictures there are {found}, and each split needs {FEWEST}",
            hint="give a few hundred pictures or more, of as many captions: those of equal caption stay in one split",
        )
    if not _commonest(rows.texts):
        raise BadInputError(
            f"no caption in {folder} has a word to judge pictures by", hint='write what they show: "text": "a red cube"'
        )


def digest_of(folder: Path) -> str:
    """A digest of what a folder's pictures and captions are, wherever they lie and whenever they were written."""
    rows = read_imagefolder(folder)
    try:
        content = [(fingerprint(file), text) for file, text in zip(rows.files, rows.texts, strict=True)]
    except OSError as problem:
        raise BadInputError(
            f"{problem.filename} cannot be read: {problem.strerror}", hint="check its permissions"
        ) from problem
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def _commonest(texts: Sequence[str], num_words: int = 40) -> list[str]:
    """Words by the number of texts that have them; of equally common ones the first met is first."""
    counts = Counter(word for text in texts for word in dict.fromkeys(_words(text)))
    return [word for word, _ in counts.most_common(num_words)]


def _words(text: str) -> list[str]:
    """Of any script; what stands between them, as an apostrophe or underscore, is no part of a word."""
    return re.findall(r"[^\W_]+", text.lower())


def _splits(rows: Rows) -> list[str]:
    """The split of each row."""
    first: dict[Hashable, str] = {}  # picture -> its first caption
    return [_split_of(first.setdefault(rows.shown(i), rows.text(i))) for i in range(len(rows))]


def _split_of(text: str) -> str:
    """80 % train, 8 % reference, 5 % val, 7 % test, by a hash of the caption."""
    share = int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") / 2**32
    return "train" if share < 0.8 else "reference" if share < 0.88 else "val" if share < 0.93 else "test"
