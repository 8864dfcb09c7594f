"""What a control is, and how one is found by its name.

Another package adds a control by an entry point in the group `jdmctl.controls` that names a class.
"""

from __future__ import annotations

import difflib
import inspect
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, Any, Literal, Protocol, Self

from jdmctl.controls import CONTROLS
from jdmctl.errors import JdmError

if TYPE_CHECKING:  # listing names must not load torch
    from torch import Tensor

GROUP = "jdmctl.controls"


class Control(Protocol):
    """Something that a picture can be asked to obey: h(image) = condition.

    `gradient` says what the energy differentiates: the condition's own arithmetic ("exact"), a
    smooth stand-in for it ("surrogate"), or the network that makes the condition ("network").
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
    return sorted(_entry_points())


def load_control(name: str, **options: Any) -> Control:
    """The control of that name, made with its own options.

    Raises:
        JdmError: no control has that name, it cannot be imported, or it does not take the options.
    """
    points = _entry_points()
    if name not in points:
        raise JdmError(f"no control is named '{name}'", hint=_suggestion(name, sorted(points)))
    control_class = _load(points[name])
    _check_options(name, control_class, options)
    return control_class(**options)


def describe_controls() -> list[dict[str, str]]:
    """One row per control: name, gradient, headline, from (the package) and description."""
    return [_describe(name, point) for name, point in sorted(_entry_points().items())]


def _entry_points() -> dict[str, EntryPoint]:
    installed = {point.name: point for point in entry_points(group=GROUP)}
    return installed | {name: EntryPoint(name, path, GROUP) for name, path in CONTROLS.items()}


def _load(point: EntryPoint) -> Any:
    try:
        return point.load()
    except (ImportError, AttributeError) as problem:
        raise JdmError(
            f"the control '{point.name}' cannot be imported from {point.value}: {problem}",
            hint=f"reinstall {_package(point)}, or tell its authors",
        ) from problem


def _describe(name: str, point: EntryPoint) -> dict[str, str]:
    row = {"name": name, "gradient": "", "headline": "", "from": _package(point)}
    try:
        control = _load(point)
    except JdmError as problem:
        return row | {"description": str(problem)}
    return row | {
        "gradient": control.gradient,
        "headline": control.headline,
        "description": control.description,
    }


def _package(point: EntryPoint) -> str:
    return point.dist.name if point.dist else point.value.partition(".")[0]


def _check_options(name: str, control_class: Any, options: dict[str, Any]) -> None:
    known = inspect.signature(control_class).parameters
    for option in options:
        if option not in known:
            raise JdmError(
                f"the control '{name}' has no option '{option}'",
                hint=_suggestion(option, list(known)) if known else "it takes no options",
            )
    required = [key for key, value in known.items() if value.default is value.empty]
    missing = [option for option in required if option not in options]
    if missing:
        raise JdmError(
            f"the control '{name}' needs the option{'s' * (len(missing) > 1)} {', '.join(missing)}",
            hint=f"give options: {{{missing[0]}: ...}} beside the control's name in the recipe",
        )


def _suggestion(word: str, known: list[str]) -> str:
    close = difflib.get_close_matches(word, known, n=1)
    return f"did you mean '{close[0]}'?" if close else f"there are {', '.join(known)}"
