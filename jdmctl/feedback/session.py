"""Which pair comes next, and what becomes of a choice; the page in front of it is feedback/page.py."""

from __future__ import annotations

import hashlib
import json
import os
import random
import threading
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from PIL import Image

from jdmctl.data.imagefolder import find_metadata
from jdmctl.data.metadata import first_problem, problem_of_file, problem_of_text, read_rows
from jdmctl.errors import BadInputError
from jdmctl.feedback.journal import Journal
from jdmctl.training.atomic import whole_file

Choice = Literal["a", "b", "tie"]


@dataclass(frozen=True)
class Shown:
    """Two pictures for a prompt: a on the left, b on the right."""

    prompt: str
    image_a: Path
    image_b: Path
    about: tuple[tuple[str, Any], ...] = ()  # what else to write down, such as seeds


def pairs_of_folder(folder: Path, number: int, seed: int) -> list[Shown]:
    """Pictures of an imagefolder that share their text, paired at random, each in one pair at most.

    Raises:
        BadInputError: the folder or its metadata.jsonl cannot be used, or no text has two pictures.
    """
    rows = read_rows(
        find_metadata(folder),
        lambda row: first_problem((problem_of_file(row, "file_name", folder), problem_of_text(row))),
    )
    by_text: dict[str, dict[Path, None]] = defaultdict(dict)
    for row in rows:
        by_text[row["text"]][folder / row["file_name"]] = None  # once, however often it is listed
    shuffle = random.Random(seed)
    pairs = []
    for text, listed in by_text.items():
        images = list(listed)
        shuffle.shuffle(images)
        pairs += [Shown(text, *couple) for couple in zip(images[::2], images[1::2], strict=False)]
    if not pairs:
        raise BadInputError(
            f"no two pictures of {folder} have the same text", hint="give several pictures of each text"
        )
    shuffle.shuffle(pairs)
    return pairs[:number]


def pairs_of_student(prompts: Sequence[str], number: int, seed: int, pictures: Path, student: str = "") -> list[Shown]:
    """Pairs to be drawn: prompts in turn, each pair with two seeds of its own, sides shuffled.

    A picture's name tells prompt and `student`, whatever that is known by: of another one nothing is taken up.
    """
    shuffle = random.Random(seed)
    pairs = []
    for index in range(number):
        seeds = [seed + 2 * index, seed + 2 * index + 1]
        shuffle.shuffle(seeds)
        prompt = prompts[index % len(prompts)]
        drawn_from = hashlib.sha256(json.dumps([student, prompt]).encode()).hexdigest()[:12]
        left, right = (pictures / f"{index:05d}-{drawn_from}-seed{one}.png" for one in seeds)
        about = (("seed_a", seeds[0]), ("seed_b", seeds[1]))
        pairs.append(Shown(prompt, left, right, about))
    return pairs


def drawn(pair: Shown, draw: Callable[[str, int], Image.Image]) -> None:
    """Draw the pictures of a pair of `pairs_of_student` that are not there yet.

    Raises JdmError if one cannot be saved.
    """
    about = dict(pair.about)
    for file, seed in ((pair.image_a, about["seed_a"]), (pair.image_b, about["seed_b"])):
        if not file.exists():
            picture = draw(pair.prompt, seed)
            with whole_file(file) as partial:
                picture.save(partial, format="PNG")


class Session:
    """Goes through the pairs that the journal does not hold yet."""

    def __init__(
        self, pairs: Sequence[Shown], journal: Journal, prepare: Callable[[Shown], None] = lambda pair: None
    ) -> None:
        self._journal, self._prepare = journal, prepare
        judged = {_key(record["prompt"], record["image_a"], record["image_b"]) for record in journal.records}
        self._pairs = [pair for pair in pairs if self._key(pair) not in judged]
        self.num_before = len(pairs) - len(self._pairs)
        self.total = len(pairs)
        self._position = 0
        self._lock = threading.Lock()

    def current(self) -> tuple[int, Shown | None]:
        """The pair to show, None at the end, and its number: what a choice must name."""
        with self._lock:
            if self._position >= len(self._pairs):
                return self._position, None
            pair = self._pairs[self._position]
            self._prepare(pair)
            return self._position, pair

    def choose(self, position: int, choice: Choice | None) -> None:
        """Write down a choice, None to leave the pair for another day.

        A second click on a pair that is already judged does nothing: it was meant for that one.

        Raises:
            JdmError: it could not be written; the same pair is then still shown.
        """
        with self._lock:
            if position != self._position or position >= len(self._pairs):
                return
            pair = self._pairs[position]
            if choice is not None:
                self._journal.add(
                    {
                        "prompt": pair.prompt,
                        "image_a": self._relative(pair.image_a),
                        "image_b": self._relative(pair.image_b),
                        "preferred": choice,
                        **dict(pair.about),
                    }
                )
            self._position += 1

    def _key(self, pair: Shown) -> Any:
        return _key(pair.prompt, self._relative(pair.image_a), self._relative(pair.image_b))

    def _relative(self, image: Path) -> str:
        return os.path.relpath(image, self._journal.path.parent)


def _key(prompt: str, image_a: str, image_b: str) -> Any:
    return prompt, frozenset((image_a, image_b))
