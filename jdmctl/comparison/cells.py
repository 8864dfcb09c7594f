"""What a comparison consists of: cells, each a run of one method with one seed, in order of value."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from jdmctl.errors import BadInputError
from jdmctl.recipe import AWARE_TEACHERS, METHODS, Recipe
from jdmctl.recipe_files import load_recipe


@dataclass(frozen=True)
class Entry:
    """A method in a comparison, with how many seeds, and what its recipe changes in the common one."""

    method: str
    num_seeds: int = 1
    changes: tuple[str, ...] = ()

    @classmethod
    def parse(cls, text: str, changes: Mapping[str, Sequence[str]]) -> Entry:
        """`nct:3` is nct with three seeds. Raises BadInputError."""
        method, _, number = text.partition(":")
        if method not in METHODS:
            raise BadInputError(f"no method named '{method}'", hint=f"there are {', '.join(METHODS)}")
        if number and not (number.isdecimal() and int(number) > 0):
            raise BadInputError(f"'{text}' is not METHOD:SEEDS", hint=f"write {method}:3 for three seeds")
        return cls(method, int(number or 1), tuple(changes.get(method, ())))


@dataclass(frozen=True)
class Cell:
    """One run, in its own folder, by an ordinary `jdmctl add-control`."""

    method: str
    seed: int
    recipe: Recipe
    folder: Path

    @property
    def name(self) -> str:
        return f"{self.method}-{self.seed}"

    @property
    def is_done(self) -> bool:
        return all(branch.is_dir() for branch in self.branches().values())

    def branches(self) -> dict[str, Path]:
        """Control -> the ControlNet that it leaves."""
        return {name: self.folder / own for name, own in self.recipe.branch_folders.items()}

    def seconds(self) -> float:
        """Wall time of its training so far, warm-ups included."""
        return sum(seconds for seconds, _ in _stages(self.folder).values())

    def curve(self) -> list[tuple[float, float]]:
        """(seconds from the start of the run, first control's headline score on validation)."""
        points, began = [], 0.0
        for seconds, scores in _stages(self.folder).values():
            points += [(began + at, score) for at, score in scores]
            began += seconds
        return points


def plan(recipe: str, overrides: Sequence[str], entries: Sequence[Entry], folder: Path) -> list[Cell]:
    """Cells in order of value: every method's first seed, then the second seeds, and so on.

    Methods whose teacher sees the control use the ControlNet of `dsm`, which then comes first.

    Raises:
        BadInputError: such a method is there, and neither `dsm` nor a ControlNet in the recipe.
        RecipeError: a recipe is not valid.
    """
    common = load_recipe(recipe, overrides)
    settled = [f"controls.{control.name}.teacher_branch" for control in common.controls if control.teacher_branch]
    methods = [entry.method for entry in entries]
    cells = []
    for entry in sorted(entries, key=lambda entry: entry.method in AWARE_TEACHERS):
        given = [*settled, *(change.partition("=")[0] for change in entry.changes)]
        own = [f"method={entry.method}", f"name={entry.method}"]
        if entry.method in ("dsm", "nct"):  # a branch's warm-up belongs to JDM's recipe
            own += _plain_start(common)
        if entry.method in AWARE_TEACHERS:
            wanted = {f"controls.{name}.teacher_branch": product for name, product in common.branch_folders.items()}
            missing = {key: product for key, product in wanted.items() if key not in given}
            if missing and "dsm" not in methods:
                raise BadInputError(
                    f"{entry.method} needs an ordinary ControlNet",
                    hint=f"add --method dsm, or --set {entry.method}:{min(missing)}=FOLDER",
                )
            own += [f"{key}={(folder / 'dsm-0' / product).resolve()}" for key, product in missing.items()]
        for seed in range(entry.num_seeds):
            changes = [*overrides, *own, f"seed={seed}", *entry.changes]
            cells.append(Cell(entry.method, seed, load_recipe(recipe, changes), folder / f"{entry.method}-{seed}"))
    return sorted(cells, key=lambda cell: cell.seed)  # stable: methods stay in order


def _plain_start(common: Recipe) -> list[str]:
    """Overrides that take a recipe's denoising warm-up out."""
    if not common.training.dsm_warmup_steps:
        return []
    warmed = [control.name for control in common.controls if control.init == "dsm"]
    return ["training.dsm_warmup_steps=0", *(f"controls.{name}.init=student" for name in warmed)]


def _stages(folder: Path) -> dict[str, tuple[float, list[tuple[float, float]]]]:
    """Stage -> its seconds, and (seconds, score) of its validations; later records replace earlier ones."""
    file = folder / "metrics.jsonl"
    if not file.exists():
        return {}
    paces: dict[str, dict[int, float]] = {}
    scores: dict[str, dict[int, float]] = {}
    for line in file.read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        if record["event"] == "step":
            paces.setdefault(record["stage"], {})[record["step"]] = record["seconds"]
        elif record["event"] == "validation":
            scores.setdefault(record["stage"], {})[record["step"]] = next(iter(record["adherence"].values()))
    found = {}
    for stage, seconds in paces.items():
        clock, total = {0: 0.0}, 0.0
        for step in sorted(seconds):
            total += seconds[step]
            clock[step] = total
        points = [
            (max(v for k, v in clock.items() if k <= step), score) for step, score in scores.get(stage, {}).items()
        ]
        found[stage] = (total, sorted(points))
    return found
