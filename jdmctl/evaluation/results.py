"""Published numbers: rows in docs/results/NAME.json, and the tables that show them."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from importlib import metadata
from pathlib import Path
from typing import Any

from jdmctl.errors import BadInputError, JdmError
from jdmctl.evaluation.bootstrap import Estimate
from jdmctl.training.atomic import require_writable, write_text

ITSELF = "reference pictures against themselves"  # a method whose distances are ideal, of any number


@dataclass(frozen=True)
class Row:
    """One number: what was measured, on what, how surely, and the command that gives it again."""

    world: str
    control: str
    method: str
    passes: int  # backbone passes per picture, guidance counted
    metric: str
    value: float
    low: float
    high: float
    seeds: list[int]
    n: int
    command: str
    setup: str = ""  # features, counts, size, scorer, split, versions, device: those of different ones are not compared

    @property
    def key(self) -> tuple[str, str, str, int, str]:
        """What a row is about; rows with equal keys replace one another."""
        return self.world, self.control, self.method, self.passes, self.metric

    @property
    def is_of_set(self) -> bool:
        """Whether it is of the pictures as a whole, as distances are, and changes with their number."""
        return self.metric.startswith(_OF_SETS) and self.method != ITSELF

    @property
    def estimate(self) -> Estimate:
        return Estimate(self.value, self.low, self.high, self.n)


def read(path: Path) -> list[Row]:
    """The rows of a results file, [] if there is none yet.

    Raises:
        BadInputError: it is a folder or not a list of rows, or an interval does not hold its value.
    """
    if not path.exists():
        return []
    if path.is_dir():
        raise BadInputError(f"{path} is a folder, not a file of results", hint="name one in it: --results r.json")
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise BadInputError(f"{path} is not valid json: {error}", _REMAKE) from error
    if not isinstance(entries, list):
        raise BadInputError(f"{path} holds a {type(entries).__name__}, not a list of rows", _REMAKE)
    return [_row(entry, f"{path}, row {number}") for number, entry in enumerate(entries, start=1)]


def require_place(path: Path | None) -> None:
    """Before hours go into rows: raises JdmError if a file of results could not be read, or not be written."""
    if path:
        read(path)
        require_writable(path)


def require_same_setup(path: Path | None, made: Collection[tuple[str, str, str]], n: int | None, here: str) -> None:
    """Before hours go into rows: raises BadInputError if rows that stay beside them were measured with another setup.

    As far as is known then: by what it ends with, `here`, and the number of pictures if that is. `made` are (world,
    control, method) of all that will be measured, and their distance to true pictures is what every method has.
    """
    worlds = {world for world, _, _ in made}
    for row in read(path) if path else []:
        is_beside = row.metric == "frechet" and row.world in worlds and row.key[:3] not in made
        if is_beside and not (row.setup.endswith(here) and (n in (None, row.n) or not row.is_of_set)):
            counted = "" if n is None else f", {n} pictures"
            raise BadInputError(
                f"{row.metric} of {row.method} in {path} was measured with {_measured_with(row)}, and now it would be "
                f"with {here.lstrip(',; ')}{counted}: they cannot stand in one table",
                hint=f"score the old one again ({row.command}), or choose another file",
            )


def merge(old: Iterable[Row], new: Iterable[Row]) -> list[Row]:
    """Old rows in their order, replaced by new ones of the same key, whatever the goal that minutes went to; then what
    is only new.

    What measures a set of pictures as a whole depends on how many they are: a Frechet distance is biased upwards for
    few, and precision and recall change with the density of a set; KID, whose mean does not, goes by the same rule.
    Such rows need the same `n`. Others, means over pictures, may have any.

    Raises:
        BadInputError: a kept row and a new one give the same metric of the same world by different setups, or of sets
            of different sizes where that matters.
    """
    new = list(new)
    merged = list({(*row.key[:-1], _without_goal(row.metric)): row for row in (*old, *new)}.values())
    setups = {(row.world, row.metric, row.is_of_set): row for row in new}
    for row in merged:
        other = setups.get((row.world, row.metric, row.is_of_set), row)
        if _measured_with(other) != _measured_with(row):
            raise BadInputError(
                f"{row.metric} of {row.method} was measured with {_measured_with(row)}, "
                f"that of {other.method} with {_measured_with(other)}: they cannot stand in one table",
                hint=f"score the old one again ({row.command}), or choose another file",
            )
    return merged


def setup(measure: str, device: str = "cpu", split: str = "") -> str:
    """What a number depends on beside its command: what measures it, on which split of a world, the versions of what
    draws and measures; and where that is done, unless on the CPU."""
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("torch", "diffusers", "transformers"))
    on = f"{measure}, split {split}" if split else measure
    return f"{on}; {versions}" + ("" if device == "cpu" else f"; on {device}")


def write(path: Path, rows: Iterable[Row]) -> None:
    """Replace a results file by these rows, one a line.

    Raises:
        BadInputError: an interval does not hold its value, or a number is not finite.
        JdmError: the disk is full or not writable.
    """
    checked = [asdict(_row(asdict(row), f"{path}, {row.key}")) for row in rows]
    lines = ",\n ".join(json.dumps(entry) for entry in checked)
    write_text(path, f"[{lines}]\n")


def table(rows: Sequence[Row], names: Sequence[str] = ("world", "control", "method")) -> str:
    """Markdown: a line for each (world, control, method, passes), named by `names`, and a column for each metric."""
    metrics = list(dict.fromkeys(row.metric for row in rows))
    cells = {row.key: str(row.estimate) for row in rows}
    lines = {row.key[:-1]: [str(getattr(row, name)) for name in (*names, "passes")] for row in rows}
    body = [[*line, *(cells.get((*key, metric), "") for metric in metrics)] for key, line in lines.items()]
    head = [*names, "passes", *metrics]
    aligned = [*["---"] * len(names), *["---:"] * (len(head) - len(names))]
    return "\n".join("| " + " | ".join(line) + " |" for line in [head, aligned, *body])


def has_place(document: str, name: str) -> bool:
    """Whether it asks for these results, and not just for those of a longer name."""
    return re.search(rf"<!-- results: {_among(name)} (\||-->)", document) is not None


def fill(document: str, name: str, rows: Sequence[Row], folder: Path = Path()) -> str:
    """The document with its tables of these rows made anew.

    A table stands between `<!-- results: NAME -->` and `<!-- end -->`; with
    `<!-- results: NAME | depth l1, frechet -->` it has only these columns, and with
    `<!-- results: NAME | control depth | depth l1, frechet -->` only the rows of this control, after which
    `| methods jdm; nct |` names those of some methods. `NAME+OTHER` has the rows of both files, OTHER.json in `folder`.

    Raises:
        JdmError: the document has no such place, or there is no such file.
        BadInputError: rows of several files cannot stand in one table.
    """

    def replace(found: re.Match[str]) -> str:
        wanted, methods = _words(found["metrics"], ","), _words(found["methods"], ";")

        def chosen(one: str) -> list[Row]:
            return [
                row
                for row in (rows if one == name else _there(folder / f"{one}.json"))
                if (not wanted or row.metric in wanted)
                and (not methods or row.method in methods)
                and found["control"] in (None, row.control)
            ]

        together = _together([chosen(one) for one in found["names"].split("+")])
        shown = table(together) if found["control"] is None else table(together, ["method"])
        return f"{found['start']}{shown}\n<!-- end -->"

    narrowed = r"(?: \| control (?P<control>[^|]+?))?(?: \| methods (?P<methods>[^|]+?))?(?: \| (?P<metrics>.*?))?"
    place = rf"(?P<start><!-- results: (?P<names>{_among(name)}){narrowed} -->\n).*?<!-- end -->"
    filled, count = re.subn(place, replace, document, flags=re.DOTALL)
    if not count:
        hint = f"put the lines <!-- results: {name} --> and <!-- end --> there"
        raise JdmError(f"no place for the results {name}", hint)
    return filled


def _among(name: str) -> str:
    """A pattern of the names of files, joined by +, of which it is one."""
    return rf"(?:[^ +|]+\+)*{re.escape(name)}(?:\+[^ +|]+)*"


def _words(text: str | None, sign: str) -> list[str]:
    return [word.strip() for word in (text or "").split(sign) if word.strip()]


def _there(path: Path) -> list[Row]:
    if not path.exists():
        raise JdmError(f"a table is of {path}, which is not there", hint="mend the table's mark, or make its rows")
    return read(path)


def _together(files: Iterable[Sequence[Row]]) -> list[Row]:
    """Rows of several files. Raises BadInputError where setups differ, or one row is in two files with two values."""
    found: list[Row] = []
    for rows in files:
        known = {row.key: str(row.estimate) for row in found}  # as it is shown: threads change the last bits
        for row in rows:
            if known.get(row.key, str(row.estimate)) != str(row.estimate):
                raise BadInputError(
                    f"{row.metric} of {row.method} is {known[row.key]} in one file and {row.estimate} in another",
                    hint="leave its method out of the table (| methods a; b |), or its metric",
                )
        found = merge(found, rows)
    return found


_OF_SETS = ("frechet", "kid", "precision", "recall")  # and what is named after them; canny precision is a mean


def _without_goal(metric: str) -> str:
    """`minutes to canny f1 0.82` -> `minutes to canny f1`; others as they are."""
    return metric.rpartition(" ")[0] if metric.startswith("minutes to ") else metric


def _measured_with(row: Row) -> str:
    """What rows of one metric must have in common to stand in one table."""
    measure = row.setup or "an unknown setup"
    return f"{measure}, {row.n} pictures" if row.is_of_set else measure


_REMAKE = "give another --results; or, if it is a file of results, delete it and run the commands of its rows again"
_TYPES = {"str": str, "int": int, "float": (int, float), "list[int]": list}


def _row(entry: Any, where: str) -> Row:
    expected = {field.name: str(field.type) for field in fields(Row)}
    if isinstance(entry, dict):
        entry = {"setup": "", **entry}
    if not isinstance(entry, dict) or set(entry) != set(expected):
        raise BadInputError(f"{where}: needs exactly the keys {', '.join(expected)}", _REMAKE)
    for name, kind in expected.items():
        if not isinstance(entry[name], _TYPES[kind]):  # type: ignore[arg-type]
            raise BadInputError(f"{where}: {name} must be {kind}, got {entry[name]!r}", _REMAKE)
    row = Row(**entry)
    if not row.low <= row.value <= row.high:  # also false where one of them is nan
        interval = f"[{row.low}, {row.high}]"
        raise BadInputError(f"{where}: value {row.value} is outside of {interval}", _REMAKE)
    return row
