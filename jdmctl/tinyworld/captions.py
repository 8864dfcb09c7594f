"""Captions of tiny-world scenes: plain sentences, each with the list of classes it states."""

from dataclasses import dataclass

import numpy as np

from jdmctl.tinyworld.scenes import COLORS, FLOORS, SHAPES, Scenes

_RELATIONS = ("in front of", "behind", "to the left of", "to the right of")
_COLOR_NAMES, _FLOOR_NAMES = tuple(COLORS), tuple(FLOORS)
VOCABULARY = tuple(
    dict.fromkeys(
        ["a", "an", "and", "on", "object", "striped", "checkered", "floor"]
        + " ".join(_RELATIONS).split()
        + [*SHAPES, *_COLOR_NAMES, *_FLOOR_NAMES]
    )
)


@dataclass(frozen=True)
class Caption:
    """A sentence, and what it says about the main object and the floor.

    `stated` maps those of shape, color, striped, floor and checkered that the text says to their
    class index.  What the text leaves out is unknown, not absent.
    """

    text: str
    stated: dict[str, int]


def caption(scenes: Scenes, index: int, rng: np.random.Generator, drop: float = 0.2) -> Caption:
    """Describe a scene, leaving out attributes and other objects with probability `drop`."""
    main, stated = _object_phrase(scenes, index, 0, rng, drop)
    others = [
        f"{relation(scenes, index, other)} {_object_phrase(scenes, index, other, rng, drop)[0]}"
        for other in range(1, int(scenes.num_objects[index]))
        if rng.random() >= drop
    ]
    floor, stated_floor = _floor_phrase(scenes, index, rng, drop)
    text = " ".join(part for part in (main, " and ".join(others), floor) if part)
    return Caption(text, stated | stated_floor)


def relation(scenes: Scenes, index: int, other: int) -> str:
    """Where the main object is, seen from another, along the axis on which they differ most."""
    right, _, away = scenes.position[index, 0] - scenes.position[index, other]
    if abs(away) > abs(right):
        return "in front of" if away < 0 else "behind"
    return "to the left of" if right < 0 else "to the right of"


def _object_phrase(scenes, index, slot, rng, drop) -> tuple[str, dict[str, int]]:
    says_shape, says_color, says_striped = rng.random(3) >= drop
    if slot == 0 and not (says_shape or says_color):  # "an object" would leave nothing to draw
        says_shape = rng.random() < 0.5
        says_color = not says_shape
    shape, color = int(scenes.shape[index, slot]), int(scenes.color[index, slot])
    words, stated = [], {}
    if says_striped and scenes.striped[index, slot]:
        words.append("striped")
        stated["striped"] = 1
    if says_color:
        words.append(_COLOR_NAMES[color])
        stated["color"] = color
    words.append(SHAPES[shape] if says_shape else "object")
    if says_shape:
        stated["shape"] = shape
    return _with_article(words), stated


def _floor_phrase(scenes, index, rng, drop) -> tuple[str, dict[str, int]]:
    says_floor, says_checkered = rng.random(2) >= drop
    words, stated = [], {}
    if says_checkered and scenes.checkered[index]:
        words.append("checkered")
        stated["checkered"] = 1
    if says_floor:
        words.append(_FLOOR_NAMES[int(scenes.floor[index])])
        stated["floor"] = int(scenes.floor[index])
    if not stated and rng.random() < 0.5:
        return "", {}
    return f"on {_with_article([*words, 'floor'])}", stated


def _with_article(words: list[str]) -> str:
    return " ".join(["an" if words[0][0] in "aeiou" else "a", *words])
