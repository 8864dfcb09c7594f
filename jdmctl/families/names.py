"""How a family is found by its name.

Another package adds one by an entry point in the group `jdmctl.families` that names a subclass of
`jdmctl.families.family.Family`; examples/own_family is a whole one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from jdmctl.families import FAMILIES
from jdmctl.registry import Registry

if TYPE_CHECKING:  # listing names must not load torch
    from jdmctl.families.family import Family

_REGISTRY = Registry("family", "jdmctl.families", FAMILIES)


def family_names() -> list[str]:
    """The names of all families, built in and installed; none is imported."""
    return _REGISTRY.names()


def family_class(name: str) -> type[Family]:
    """The class of that name. Raises JdmError if nothing has it, or it cannot be imported."""
    return _REGISTRY.get(name)
