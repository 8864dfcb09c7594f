"""`jdmctl rewards`: what a student can be taught to please."""

from __future__ import annotations

from jdmctl.cli.options import JsonOption
from jdmctl.cli.output import Output, mode


def rewards(as_json: JsonOption = False) -> None:
    """List the rewards, built in and installed, and the options that each needs or [takes]."""
    from jdmctl.rewards.base import describe_rewards

    Output(mode(as_json)).table(describe_rewards(), ["name", "options", "from", "description"])
