"""`jdmctl doctor`: what this machine has, and what is missing."""

from __future__ import annotations

import sys
from importlib.metadata import PackageNotFoundError, version

from jdmctl import __version__
from jdmctl.cli.options import JsonOption
from jdmctl.cli.output import Output, mode
from jdmctl.errors import JdmError

_PACKAGES = ("torch", "torchvision", "diffusers", "transformers", "accelerate", "peft", "controlnet-aux", "kornia")
_TORCHVISION = {
    "absent": "missing: controlnet-aux needs it",
    "native": "whole",
    "schema-only": "built for another torch; usable inside jdmctl, a bare `import torchvision` fails",
}


def doctor(as_json: JsonOption = False) -> None:
    """Show versions, the device, and whether the embedded world is there."""
    rows = [("python", sys.version.split()[0]), ("jdmctl", __version__)]
    rows += [(name, _version(name)) for name in _PACKAGES]
    rows += [("torchvision state", _torchvision()), ("device", _device()), ("embedded world", _world())]
    Output(mode(as_json)).table([{"what": what, "found": found} for what, found in rows], ["what", "found"])


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "missing: pip install -c constraints.txt -e ."


def _torchvision() -> str:
    from jdmctl._compat import ensure_torchvision

    return _TORCHVISION[ensure_torchvision()]


def _device() -> str:
    import torch

    if torch.cuda.is_available():
        return f"cuda: {', '.join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))}"
    return "mps" if torch.backends.mps.is_available() else f"cpu, {torch.get_num_threads()} threads"


def _world() -> str:
    from jdmctl.tinyworld.world import world_folder

    try:
        return str(world_folder())
    except JdmError as error:
        return f"{error}; {error.hint}"
