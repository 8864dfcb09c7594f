"""Things that are found by a short name: built in, or brought by another package's entry points.

Listing names imports none of them.
"""

from __future__ import annotations

import difflib
import inspect
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from inspect import Parameter
from typing import Any

from jdmctl.errors import JdmError

# Of options whose class says plainly what they are: what a user would call it, and the values that will do.
_KINDS: dict[str, tuple[str, tuple[type, ...]]] = {
    "int": ("a whole number", (int,)),
    "float": ("a number", (int, float)),
    "str": ("text", (str, os.PathLike)),
    "bool": ("true or false", (bool,)),
    "None": ("null", (type(None),)),
}


@dataclass(frozen=True)
class Registry:
    """`what` one of them is called, the entry point `group`, and those `built_in` (name -> "module:Class")."""

    what: str
    group: str
    built_in: Mapping[str, str]

    def names(self) -> list[str]:
        """All names, built in and installed."""
        return sorted(self._entry_points())

    def make(self, name: str, options: Mapping[str, Any]) -> Any:
        """An object of the class of that name, made with its own options.

        Raises:
            JdmError: nothing has that name, it cannot be imported, or it does not take the options.
        """
        self.check(name, options)
        try:
            return self._class(name)(**options)
        except (TypeError, ValueError) as problem:
            if not options:
                raise
            given = ", ".join(f"{key}: {value!r}" for key, value in options.items())
            raise JdmError(
                f"the {self.what} '{name}' cannot be made with {given}: {problem}", hint="give another value"
            ) from problem

    def check(self, name: str, options: Mapping[str, Any], is_whole: bool = True, place: str = "") -> None:
        """Whether the class of that name takes these options; nothing is made.

        Without `is_whole` others may still come. `place` is where a recipe has it, for hints: controls.canny. Raises
        JdmError as `make` does, as far as can be told without making.
        """
        known = inspect.signature(self._class(name)).parameters
        self._check_options(name, known, options)
        if is_whole:
            self._require_all(name, known, options, place or f"{self.what}s.{name}")

    def get(self, name: str) -> Any:
        """The class of that name. Raises JdmError if nothing has it, or it cannot be imported."""
        return self._class(name)

    def defaults(self, name: str) -> dict[str, Any]:
        """What the class of that name takes for options that are not given. Raises JdmError as `make` does."""
        known = inspect.signature(self._class(name)).parameters
        return {key: value.default for key, value in known.items() if value.default not in (value.empty, None)}

    def described(self) -> Iterator[tuple[dict[str, str], Any]]:
        """Rows with name, options, from (the package) and description, each with its class, or None if it is broken."""
        for name, points in sorted(self._entry_points().items()):
            row = {"name": name, "options": "", "from": " and ".join(map(_package, points))}
            try:
                found = self._load(points)
            except JdmError as problem:
                yield row | {"description": str(problem)}, None
            else:
                told = getattr(found, "description", "it does not say what it is")
                yield row | {"options": _options(found), "description": told}, found

    def _entry_points(self) -> dict[str, list[EntryPoint]]:
        """Name -> all who bring it, jdmctl first."""
        found = {name: [EntryPoint(name, path, self.group)] for name, path in self.built_in.items()}
        for point in entry_points(group=self.group):
            found.setdefault(point.name, []).append(point)
        return found

    def _class(self, name: str) -> Any:
        points = self._entry_points()
        if name not in points:
            raise JdmError(f"no {self.what} is named '{name}'", hint=_suggestion(name, sorted(points)))
        return self._load(points[name])

    def _load(self, points: Sequence[EntryPoint]) -> Any:
        point, *others = points
        if others:
            packages = list(map(_package, points))
            raise JdmError(
                f"{' and '.join(packages)} each bring a {self.what} named '{point.name}'",
                hint=f"uninstall {packages[-1]}, or ask its authors for another name",
            )
        try:
            return point.load()
        except (ImportError, AttributeError) as problem:
            raise JdmError(
                f"the {self.what} '{point.name}' cannot be imported from {point.value}: {problem}",
                hint=f"reinstall {_package(point)}, or tell its authors",
            ) from problem

    def _check_options(self, name: str, known: Mapping[str, Parameter], options: Mapping[str, Any]) -> None:
        for option, value in options.items():
            if option not in known:
                raise JdmError(
                    f"the {self.what} '{name}' has no option '{option}'",
                    hint=_suggestion(option, list(known)) if known else "it takes no options",
                )
            if wanted := _wanted(known[option], value):
                default = known[option].default
                raise JdmError(
                    f"the option {option} of the {self.what} '{name}' must be {wanted}, got {value!r}",
                    hint=f"give {wanted}" + ("" if default in (Parameter.empty, None) else f", such as {default}"),
                )

    def _require_all(self, name: str, known: Mapping[str, Parameter], options: Mapping[str, Any], place: str) -> None:
        required = [key for key, value in known.items() if value.default is value.empty]
        missing = [option for option in required if option not in options]
        if missing:
            raise JdmError(
                f"the {self.what} '{name}' needs the option{'s' * (len(missing) > 1)} {', '.join(missing)}",
                hint=f"give options: {{{missing[0]}: ...}} beside the {self.what}'s name in the recipe, or "
                f"--set {place}.options.{missing[0]}=...",
            )


def _options(found: Any) -> str:
    """`network, [low=100], [scorer]`: those that may be left out stand in brackets, with what they are then."""
    known = inspect.signature(found).parameters.values() if callable(found) else ()
    return ", ".join(p.name if p.default is p.empty else f"[{_with_default(p)}]" for p in known)


def _with_default(parameter: Parameter) -> str:
    return parameter.name if parameter.default is None else f"{parameter.name}={parameter.default}"


def _wanted(parameter: Parameter, value: Any) -> str:
    """What the parameter takes where the value is none of it; "" if it will do, or nobody can tell."""
    kind = parameter.annotation.__name__ if isinstance(parameter.annotation, type) else str(parameter.annotation)
    kinds = [one.strip() for one in kind.split("|")]
    if any(one not in _KINDS for one in kinds):
        return ""
    if any(isinstance(value, _KINDS[one][1]) and (one == "bool" or not isinstance(value, bool)) for one in kinds):
        return ""
    return " or ".join(_KINDS[one][0] for one in kinds)


def _package(point: EntryPoint) -> str:
    return point.dist.name if point.dist else point.value.partition(".")[0]


def _suggestion(word: str, known: list[str]) -> str:
    close = difflib.get_close_matches(word, known, n=1)
    return f"did you mean '{close[0]}'?" if close else f"there are {', '.join(known)}"
