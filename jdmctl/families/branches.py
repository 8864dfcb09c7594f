"""Whether a saved control branch goes with a backbone, by its configuration alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from jdmctl.errors import ConditionMismatchError


def require_fit(
    what: str, source: str | Path, found: Mapping[str, Any], needed: Mapping[str, Any], keys: Iterable[str]
) -> None:
    """Raises ConditionMismatchError if a branch's config has, under one of these keys, another value than is needed."""
    for key in keys:
        if _plain(found[key]) != _plain(needed[key]):
            raise ConditionMismatchError(
                f"the {what} at {source} does not fit this model: {key} is {found[key]}, needed {needed[key]}",
                hint=f"give a {what} made for the same backbone, or start from the student (init: student)",
            )


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, list | tuple) else value
