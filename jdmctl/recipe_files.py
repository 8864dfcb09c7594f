"""Recipe files: finding, reading, overriding and writing them. Every problem of a recipe is told in one message."""

from __future__ import annotations

import difflib
import inspect
import json
import os
import re
import shlex
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from jdmctl.errors import RecipeError
from jdmctl.recipe import Recipe
from jdmctl.recipe_sections import Section

WORLD_FILE = "world.txt"  # of a run folder: which embedded world it is of; empty: the shipped one

_SECTIONS: dict[str, type[BaseModel]] = {
    name: kind
    for name, field in Recipe.model_fields.items()
    for kind in (field.annotation, *get_args(field.annotation))  # itself, or of each in a tuple
    if inspect.isclass(kind) and issubclass(kind, Section)
}


def packaged_folder() -> Path:
    """The recipes that come with jdmctl: beside the code in a wheel, beside the package in a checkout."""
    package = Path(str(files("jdmctl")))
    inside = package / "recipes"
    return inside if inside.is_dir() else package.parent / "recipes"


def packaged_recipes() -> dict[str, Path]:
    """Name (tiny/canny) -> file."""
    folder = packaged_folder()
    return {p.relative_to(folder).with_suffix("").as_posix(): p for p in sorted(folder.rglob("*.yaml"))}


def find_recipe(name: str) -> Path:
    """The file behind a packaged recipe's name, a path, or a run folder. Raises RecipeError."""
    packaged, path = packaged_recipes(), Path(name)
    if name in packaged:
        return packaged[name]
    if (path / "recipe.yaml").is_file():
        return path / "recipe.yaml"
    if path.is_file():
        return path
    close = difflib.get_close_matches(name, packaged, n=1)
    raise RecipeError(
        f"no recipe named {name}, and no such file or run folder" + _did_you_mean(close),
        hint="jdmctl recipes ls   shows those that come with jdmctl",
    )


def read_text(path: Path) -> str:
    """A recipe file as it is. Raises RecipeError if it is no text."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path} cannot be read: {error}", hint="a recipe is a YAML text file") from error


def title(path: Path) -> str:
    """The first line of a recipe's header comment."""
    first = read_text(path).partition("\n")[0]
    return first.lstrip("# ").rstrip(".") if first.startswith("#") else ""


def load_recipe(name: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe by packaged name, path or run folder; `overrides` are texts such as training.num_steps=20.

    Raises RecipeError with all that is wrong with it.
    """
    return parse_recipe(read_values(str(name)), overrides, source=str(find_recipe(str(name))))


def read_values(name: str) -> dict[str, Any]:
    """A recipe's plain values, unchecked. Raises RecipeError if it is no YAML mapping, or of a run in another world."""
    path = find_recipe(name)
    _require_its_world(path.parent)
    values = read_yaml(read_text(path), str(path))
    if not isinstance(values, dict):
        raise RecipeError(
            f"{path} is not a recipe: expected `key: value` lines, found {_show(values)}",
            hint="jdmctl recipes show tiny/canny   shows one",
        )
    return values


def world_in_use() -> str:
    """The folder that JDMCTL_WORLD names, absolute; '' for the shipped one."""
    folder = os.environ.get("JDMCTL_WORLD", "")
    return str(Path(folder).absolute()) if folder else ""


def _require_its_world(run: Path) -> None:
    """In another world a run's `tiny` would silently mean other models."""
    file = run / WORLD_FILE
    if not file.is_file() or (own := file.read_text(encoding="utf-8").strip()) == world_in_use():
        return
    raise RecipeError(
        f"{run} was made in {own or 'the shipped world'}, and {world_in_use() or 'the shipped one'} is in use",
        hint=(f"export JDMCTL_WORLD={shlex.quote(own)}" if own else "unset JDMCTL_WORLD")
        + f", or, if it is the same world at another place, delete {file}",
    )


def parse_recipe(
    values: dict[str, Any], overrides: Sequence[str] = (), source: str = "recipe", to_add: str = ""
) -> Recipe:
    """Check plain values as a recipe. Raises RecipeError; `to_add` is its hint where something is lacking."""
    for override in overrides:
        path, equals, text = override.partition("=")
        if not (path and equals):
            raise RecipeError(f"--set {override}: expected key=value", hint="for example --set training.num_steps=20")
        set_value(values, path.strip(), read_yaml(text, f"--set {override}"))
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        problems = explained(error.errors())
        lacks = any(one["type"] == "missing" for one in error.errors())
        count = f"{len(problems)} problem{'s' * (len(problems) > 1)}"
        raise RecipeError(
            "\n  ".join([f"{source} has {count}:", *problems]),
            hint=lacks and to_add or f"jdmctl recipes show {_example(values)} --resolved   shows a whole recipe",
        ) from error


def set_value(values: dict[str, Any], path: str, value: Any) -> None:
    """Change one value by its path; one of several is addressed by name, label or number: controls.canny.ratio.

    Raises RecipeError where the path leads nowhere.
    """
    *parents, last = path.split(".")
    here: Any = values
    for number, key in enumerate(parents, start=1):
        if isinstance(here, list):
            here = next((item for i, item in enumerate(here) if key in (str(i), _name(item))), None)
        else:
            here = here.setdefault(key, {})
        if not isinstance(here, (dict, list)):
            place = ".".join(parents[:number])
            found = f"there is no {place}" if here is None else f"{place} is a single value, {_show(here)}"
            raise RecipeError(f"{path} cannot be set: {found}", hint="jdmctl recipes show RECIPE")
    if isinstance(here, list):
        place = ".".join(parents)
        names = ", ".join(str(_name(item) or i) for i, item in enumerate(here)) or "it is empty"
        raise RecipeError(
            f"{path} cannot be set: {place} is a list ({names})",
            hint=f"--set {path}.KEY=VALUE for a value of one, --set '{place}=[...]' for all of it",
        )
    here[last] = value


def to_yaml(recipe: Recipe) -> str:
    """The resolved recipe, all defaults filled in; `load_recipe` reads it back to an equal one."""
    return yaml.dump(recipe.model_dump(mode="json"), Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def differences(one: BaseModel, other: BaseModel) -> list[str]:
    """What differs between two recipes, or two sections of a kind: `training.num_steps: 200 and 7`."""
    sides = [_flat(section.model_dump(mode="json")) for section in (one, other)]
    found = {key: [side.get(key) for side in sides] for key in sides[0] | sides[1]}
    return [f"{key}: {json.dumps(a)} and {json.dumps(b)}" for key, (a, b) in found.items() if a != b]


def _flat(value: Any, path: str = "") -> dict[str, Any]:
    """Values by their paths, as --set would address them."""
    if isinstance(value, list):
        value = {str(_name(item) or i): item for i, item in enumerate(value)}
    if not isinstance(value, dict):
        return {path: value}
    flat: dict[str, Any] = {}
    for key, item in value.items():
        flat |= _flat(item, f"{path}.{key}" if path else key)
    return flat


class _Loader(yaml.SafeLoader):
    """YAML 1.2's plain values: `no` and `1:30` stay text, 1e-5 is a number; repeated keys are refused."""

    yaml_implicit_resolvers: dict[str, Any] = {}

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (ValueError, LookupError, AttributeError) as error:  # of a tag: !!int abc
            tag = node.tag.replace("tag:yaml.org,2002:", "!!")
            raise yaml.MarkedYAMLError(
                problem=f"{_show(node.value)} is not what its tag {tag} says", problem_mark=node.start_mark
            ) from error

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str):
                raise yaml.MarkedYAMLError(problem=f"key {key!r} is not text", problem_mark=key_node.start_mark)
            if key in seen:
                raise yaml.MarkedYAMLError(problem=f"key '{key}' is given twice", problem_mark=key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """Puts text in quotes wherever YAML 1.1 or `_Loader` would read another value: 08, 1e5."""


for _tag, _pattern, _first in (
    ("null", r"~|null|", ["~", "n", ""]),
    ("bool", r"true|True|false|False", list("tTfF")),
    ("int", r"[-+]?(0|[1-9][0-9]*)", list("-+0123456789")),
    ("float", r"[-+]?(\.inf|(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?)", list("-+.0123456789")),
):
    for _kind in (_Loader, _Dumper):
        _kind.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), _first)


