"""What is shipped: declared dependencies, tested versions, and a wheel that works by itself."""

import ast
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterable
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def requirements(*extras: str) -> dict[str, Requirement]:
    """Canonical name -> what pyproject asks for."""
    lines = [*PROJECT["dependencies"]]
    lines += [line for extra in extras for line in PROJECT["optional-dependencies"][extra]]
    return {canonicalize_name(r.name): r for r in map(Requirement, lines)}


def constraints() -> dict[str, str]:
    """Canonical name -> the tested version."""
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = [Requirement(line) for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(pin.name): str(pin.specifier).removeprefix("==") for pin in pins}


def test_tested_versions_are_in_the_ranges():
    pinned, asked = constraints(), requirements(*PROJECT["optional-dependencies"])
    both = pinned.keys() & asked.keys()
    assert len(both) > 20
    for name in both:
        assert asked[name].specifier.contains(pinned[name]), f"{name} {pinned[name]}"
    # torchvision replaces torch unless both are pinned; types and tools may move freely
    free = {"pillow", "pre-commit", "types-pyyaml"}
    assert asked.keys() - pinned.keys() == free


def imported(nodes: Iterable[ast.AST]) -> set[str]:
    """Names of the third-party modules that these nodes import themselves."""
    names = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names.add((node.module or "").split(".")[0])
    return {name for name in names if name not in sys.stdlib_module_names and name != "jdmctl"}


def test_every_import_is_declared():
    """A third-party module is a core dependency; one that only a function imports may be in an extra.

    A name that no installed distribution provides must be a requirement's own name.
    """
    provided = packages_distributions()
    core = requirements().keys() | {"pydantic-core"}  # pydantic's own other half
    extra = requirements(*PROJECT["optional-dependencies"]).keys() - requirements("dev").keys()
    undeclared = set()
    for path in (ROOT / "jdmctl").rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
        inside = {node for function in functions for node in ast.walk(function)}
        for names, declared in (
            (imported(node for node in ast.walk(tree) if node not in inside), core),
            (imported(inside), core | extra),
        ):
            for module in names:
                owners = {canonicalize_name(owner) for owner in provided.get(module, [module])}
                if not owners & declared:
                    undeclared.add(f"{module} ({path.relative_to(ROOT)})")
    assert not undeclared


def test_version_is_one_number_and_has_a_changelog():
    text = (ROOT / "jdmctl" / "__init__.py").read_text()
    assert len(re.findall(r'^__version__ = "\d+\.\d+\.\d+[.\w]*"$', text, re.MULTILINE)) == 1
    assert "## [Unreleased]" in (ROOT / "CHANGELOG.md").read_text()


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """The wheel, built in this environment (no download) from the checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    done = subprocess.run(build, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (file,) = folder.glob("*.whl")
    return file


def test_wheel_holds_all_that_is_needed_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    recipes = {path.relative_to(ROOT).as_posix() for path in (ROOT / "recipes").rglob("*.yaml")}
    assert recipes
    assert {f"jdmctl/{name}" for name in recipes} <= names
    package = ROOT / "jdmctl"
    files = {p for p in package.rglob("*") if p.is_file() and "__pycache__" not in p.parts}
    assert {file.relative_to(ROOT).as_posix() for file in files} <= names
    assert not [name for name in names if not name.startswith("jdmctl")]
    assert [name for name in names if name.endswith("licenses/LICENSE")]


def test_wheel_runs_away_from_the_checkout(wheel, tmp_path):
    """Unpacked elsewhere it answers --help and finds its own recipes, not the checkout's."""
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "site")}

    def run(*words: str) -> str:
        command = [sys.executable, "-m", "jdmctl", *words]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    assert "add-control" in run("--help")
    assert "tiny/canny" in run("recipes", "ls")
    where = "from jdmctl.recipe_files import packaged_folder; print(packaged_folder())"
    done = subprocess.run([sys.executable, "-c", where], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert Path(done.stdout.strip()) == tmp_path / "site" / "jdmctl" / "recipes"


def test_readme_begins_with_the_two_commands():
    commands = re.findall(r"^    (make \w+)", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert commands[:2] == ["make demo", "make test"]
    makefile = (ROOT / "Makefile").read_text()
    for command in commands:
        assert re.search(rf"^{command.split()[1]}:", makefile, re.MULTILINE)
