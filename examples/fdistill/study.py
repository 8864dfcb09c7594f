"""Which divergence makes the better one-step student, from the same start and each at its own best learning rate.

    python examples/fdistill/study.py                              # val: every divergence, GAN term or none, every rate
    python examples/fdistill/study.py --test js "js with GAN" --seeds 0 1 2     # test, beside reverse KL

Works on the world in use. All runs go on from one student that regression on the teacher's own pictures made; a run
that is there is not trained again. Writes docs/results/fdistill_search.json and docs/results/fdistill.json.
"""

from __future__ import annotations

import argparse
import json
import math
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

from jdmctl.build import build_trained
from jdmctl.comparison.contest import build_base
from jdmctl.comparison.heldout import Asked
from jdmctl.comparison.marks import Marks
from jdmctl.comparison.scenes import Scenes
from jdmctl.evaluation.results import Row, merge, read, setup, table, write
from jdmctl.recipe_files import load_recipe
from jdmctl.tinyworld.world import world_name

DIVERGENCES = ("reverse-kl", "js", "squared-hellinger", "forward-kl")
GAN_WEIGHT = 0.003
ARMS: dict[str, dict[str, str | float]] = {
    **{name: {"divergence": name} for name in DIVERGENCES},
    **{f"{name} with GAN": {"divergence": name, "gan_weight": GAN_WEIGHT} for name in DIVERGENCES},
    **{f"reverse-kl, guidance {scale}": {"guidance_scale": scale} for scale in (1, 1.5)},  # of the teacher; else 2
}
RATES = (5e-5, 1.5e-4)
USUAL = "reverse-kl"
RESULTS = Path(__file__).parents[2] / "docs" / "results"
NUM_VAL = 600
_DIAGNOSTICS = ("critic_accuracy", "h_min", "h_max", "h_ess", "ratio_log_mean")


def start_words(folder: Path) -> list[str]:
    """Regression on 5,000 pairs, and of the matching, which no run can be without, a single update."""
    return _words(
        "tiny/distill_pairs", folder / "regression", 0, "model.student_timestep=999", "training.regression_steps=1600",
        "training.num_steps=1", "data.num_samples=5000", "fake_score.warmup_min_steps=1",
        "fake_score.warmup_max_steps=1",
    )  # fmt: skip


def arm_words(folder: Path, arm: str, rate: float, seed: int) -> list[str]:
    name = arm.translate(str.maketrans(" ", "-", ","))
    return _words(
        "tiny/distill_pairs", folder / f"{name}-{rate:g}-{seed}", seed, "model.student_timestep=999",
        f"model.student={folder / 'regression' / 'student'}", "training.regression_steps=0", "training.num_steps=140",
        "training.ema_decay=0.97", "training.validate_every_steps=70", "training.preview_every_steps=140",
        "data.num_samples=6000", f"data.num_validation_samples={NUM_VAL}", f"training.learning_rate={rate:g}",
        *(f"objective.{key}={value}" for key, value in ARMS[arm].items()),
    )  # fmt: skip


def _words(recipe: str, run: Path, seed: int, *changes: str) -> list[str]:
    sets = [word for change in changes for word in ("--set", change)]
    return ["jdmctl", "distill", recipe, *sets, "--seed", str(seed), "-o", str(run)]


def train(words: list[str]) -> Path:
    """The finished run of a command."""
    run = Path(words[-1])
    if not (run / "student").is_dir():
        subprocess.run([sys.executable, "-m", *words, "--quiet"], check=True)
    return run


def search(folder: Path, arms: Sequence[str], rates: Sequence[float], results: Path) -> None:
    """Each arm at each rate, one seed, by the validation of the run itself; and what its critic said at the end."""
    for arm in arms:
        for rate in rates:
            words = arm_words(folder, arm, rate, 0)
            records = [json.loads(line) for line in (train(words) / "metrics.jsonl").read_text().splitlines()]
            last = [record for record in records if record["event"] == "validation"][-1]
            found = {metric: last[metric] for metric in ("frechet", "precision", "recall")}
            steps = [record for record in records if record["event"] == "step" and record["stage"] == "training"]
            late = steps[len(steps) // 2 :]
            found |= {key.replace("_", " "): fmean(r[key] for r in late) for key in _DIAGNOSTICS if key in late[0]}
            how = setup(f"validation while training, {NUM_VAL} pictures of val")
            rows = [
                Row(world_name(), "", f"{arm}, rate {rate:g}", 1, metric, value, value, value, [0], NUM_VAL,
                    shlex.join(words), how)
                for metric, value in found.items()
            ]  # fmt: skip
            write(results, merge(read(results), rows))
            print(rows[0].method, {row.metric: round(row.value, 3) for row in rows}, flush=True)


def best_rate(arm: str, searched: Sequence[Row]) -> float:
    """Of the smallest Frechet distance on val."""
    distances = {row.method: row.value for row in searched if row.metric == "frechet" and row.world == world_name()}
    return min(RATES, key=lambda rate: distances.get(f"{arm}, rate {rate:g}", math.inf))


def test(folder: Path, arms: Sequence[str], seeds: Sequence[int], num: int, results: Path, searched: Path) -> None:
    """Several seeds of each arm at its best rate, on test, and as shares of reverse KL's."""
    base = build_base(load_recipe(train(start_words(folder))))
    scenes = Asked(num=num).open(base.resolution_px).scenes({}).with_base(base)
    before = marks_of_runs(scenes, [folder / "regression"], [0])
    keep(results, scenes, "before matching", before, [0], start_words(folder))
    usual: Marks = {}
    for arm in (USUAL, *(arm for arm in arms if arm != USUAL)):
        rate = best_rate(arm, read(searched))
        runs = [train(arm_words(folder, arm, rate, seed)) for seed in seeds]
        marks = marks_of_runs(scenes, runs, seeds)
        usual = usual or marks
        ratios = scenes.compared(marks, {USUAL: usual}) if arm != USUAL else {}
        keep(results, scenes, arm, marks | ratios, seeds, arm_words(folder, arm, rate, seeds[0]))


def marks_of_runs(scenes: Scenes, runs: Sequence[Path], seeds: Sequence[int]) -> Marks:
    return scenes.marks(
        [scenes.draw(build_trained(load_recipe(run), run, {}), seed) for run, seed in zip(runs, seeds, strict=True)]
    )


def keep(results: Path, scenes: Scenes, method: str, marks: Marks, seeds: Sequence[int], words: list[str]) -> None:
    rows = scenes.rows(method, 1, marks, seeds, shlex.join(words))
    write(results, merge(read(results), rows))
    print(table([row for row in rows if row.metric.startswith(("frechet", "precision", "recall"))]), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path("runs/fdistill"))
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS), help="to search over")
    parser.add_argument("--rates", nargs="+", type=float, default=list(RATES), help="to search over")
    parser.add_argument("--test", nargs="+", choices=list(ARMS), help="these, instead of searching")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--num", type=int, default=1000, help="test captions")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder")
    given = parser.parse_args()
    searched = given.results / "fdistill_search.json"
    train(start_words(given.folder))
    if given.test:
        test(given.folder, given.test, given.seeds, given.num, given.results / "fdistill.json", searched)
    else:
        search(given.folder, given.arms, given.rates, searched)


if __name__ == "__main__":
    main()
