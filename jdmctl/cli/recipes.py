"""`jdmctl recipes`: the recipes that come with jdmctl, and checking one's own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from jdmctl.cli.options import JsonOption, SetOption
from jdmctl.cli.output import Output, mode
from jdmctl.errors import JdmError

app = typer.Typer(help="List, show, copy and validate recipes.", no_args_is_help=True, rich_markup_mode=None)
NameArgument = Annotated[str, typer.Argument(metavar="RECIPE", help="A name such as tiny/canny, or a file.")]


@app.command("ls")
def ls(as_json: JsonOption = False) -> None:
    """List the recipes that come with jdmctl."""
    from jdmctl.recipe_files import packaged_recipes, title

    rows = [{"name": name, "title": title(path)} for name, path in packaged_recipes().items()]
    Output(mode(as_json)).table(rows, ["name", "title"])


@app.command("show")
def show(
    recipe: NameArgument,
    resolved: Annotated[bool, typer.Option("--resolved", help="Fill in every default.")] = False,
    overrides: SetOption = [],  # noqa: B006
) -> None:
    """Print a recipe."""
    from jdmctl.recipe_files import find_recipe, load_recipe, read_text, to_yaml

    if resolved or overrides:
        text = to_yaml(load_recipe(recipe, overrides))
    else:
        text = read_text(find_recipe(recipe))
    Output().result({}, text.rstrip("\n"))


@app.command("copy")
def copy(
    recipe: NameArgument,
    target: Annotated[Path, typer.Argument(help="File or folder to copy it to.")] = Path(),
) -> None:
    """Copy a recipe, to make it yours."""
    from jdmctl.recipe_files import find_recipe, load_recipe, read_text
    from jdmctl.training.atomic import write_text

    source = find_recipe(recipe)
    if target.is_dir():
        target /= source.name
    if target.exists():
        raise JdmError(f"{target} is already there", hint="give another file name")
    write_text(target, read_text(source))
    out = Output()
    out.result({"copied": str(target)}, str(target))
    out.note(f"edit it, then: jdmctl {load_recipe(recipe).command} {target}")


@app.command("validate")
def validate(
    recipes: Annotated[list[str], typer.Argument(metavar="RECIPE...", help="Names or files.")],
    as_json: JsonOption = False,
    overrides: SetOption = [],  # noqa: B006
) -> None:
    """Check recipes without running them; all problems are told at once. Ends with 1 if one is not valid."""
    from jdmctl.recipe_files import load_recipe

    out = Output(mode(as_json))
    are_valid = True
    for name in recipes:
        try:
            load_recipe(name, overrides)
        except JdmError as problem:
            are_valid = False
            if as_json:
                out.result({"recipe": name, "valid": False, "problem": str(problem), "hint": problem.hint}, "")
            out.error(problem)
        else:
            out.result({"recipe": name, "valid": True}, f"{name} is valid")
    if not are_valid:
        raise typer.Exit(1)
