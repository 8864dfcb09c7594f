"""`jdmctl controls`: what can be asked of a student."""

from __future__ import annotations

from jdmctl.cli.options import JsonOption
from jdmctl.cli.output import Output, mode


def controls(as_json: JsonOption = False) -> None:
    """List the controls, built in and installed, and where each is exact, differentiable or a surrogate."""
    from jdmctl.controls.base import describe_controls

    Output(mode(as_json)).table(describe_controls(), ["name", "gradient", "headline", "from", "description"])
