"""What a reward is, and how one is found by its name.

Another package adds a reward by an entry point in the group `jdmctl.rewards` that names a class.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, Self

from jdmctl.registry import Registry
from jdmctl.rewards import REWARDS

if TYPE_CHECKING:  # listing names must not load torch
    from torch import Tensor

_REGISTRY = Registry("reward", "jdmctl.rewards", REWARDS)


class Reward(Protocol):
    """What people like in a picture, as a number that has a gradient down to the pixels."""

    name: str
    description: str
    reads_text: bool  # whether it says how well a picture fits its caption

    def __call__(self, image: Tensor, texts: Sequence[str]) -> Tensor:
        """Images [B, 3, H, W] in [0, 1] and their B captions -> [B], higher is better.

        What leaves [0, 1] is clamped first: a picture that is saved cannot be brighter than white.
        Without `reads_text` the captions are ignored and may be left out.
        """

    def to(self, device: Any) -> Self:
        """Move what the reward holds, if anything."""


def reward_names() -> list[str]:
    """The names of all rewards, built in and installed; none is imported."""
    return _REGISTRY.names()


def check_reward_options(name: str, options: Mapping[str, Any], is_whole: bool = False, place: str = "") -> None:
    """Raises JdmError for options that the reward does not take, or, of a whole set, that are missing.

    `place` is where a recipe has the reward, for the hint: heldout_rewards.clip.
    """
    _REGISTRY.check(name, options, is_whole, place)


def load_reward(name: str, **options: Any) -> Reward:
    """The reward of that name, made with its own options.

    Raises:
        JdmError: no reward has that name, it cannot be imported, it does not take the options, or its
            files cannot be used.
    """
    return _REGISTRY.make(name, options)


def describe_rewards() -> list[dict[str, str]]:
    """One row per reward: name, options (those that must be given first), from and description."""
    return [row for row, _ in _REGISTRY.described()]
