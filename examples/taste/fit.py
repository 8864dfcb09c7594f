"""What of a classifier the reward is fitted to: chosen within the prompts that it is fitted on, told on those held out.

    python examples/taste/fit.py                # after taste.py

Writes the reward of the layer and the grid that foretell best, and docs/results/taste_fit.json.
"""

from __future__ import annotations

import argparse
import itertools
import json
import shlex
import sys
from pathlib import Path

import torch

from jdmctl.cli.evaluate import keep
from jdmctl.evaluation.results import Row
from jdmctl.feedback.fit import Report, fit_preferences
from jdmctl.rewards.encoders import load_encoder
from jdmctl.tinyworld.world import world_folder

GRIDS, LAYERS = (1, 2, 4), (0, 1, -1)
RESULTS = Path(__file__).parents[2] / "docs" / "results" / "taste_fit.json"


def chosen(folder: Path) -> tuple[dict[tuple[int, int], Report], tuple[int, int]]:
    """Reports by grid and layer, and which foretells best, a quarter of the prompts to fit on set aside for it."""
    rows = [json.loads(line) for line in (folder / "preferences.jsonl").read_text(encoding="utf-8").splitlines()]
    within = folder / "within.jsonl"
    inside = [{key: row[key] for key in row if key != "split"} for row in rows if row["split"] == "train"]
    within.write_text("".join(json.dumps(row) + "\n" for row in inside), encoding="utf-8")
    reports = {
        (grid, layer): fit_preferences(
            within, load_encoder(str(world_folder() / "classifier"), grid, layer), folder / "tried" / f"{grid}-{layer}",
            held_out=0.25,
        )
        for grid, layer in itertools.product(GRIDS, LAYERS)
    }  # fmt: skip
    return reports, min(reports, key=lambda which: reports[which].held_out_log_loss)


def called(which: tuple[int, int]) -> str:
    return "grid {}, layer {}".format(*which)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path("runs/taste"), help="with what taste.py wrote")
    parser.add_argument("--results", type=Path, default=RESULTS)
    given = parser.parse_args()
    command = shlex.join(["python", "examples/taste/fit.py", *sys.argv[1:]])
    reports, best = chosen(given.folder)
    setup = f"a classifier's features, a Bradley-Terry head; torch {torch.__version__}"

    def rows(method: str, report: Report, more: dict[str, tuple[float, float, float]]) -> list[Row]:
        accuracy = report.held_out_accuracy
        values = {
            "accuracy": (accuracy.value, accuracy.low, accuracy.high),
            "log loss": (report.held_out_log_loss,) * 3,
            "calibration error": (report.calibration_error,) * 3,
            **more,
        }
        return [
            Row("tiny", "", method, 0, metric, *three, [0], report.num_held_out, command, setup)
            for metric, three in values.items()
        ]

    told = [row for which, report in reports.items() for row in rows(f"{called(which)}, within", report, {})]
    final = fit_preferences(
        given.folder / "preferences.jsonl", load_encoder(str(world_folder() / "classifier"), *best),
        given.folder / "reward",
    )  # fmt: skip
    attainable = json.loads((given.folder / "simulated.json").read_text())["attainable"]
    accuracy = final.held_out_accuracy
    share = [(value - 0.5) / (attainable - 0.5) for value in (accuracy.value, accuracy.low, accuracy.high)]
    more = {"attainable accuracy": (attainable,) * 3, "share of what is attainable": tuple(share)}
    keep([*told, *rows(called(best), final, more)], given.results)
    print(f"{called(best)}: {accuracy.value:.3f} of the choices on new prompts, {share[0]:.2f} of what is attainable")


if __name__ == "__main__":
    main()
