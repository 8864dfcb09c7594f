"""`jdmctl doctor`: what this machine has, and what is missing."""

from __future__ import annotations

import sys
import tempfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated

import typer

from jdmctl import __version__
from jdmctl.cli.options import DeviceOption, JsonOption
from jdmctl.cli.output import Output, mode
from jdmctl.errors import JdmError

_PACKAGES = ("torch", "torchvision", "diffusers", "transformers", "accelerate", "peft", "controlnet-aux", "kornia")
_TORCHVISION = {
    "absent": "missing: controlnet-aux needs it",
    "native": "whole",
    "schema-only": "built for another torch; usable inside jdmctl, a bare `import torchvision` fails",
}


def doctor(
    student: Annotated[str, typer.Option(help="Also check that this one-step student can be trained.")] = "",
    teacher: Annotated[str, typer.Option(help="Of that student; a known student names its own.")] = "",
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Where its pictures go.")] = None,
    device: DeviceOption = "",
    as_json: JsonOption = False,
) -> None:
    """Show versions, the device, and whether the embedded world is there.

    With --student also: what it is, whether it loads, draws in one step, is called at its own time, and trains.
    """
    rows = [("python", sys.version.split()[0]), ("jdmctl", __version__)]
    rows += [(name, _version(name)) for name in _PACKAGES]
    rows += [("torchvision state", _torchvision()), ("device", _device()), ("embedded world", _world())]
    Output(mode(as_json)).table([{"what": what, "found": found} for what, found in rows], ["what", "found"])
    if student:
        _first_check(student, teacher, output or Path(tempfile.mkdtemp(prefix="jdmctl-doctor-")), device, as_json)


def _first_check(student: str, teacher: str, folder: Path, device: str, as_json: bool) -> None:
    from jdmctl.first_check import FirstCheck
    from jdmctl.training.run import require_new

    out = Output(mode(as_json))
    require_new(folder)
    for check in FirstCheck(student, teacher, device, folder).run():
        mark = "✓" if check.ok else "✗"
        text = f"{mark} {check.name}: {check.found}" + (f"\n  do: {check.do}" if check.do else "")
        out.result({"check": check.name, "ok": check.ok, "found": check.found, "do": check.do}, text)
    if left := sorted(path.name for path in folder.iterdir()):
        out.note(f"in {folder}: {', '.join(left)}")
    if not check.ok:
        raise JdmError(f"{student} did not pass: {check.name}", hint=check.do or "report the lines above")


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
