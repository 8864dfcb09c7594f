"""`jdmctl data`: what a data set holds, before anything is trained on it."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from jdmctl.cli.options import JsonOption
from jdmctl.cli.output import Output, mode

_SHOWN_CHARACTERS = 200  # of a caption

app = typer.Typer(no_args_is_help=True, help="Look at a data set.", rich_markup_mode=None)


@app.callback()
def data() -> None:
    """Keeps `inspect` a word of its own while it is the only one."""


@app.command("inspect")
def inspect(
    path: Annotated[str, typer.Argument(help="Folder, file, pattern of tar shards, or hub name.")],
    format: Annotated[str, typer.Option(help="If it is not to be found by looking; docs/data.md lists them.")] = "",
    image_column: Annotated[str, typer.Option(help="Of a table or shards.")] = "",
    text_column: Annotated[str, typer.Option(help="Of a table or shards.")] = "",
    split: Annotated[str, typer.Option(help="Of a hub data set, parquet files, shards, or several saved.")] = "train",
    stream: Annotated[int, typer.Option(min=0, help="Fetch the first so many rows only; 0 is all.")] = 0,
    num_opened: Annotated[int, typer.Option("--open", min=0, help="Pictures to open, evenly spread; 0 is all.")] = 100,
    as_json: JsonOption = False,
) -> None:
    """Say what a data set is: format, number, captions, sizes, first rows, and what is wrong with it.

    Ends with 1 if something is.
    """
    from jdmctl.data import inspect as look
    from jdmctl.data.formats import require_format
    from jdmctl.data.options import ReadOptions
    from jdmctl.tinyworld.world import cache_folder

    require_format(format)
    options = ReadOptions(cache_folder(), image_column, text_column, split, stream)
    found = look.inspect(path, options, format, num_opened)
    Output(mode(as_json)).result(found, _told(found))
    if found["problems"]:
        raise typer.Exit(1)


def _told(found: dict[str, Any]) -> str:
    lines = [f"{found['path']}: {found['format']}, {found['rows']} rows"]
    if "sizes" in found:
        lines[0] += f", {found['shown_per_epoch']} an epoch" if found["shown_per_epoch"] != found["rows"] else ""
        lines.append(f"captions: {found['captions_different']} different, {found['captions_empty']} empty")
        lines.append(f"conditions: {_conditions(found)}")
        sizes = ", ".join(f"{number} of {size}" for size, number in found["sizes"].items())
        more = found["sizes_different"] - len(found["sizes"])
        lines.append(f"opened {found['opened']} pictures: {sizes}" + (f" and {more} more sizes" if more else ""))
    lines += [f"  {_on_a_line(text)}" for text in found["first"]]
    lines += [f"warning: {warning}" for warning in found["warnings"]]
    lines += [f"problem: {problem}" for problem in found["problems"]]
    return "\n".join(lines)


def _conditions(found: dict[str, Any]) -> str:
    """Which `--data` would use, and how to ask for the others."""
    columns = ", ".join(found["conditions"])
    if not columns:
        return "none; they are extracted from the pictures"
    if found["source"] == "images":
        return f"extracted from the pictures; to take {columns} instead: --set data.source=conditions"
    if found["format"] == "maps":
        return f"{columns}, without pictures"
    return f"{columns}; to extract them from the pictures instead: --set data.source=images"


def _on_a_line(caption: str) -> str:
    """Its first characters, those that do not print escaped."""
    shown = "".join(char if char.isprintable() else repr(char)[1:-1] for char in caption[:_SHOWN_CHARACTERS])
    return shown + (f"... ({len(caption)} characters)" if len(caption) > _SHOWN_CHARACTERS else "")
