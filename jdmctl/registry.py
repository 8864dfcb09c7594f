"""Things that are found by a short name: built in, or brought by another package's entry points.

Listing names imports none of them.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from jdmctl.errors import JdmError


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
        found = self._class(name)
        self._check_options(name, found, options)
        return found(**options)

    def get(self, name: str) -> Any:
        """The class of that name. Raises JdmError if nothing has it, or it cannot be imported."""
        return self._class(name)

    def defaults(self, name: str) -> dict[str, Any]:
        """What the class of that name takes for options that are not given. Raises JdmError as `make` does."""
        known = inspect.signature(self._class(name)).parameters
        return {key: value.default for key, value in known.items() if value.default not in (value.empty, None)}

    def described(self) -> Iterator[tuple[dict[str, str], Any]]:
        """Rows with name, from (the package) and description, each with its class, or None if it is broken."""
        for name, point in sorted(self._entry_points().items()):
            row = {"name": name, "from": _package(point)}
            try:
                found = self._load(point)
            except JdmError as problem:
                yield row | {"description": str(problem)}, None
            else:
                yield row | {"description": found.description}, found

    def _entry_points(self) -> dict[str, EntryPoint]:
        installed = {point.name: point for point in entry_points(group=self.group)}
        return installed | {name: EntryPoint(name, path, self.group) for name, path in self.built_in.items()}

    def _class(self, name: str) -> Any:
        points = self._entry_points()
        if name not in points:
            raise JdmError(f"no {self.what} is named '{name}'", hint=_suggestion(name, sorted(points)))
        return self._load(points[name])

    def _load(self, point: EntryPoint) -> Any:
        try:
            return point.load()
        except (ImportError, AttributeError) as problem:
            raise JdmError(
                f"the {self.what} '{point.name}' cannot be imported from {point.value}: {problem}",
                hint=f"reinstall {_package(point)}, or tell its authors",
            ) from problem

    def _check_options(self, name: str, found: Any, options: Mapping[str, Any]) -> None:
        known = inspect.signature(found).parameters
        for option in options:
            if option not in known:
                raise JdmError(
                    f"the {self.what} '{name}' has no option '{option}'",
                    hint=_suggestion(option, list(known)) if known else "it takes no options",
                )
        required = [key for key, value in known.items() if value.default is value.empty]
        missing = [option for option in required if option not in options]
        if missing:
            raise JdmError(
                f"the {self.what} '{name}' needs the option{'s' * (len(missing) > 1)} {', '.join(missing)}",
                hint=f"give options: {{{missing[0]}: ...}} beside the {self.what}'s name in the recipe, or "
                f"--set {self.what}s.{name}.options.{missing[0]}=...",
            )


def _package(point: EntryPoint) -> str:
    return point.dist.name if point.dist else point.value.partition(".")[0]


def _suggestion(word: str, known: list[str]) -> str:
    close = difflib.get_close_matches(word, known, n=1)
    return f"did you mean '{close[0]}'?" if close else f"there are {', '.join(known)}"
