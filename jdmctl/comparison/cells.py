"""What a comparison consists of: cells, each a run of one method with one seed, in order of value."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from jdmctl.build import resolve
from jdmctl.comparison.history import History
from jdmctl.errors import BadInputError
from jdmctl.families.folders import read_config
from jdmctl.recipe import AWARE_TEACHERS, METHODS, Recipe
from jdmctl.recipe_files import load_recipe
from jdmctl.recipe_kinds import DEFAULT_DIVERGENCE
from jdmctl.training.run import RECIPE_FILE

# How else a reward is pursued: without fidelity, by the objective of ReFL and DRaFT at one step; with weights held by
# their distance to the first; and as Diff-Instruct++ does (Luo 2024, arXiv:2410.18881), by reverse KL to a teacher
# whose guidance is within it. How long, how strong: as the recipe says, or `--set reward-only:KEY=VALUE`.
_NO_FIDELITY = (
    "objective.fidelity=false",
    "objective.guidance=coupled",
    f"objective.divergence={DEFAULT_DIVERGENCE}",
    "objective.gan_weight=0",
)
REWARD_BASELINES = {
    "reward-only": _NO_FIDELITY,
    "reward-l2": (*_NO_FIDELITY, "student.l2_to_start=1000"),
    "diff-instruct++": ("objective.guidance=coupled", "objective.divergence=reverse-kl", "objective.energy_at=clean"),
}
PLUGGED = "ControlNet plugged in"
COMPARED = (*METHODS, *REWARD_BASELINES)


def require_method(name: str) -> None:
    """Raises BadInputError, with the likeliest that was meant, for a method that there is not."""
    if name not in COMPARED:
        close = difflib.get_close_matches(name, COMPARED, n=1)
        meant = f", did you mean '{close[0]}'?" if close else ""
        raise BadInputError(f"no method named '{name}'{meant}", hint=f"there are {', '.join(COMPARED)}")


@dataclass(frozen=True)
class Entry:
    """A method in a comparison, with how many seeds, and what its recipe changes in the common one."""

    method: str
    label: str  # the method, or what tells this variant of it from others
    num_seeds: int = 1
    changes: tuple[str, ...] = ()

    @classmethod
    def parse(cls, text: str, changes: Mapping[str, Sequence[str]]) -> Entry:
        """`nct:3` is nct with three seeds, `jdm@kl` a variant of jdm; `changes` by label. Raises BadInputError."""
        label, _, number = text.partition(":")
        method, at, variant = label.partition("@")
        require_method(method)
        if number and not (number.isdecimal() and int(number) > 0):
            raise BadInputError(f"'{text}' is not METHOD:SEEDS", hint=f"write {method}:3 for three seeds")
        if at and not re.fullmatch(r"[\w.-]+", variant):
            raise BadInputError(f"'{text}' is not METHOD@VARIANT", hint=f"write {method}@small, letters and digits")
        own = REWARD_BASELINES.get(method, ())
        return cls("jdm" if own else method, label, int(number or 1), (*own, *changes.get(label, ())))


@dataclass(frozen=True)
class Cell:
    """One run, in its own folder, by an ordinary `jdmctl add-control` or `jdmctl align`."""

    label: str
    number: int  # of its seed: a recipe's own is the first
    recipe: Recipe
    folder: Path

    @property
    def name(self) -> str:
        return f"{self.label}-{self.number}"

    @property
    def called(self) -> str:
        """What rows call what it draws in one step."""
        return PLUGGED + self.label.removeprefix("dsm") if self.recipe.method == "dsm" else self.label

    @property
    def told(self) -> str:
        """Its name, after what rows call it where that is something else: `ControlNet plugged in (dsm-0)`."""
        return self.name if self.called == self.label else f"{self.called} ({self.name})"

    @property
    def is_done(self) -> bool:
        """Whether all is there that its training leaves; what is given needs none."""
        if self.is_given:
            return True
        own = self.recipe.student_folder
        left = [*self.branches().values(), *([self.folder / own] if own else [])]
        return all(folder.is_dir() for folder in left)

    @property
    def is_given(self) -> bool:
        """An ordinary ControlNet that is there already: nothing to train."""
        return self.recipe.method == "dsm" and all(control.teacher_branch for control in self.recipe.controls)

    @property
    def state(self) -> str:
        return "given" if self.is_given else "done" if self.is_done else "missing"

    def branches(self) -> dict[str, Path]:
        """Control -> the ControlNet that it leaves, or that is given: a folder, or a hub name."""
        if self.is_given:
            return {
                control.name: Path(resolve(control.teacher_branch, f"controlnet_{control.name}"))
                for control in self.recipe.controls
            }
        return {name: self.folder / own for name, own in self.recipe.branch_folders.items()}

    def history(self) -> History:
        """Of its training so far; a method that needs an ordinary ControlNet begins after that one's training."""
        return History.of(self.folder).after(sum(one.history().seconds for one in self.needed()))

    def needed(self) -> list[Cell]:
        """The runs that trained its teacher's ControlNets; of one that is merely given there is none."""
        is_aware = self.recipe.method in AWARE_TEACHERS
        runs = {Path(control.teacher_branch).parent for control in self.recipe.controls if is_aware}
        return [Cell(run.name, 0, load_recipe(run), run) for run in sorted(runs) if (run / RECIPE_FILE).is_file()]


