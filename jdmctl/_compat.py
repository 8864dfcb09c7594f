"""Lets a torchvision built for CUDA be imported on a CPU-only torch; elsewhere it changes nothing.

The torchvision wheels on PyPI link against CUDA. Beside a CPU build of torch they import neither
themselves nor timm, controlnet_aux, transformers' CLIP and diffusers' pipelines, because the
schemas of two compiled operators are missing. The schemas alone are enough for everything but
calling those operators (non-maximum suppression of detection boxes), which nobody does here.

`import jdmctl` arranges for it to happen when torchvision is first imported, by whomever.
"""

import functools
import importlib
import importlib.util
import sys
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from typing import Any, Literal

_MISSING_SCHEMAS = tuple(
    f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor" for name in ("nms", "qnms")
)
_keep_alive: list[Any] = []  # torch forgets a schema when its Library object is collected


class _Mender(MetaPathFinder, Loader):
    """Stands before Python's finders until torchvision is asked for."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if name != "torchvision":
            return None
        sys.meta_path.remove(self)
        found = ensure_torchvision()
        return None if found == "absent" else ModuleSpec(name, self, is_package=True)

    def create_module(self, spec: ModuleSpec) -> Any:
        return sys.modules[spec.name]  # imported and mended by now

    def exec_module(self, module: Any) -> None:
        """Done already."""


def mend_on_import() -> None:
    """Let the first `import torchvision` go through `ensure_torchvision`; costs nothing until then."""
    if "torchvision" not in sys.modules:
        sys.meta_path.insert(0, _Mender())


@functools.cache
def ensure_torchvision() -> Literal["absent", "native", "schema-only"]:
    """Make `import torchvision` work.

    Returns what was found: "native" is an ordinary torchvision, left alone; "schema-only" is one
    whose compiled operators cannot load, for which the schemas are declared.
    """
    if importlib.util.find_spec("torchvision") is None:
        return "absent"
    try:
        importlib.import_module("torchvision")
    except RuntimeError as problem:
        if "torchvision::" not in str(problem):
            raise
        _declare_schemas()
        importlib.import_module("torchvision")
    return "schema-only" if _keep_alive else "native"  # found so also when asked for while it is imported


def _declare_schemas() -> None:
    import torch

    library = torch.library.Library("torchvision", "FRAGMENT")
    for schema in _MISSING_SCHEMAS:
        library.define(schema)
    _keep_alive.append(library)
    for module in [m for m in sys.modules if m.partition(".")[0] == "torchvision"]:
        del sys.modules[module]  # half-imported by the attempt that failed