def read_yaml(text: str, source: str) -> Any:
    try:
        return yaml.load(text, Loader=_Loader)  # noqa: S506  (a SafeLoader)
    except yaml.MarkedYAMLError as error:
        where = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise RecipeError(f"{source}{where}: {error.problem}", hint="correct that line") from error
    except yaml.YAMLError as error:
        raise RecipeError(f"{source} is not YAML: {error}", hint="a recipe is a YAML text file") from error


def _example(values: dict[str, Any]) -> str:
    """A packaged recipe of the same command."""
    return (
        "tiny/distill" if values.get("method") == "distill" else "tiny/align" if values.get("rewards") else "tiny/canny"
    )


def _name(item: Any) -> Any:
    return item.get("label") or item.get("name") if isinstance(item, dict) else None


def explained(errors: Sequence[ErrorDetails]) -> list[str]:
    """A line for each, without those that only follow from others."""
    places = [error["loc"] for error in errors]
    return [
        line
        for error in errors
        if error["type"] != "default_factory_not_called"
        and not any(len(place) > len(error["loc"]) and place[: len(error["loc"])] == error["loc"] for place in places)
        for line in _explain(error).split("\n")
    ]


def _explain(error: ErrorDetails) -> str:
    """A line for each problem: where, what is wrong, what was found."""
    path = error["loc"]
    where = ".".join(str(part) for part in path)
    found = error["input"]
    match error["type"]:
        case "missing":
            return f"{where}: required, not given"
        case "extra_forbidden":
            return f"{where}: unknown key{_suggest_key(path)}"
        case "value_error":
            message = error["msg"].removeprefix("Value error, ")
            return "\n".join(f"{where}: {line}" if where else line for line in message.split("\n"))
        case "literal_error":
            allowed = re.findall(r"'([^']+)'", error["msg"])
            close = difflib.get_close_matches(str(found), allowed, n=1)
            return f"{where}: must be {' or '.join(allowed)}, got {_show(found)}{_did_you_mean(close)}"
    message = error["msg"][0].lower() + error["msg"][1:]
    return f"{where}: {message}, got {_show(found)}"


def _suggest_key(path: tuple[int | str, ...]) -> str:
    key = str(path[-1])
    section: type[BaseModel] = Recipe if len(path) == 1 else _SECTIONS[str(path[0])]
    close = difflib.get_close_matches(key, section.model_fields, n=1)
    elsewhere = [f"{name}.{key}" for name, other in _SECTIONS.items() if key in other.model_fields]
    return _did_you_mean(close or elsewhere)


def _did_you_mean(close: Sequence[str]) -> str:
    return f", did you mean '{close[0]}'?" if close else ""


def _show(found: Any) -> str:
    if isinstance(found, bool):
        return f"{str(found).lower()} (put it in quotes if text is meant)"
    text = repr(found)
    return text if len(text) <= 60 else text[:57] + "..."