def plan(recipe: str, overrides: Sequence[str], entries: Sequence[Entry], folder: Path) -> list[Cell]:
    """Cells in order of value: every method's first seed, then the second seeds, and so on.

    Methods whose teacher sees the control use the ControlNet of `dsm`, which then comes first.

    Raises:
        BadInputError: such a method is there, and neither `dsm` nor a ControlNet in the recipe.
        MissingWeightsError: a ControlNet that is given is not there.
        RecipeError: a recipe is not valid.
    """
    common = load_recipe(recipe, overrides)
    settled = [f"controls.{control.name}.teacher_branch" for control in common.controls if control.teacher_branch]
    ordinary: Cell | None = None  # of dsm
    cells: list[Cell] = []
    for entry in sorted(entries, key=lambda entry: entry.method in AWARE_TEACHERS):
        given = [*settled, *(change.partition("=")[0] for change in entry.changes)]
        own = [f"method={entry.method}", f"name={re.sub('[@+]+', '-', entry.label)}"]
        if entry.method in ("dsm", "nct", "redistill"):  # a branch's warm-up belongs to JDM's recipe
            own += _plain_start(common)
        if entry.method in ("dsm", "nct"):  # they train a branch alone, and match no distributions
            own += ["student.trainable=frozen", f"objective.divergence={DEFAULT_DIVERGENCE}"]
            own += ["objective.gan_weight=0", "objective.ratio=joint"]
        if entry.method in AWARE_TEACHERS:
            wanted = {f"controls.{name}.teacher_branch": name for name in common.branch_folders}
            missing = {key: name for key, name in wanted.items() if key not in given}
            if missing and not ordinary:
                raise BadInputError(
                    f"{entry.method} needs an ordinary ControlNet",
                    hint=f"add --method dsm, or --set {entry.method}:{min(missing)}=FOLDER",
                )
            own += [f"{key}={_from_anywhere(ordinary, name)}" for key, name in missing.items() if ordinary]
        for number in range(entry.num_seeds):
            changes = [*overrides, *own, f"seed={common.seed + number}", *entry.changes]
            cells.append(Cell(entry.label, number, load_recipe(recipe, changes), folder / f"{entry.label}-{number}"))
            if entry.method == "dsm":
                ordinary = ordinary or cells[-1]
    _require_given(cells)
    return sorted(cells, key=lambda cell: cell.number)  # stable: methods stay in order


def _from_anywhere(ordinary: Cell, name: str) -> str:
    """The whole path of its ControlNet; of one that is given by its name on the hub, that."""
    branch = ordinary.branches()[name]
    return str(branch if ordinary.is_given and not branch.exists() else branch.resolve())


def _require_given(cells: Sequence[Cell]) -> None:
    """Raises MissingWeightsError for a given ControlNet that is not there: told before anything is trained."""
    for folder in dict.fromkeys(folder for cell in cells if cell.is_given for folder in cell.branches().values()):
        read_config(folder, None, "config.json")


def _plain_start(common: Recipe) -> list[str]:
    """Overrides that take a recipe's denoising warm-up out."""
    if not common.training.dsm_warmup_steps:
        return []
    warmed = [control.name for control in common.controls if control.init == "dsm"]
    return ["training.dsm_warmup_steps=0", *(f"controls.{name}.init=student" for name in warmed)]
