"""What a control is, and how one is found by its name.

Another package adds a control by an entry point in the group `jdmctl.controls` that names a class.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, Protocol, Self

from jdmctl.controls import CONTROLS
from jdmctl.registry import Registry

if TYPE_CHECKING:  # listing names must not load torch
    from torch import Tensor

_REGISTRY = Registry("control", "jdmctl.controls", CONTROLS)


class Control(Protocol):
    """Something that a picture can be asked to obey: h(image) = condition.

    `gradient` says what the energy differentiates: the condition's own arithmetic ("exact"), a
    smooth stand-in for it ("surrogate"), or the network that makes the condition ("network").

    A `scorer`, if there is one, is the network that scores: rows of results name it by its weights.

    `headline` is one of the keys of `scores`. By its mean over samples a run chooses the weights that it leaves: by the
    logarithm, so that a fraction gained counts the same for each of several controls, or, where the mean is negative
    (a log-likelihood, a correlation), by the mean itself.
    """

    name: str
    gradient: Literal["exact", "surrogate", "network"]
    description: str
    headline: str  # the score that stands for the control
    higher_is_better: bool  # of the headline

    def condition(self, image: Tensor) -> Tensor:
        """The exact condition of an image: both [B, 3, H, W] in [0, 1]; no gradient."""

    def energy(self, image: Tensor, condition: Tensor) -> Tensor:
        """-log p(condition | image) up to scale and constant, [B]; differentiable in the image."""

    def scores(self, image: Tensor, condition: Tensor) -> dict[str, Tensor]:
        """Metric -> [B], by the hard extractor or one that the energy never saw; no gradient."""

    def to(self, device: Any) -> Self:
        """Move what the control holds, if anything."""


def control_names() -> list[str]:
    """The names of all controls, built in and installed; none is imported."""
    return _REGISTRY.names()


def check_control_options(name: str, options: Mapping[str, Any], is_whole: bool = False) -> None:
    """Raises JdmError for options that the control does not take, or, of a whole set, that are missing."""
    _REGISTRY.check(name, options, is_whole)


def load_control(name: str, **options: Any) -> Control:
    """The control of that name, made with its own options.

    Raises:
        JdmError: no control has that name, it cannot be imported, or it does not take the options.
    """
    return _REGISTRY.make(name, options)


def control_defaults(name: str) -> dict[str, Any]:
    """The options that a control of that name has when none are given."""
    return _REGISTRY.defaults(name)


def describe_controls() -> list[dict[str, str]]:
    """One row per control: name, options, gradient, headline, from (the package) and description."""
    return [
        row | {key: getattr(control, key, "") for key in ("gradient", "headline")}
        for row, control in _REGISTRY.described()
    ]
