"""Options that several commands share, declared once."""

from __future__ import annotations

from typing import Annotated

import typer

JsonOption = Annotated[bool, typer.Option("--json", help="Write JSON lines to stdout.")]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="Write results only.")]
DeviceOption = Annotated[str, typer.Option(help="cpu, cuda, cuda:1 ...; by default a GPU if there is one.")]
SetOption = Annotated[
    list[str],
    typer.Option("--set", metavar="KEY=VALUE", help="Change a value of the recipe; may be repeated."),
]
