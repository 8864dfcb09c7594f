"""Imports go down only, and every module can be imported alone.

5  cli/                                   words in, words out
4  recipe*.py  build.py  tinyworld/  comparison/   the only place that knows both recipes and objects
3  training/  sampling.py  search.py  evaluation/  export/  feedback/   procedures
2  families/  controls/  rewards/  data/  things with weights or files, apart from one another
1  diffusion/  objectives/  weights.py  registry.py   mathematics; a look into a weight file; finding by name
0  types.py  errors.py  _compat.py        words
"""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import jdmctl

PACKAGE = Path(jdmctl.__file__).parent
FLOORS = {
    "cli": 5,
    "__main__": 5,
    "recipe": 4,
    "recipe_kinds": 4,
    "recipe_sections": 4,
    "recipe_files": 4,
    "build": 4,
    "build_plan": 4,
    "build_memory": 4,
    "build_skeletons": 4,
    "build_stand_ins": 4,
    "first_check": 4,
    "build_export": 4,
    "build_check": 4,
    "build_data": 4,
    "build_quality": 4,
    "build_run": 4,
    "tinyworld": 4,
    "comparison": 4,
    "training": 3,
    "sampling": 3,
    "search": 3,
    "evaluation": 3,
    "export": 3,
    "feedback": 3,
    "families": 2,
    "controls": 2,
    "rewards": 2,
    "data": 2,
    "diffusion": 1,
    "objectives": 1,
    "weights": 1,
    "registry": 1,
    "types": 0,
    "errors": 0,
    "_compat": 0,
    "__init__": 0,
}


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def dotted(path: Path) -> str:
    """jdmctl/a/b.py -> jdmctl.a.b, jdmctl/a/__init__.py -> jdmctl.a"""
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def room(module: str) -> str:
    """The folder or file right under jdmctl in which a module, or a name in it, lies."""
    name = [*module.split("."), "__init__"][1]
    return name if list(PACKAGE.glob(name)) + list(PACKAGE.glob(f"{name}.py")) else "__init__"


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """Line and full name of each jdmctl module imported, also inside functions."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: write imports in full"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        yield from ((node.lineno, name) for name in names if name.split(".")[0] == "jdmctl")


def violation(source: str, target: str) -> bool:
    """Whether a module in room `source` may not import one in room `target`."""
    if source == target:
        return False
    if FLOORS[source] == 2:
        return FLOORS[target] >= 2
    return FLOORS[target] > FLOORS[source]


def test_imports_go_down_only():
    found = [
        f"{path}:{line}: {dotted(path)} imports {name}"
        for path in modules()
        for line, name in imports(path)
        if violation(room(dotted(path)), room(name))
    ]
    assert not found, "\n".join(found)
    assert sum(len(list(imports(path))) for path in modules()) > 20, "saw too few imports"


@pytest.mark.parametrize(
    ("source", "target", "expected"),
    [
        ("objectives", "diffusion", False),
        ("training", "families", False),
        ("controls", "families", True),
        ("rewards", "controls", True),
        ("feedback", "rewards", False),
        ("controls", "training", True),
        ("diffusion", "training", True),
        ("errors", "types", False),
        ("training", "recipe", True),
        ("build", "recipe", False),
    ],
)
def test_the_rule(source, target, expected):
    assert violation(source, target) == expected


def test_every_module_has_a_floor_and_a_readable_length():
    for path in modules():
        assert room(dotted(path)) in FLOORS, f"{path}: give it a floor"
        assert len(path.read_text(encoding="utf-8").splitlines()) <= 300, f"{path}: too long"


IMPORT_EACH_ALONE = """
import importlib, sys, traceback

failed = 0
for name in sys.argv[1:]:
    try:
        importlib.import_module(name)
    except BaseException:
        failed += 1
        print("cannot import", name, "alone:")
        traceback.print_exc(file=sys.stdout)
    for loaded in [module for module in sys.modules if module.split(".")[0] == "jdmctl"]:
        del sys.modules[loaded]
sys.exit(failed > 0)
"""


def test_every_module_can_be_imported_alone():
    """No module relies on another of the package having been imported before it.

    One process imports each and forgets it again; only the libraries stay, which take seconds.
    `jdmctl.__main__` is left out: to import it is to run the program.
    """
    names = [dotted(path) for path in modules() if path.stem != "__main__"]
    command = [sys.executable, "-c", IMPORT_EACH_ALONE, *names]
    done = subprocess.run(command, capture_output=True, text=True, cwd=PACKAGE.parent)
    assert done.returncode == 0, done.stdout + done.stderr
