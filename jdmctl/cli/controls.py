"""`jdmctl controls`: what can be asked of a student."""

from __future__ import annotations

from jdmctl.cli.options import JsonOption
from jdmctl.cli.output import Output, mode


def controls(as_json: JsonOption = False) -> None:
    """List the controls, built in and installed: options that each needs or [takes], and what its gradient is of."""
    from jdmctl.controls.base import describe_controls

    Output(mode(as_json)).table(describe_controls(), ["name", "options", "gradient", "headline", "from", "description"])
