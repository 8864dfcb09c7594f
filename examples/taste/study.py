"""A student learns a taste from choices alone, in several ways, and is judged by the taste itself.

    python examples/taste/taste.py                                   # 5,000 choices
    jdmctl reward fit runs/taste/preferences.jsonl --encoder tiny/classifier --grid 2 --layer 0 -o runs/taste/reward
    python examples/taste/study.py                                   # trains what is missing, then measures

Writes docs/results/taste.json. Trained ways are ordinary runs of `jdmctl align tiny/align`; a cell that is there is
not trained again. Each way has its own knob for how far it goes (`ARMS`): the ratio of gradient norms where fidelity
holds it, the weight of the squared distance to the first weights, the number of updates where nothing holds it.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from taste import draw, noises, taste
from torch import Tensor

from jdmctl.build import build_trained, resolve
from jdmctl.comparison.contest import world_report
from jdmctl.comparison.marks import mean_of_known, open_entropy_ratios
from jdmctl.evaluation.bootstrap import bootstrap
from jdmctl.evaluation.fidelity import frechet_distance, tilted_weights
from jdmctl.evaluation.prompts import OPEN, stated_accuracy
from jdmctl.evaluation.results import Row, merge, read, setup, table, write
from jdmctl.families.stable_diffusion import StableDiffusion
from jdmctl.recipe_files import load_recipe
from jdmctl.rewards.preference import Preference
from jdmctl.search import best_of, refine_noise
from jdmctl.tinyworld.judge import Judge
from jdmctl.tinyworld.world import samples, world_folder

FREE = ("shape", "striped", "checkered")  # neither stated nor tasted, where a caption leaves them open
RESULTS = Path(__file__).parents[2] / "docs" / "results" / "taste.json"


@dataclass(frozen=True)
class Arm:
    """A way of training, what it changes in the recipe, and the knob that says how far it goes."""

    knob: str
    strengths: tuple[float, ...]
    changes: tuple[str, ...] = ()


_WITHOUT = ("objective.fidelity=false", "rewards.0.ratio=0.25", "training.ema_decay=0")
_FALLING = ("training.ema_decay=0", "training.lr_schedule=linear")
_MOMENTUM = "training.betas=[0.9,0.99]"
_WITH_GAN = (
    "training.lr_schedule=linear", "objective.gan_weight=0.3", "objective.gan_max_time=0.35", "critic.updates=2",
)  # fmt: skip
ARMS = {
    "jdm": Arm("rewards.0.ratio", (0.125, 0.25, 0.375, 0.5)),
    "jdm, in a hurry": Arm("training.num_steps", (8, 16, 32), ("rewards.0.ratio=1", "training.ema_decay=0")),
    "jdm, falling rate": Arm("rewards.0.ratio", (0.25, 0.375, 0.5), ("training.lr_schedule=linear",)),
    "jdm, in a hurry, falling rate": Arm("training.num_steps", (16, 18, 24), ("rewards.0.ratio=1", *_FALLING)),
    "jdm, in a great hurry, falling rate": Arm("training.num_steps", (8, 10, 12), ("rewards.0.ratio=2", *_FALLING)),
    "jdm, in a great hurry, falling rate, momentum": Arm(
        "training.num_steps", (10, 11), ("rewards.0.ratio=2", *_FALLING, _MOMENTUM)
    ),
    "jdm with GAN": Arm("rewards.0.ratio", (0.375,), _WITH_GAN),
    "jdm, guidance apart": Arm("rewards.0.ratio", (0.125, 0.25, 0.5), ("objective.guidance=decoupled",)),
    "reward only": Arm("training.num_steps", (4, 8, 16), _WITHOUT),
    "reward only, falling rate": Arm("training.num_steps", (6, 8), (*_WITHOUT, "training.lr_schedule=linear")),
    "reward only, momentum": Arm("training.num_steps", (4, 5), (*_WITHOUT, _MOMENTUM)),
    "reward only, falling rate, momentum": Arm(
        "training.num_steps", (6, 7), (*_WITHOUT, _MOMENTUM, "training.lr_schedule=linear")
    ),
    "reward + l2": Arm("student.l2_to_start", (1000, 3000, 10000, 30000), _WITHOUT),
}
SEARCHES = {"best of": (4, 16), "noise refined, steps": (2, 5, 10)}
_PLAIN = str.maketrans(" ", "-", ",+")
FEWEST = 50  # true pictures' worth of weight: a reference tilted further than that is a handful of pictures


def align_command(
    arm: Arm, strength: float, seed: int, student: str, guidance: float, reward: Path, run: Path
) -> list[str]:
    changes = [
        *([f"model.student={student}"] if student != "tiny/student" else []),
        *([f"objective.guidance_scale={guidance:g}"] if guidance else []),
        "rewards.0.options.encoder=tiny/classifier",
        "training.stop_on_alarm=false",
        *arm.changes,
        f"{arm.knob}={strength:g}",
    ]
    sets = [word for change in changes for word in ("--set", change)]
    given = ["--reward", f"preference={reward}", *sets, "--seed", str(seed), "-o", str(run)]
    return ["jdmctl", "align", "tiny/align", *given]


@dataclass(frozen=True)
class Exam:
    """The captions of a split, and everything that answers are measured against."""

    split: str
    captions: list[str]
    judge: Judge
    stated: dict[str, Tensor]
    true: dict[str, Tensor]
    reference: Tensor  # features [M, D]
    reference_taste: Tensor  # [M]
    reference_rest: Tensor  # [M]: of the taste, what captions do not foretell
    foretold: Tensor  # [N]: taste of a true picture of each caption, by a linear fit to what it states
    spread: float  # of the taste between two pictures of one prompt by the student before
    before: Tensor  # [N]: what it drew, by the taste

    @classmethod
    def make(cls, split: str, num: int, family: StableDiffusion) -> Exam:
        scenes, reference, judge = samples(split).first(num), samples("reference"), Judge.load(world_folder())
        captions = [scenes.text(i) for i in range(num)]
        first, second = (taste(draw(family, captions, 0, name)) for name in ("score", "again"))
        images = reference.image(slice(None))
        liked = taste(images)
        told, asked = (torch.cat([one.stated[:, 0], torch.ones(len(one.stated), 1)], 1).double()
                       for one in (reference, scenes))  # fmt: skip
        fit = torch.linalg.lstsq(told, liked.double()[:, None], driver="gelsd").solution  # of least norm
        return cls(
            split, captions, judge, judge.classes(scenes.stated[:, 0]), judge.classes(scenes.truth),
            judge.features(images), liked, (liked - (told @ fit)[:, 0]).float(), (asked @ fit)[:, 0].float(),
            ((first - second).square().mean() / 2).sqrt().item(), first,
        )  # fmt: skip

    def marks(self, images: Tensor) -> dict[str, tuple[float, float, float]]:
        """Metric -> value and 95 % interval over captions."""
        liked, features, shown = taste(images), self.judge.features(images), self.judge.shown(images)
        correct = torch.full((len(images), len(self.stated)), torch.nan, dtype=torch.float64)
        for column, (name, asked) in enumerate(self.stated.items()):
            correct[asked != OPEN, column] = stated_accuracy({name: shown[name]}, {name: asked})[name]
        free = {name: self.stated[name] for name in FREE}
        variety = mean_of_known(list(open_entropy_ratios(shown, free, self.true).values()))

        statistics = {
            "true taste gain": lambda chosen: ((liked - self.before)[chosen].mean() / self.spread).item(),
            "frechet": lambda chosen: frechet_distance(features[chosen], self.reference),
            "stated accuracy": lambda chosen: correct[chosen].nanmean().item(),
            "open entropy": variety,
        }
        tilts = {
            "frechet to tilted reference": _tilted(self.reference_taste, liked.mean().item()),
            "frechet to reference tilted within captions": _tilted(
                self.reference_rest, (liked - self.foretold).mean().item()
            ),
        }
        for name, weights in tilts.items():
            if weights is not None:
                statistics[name] = partial(self._frechet, features, weights)
        found = {}
        for name, statistic in statistics.items():
            one = bootstrap(statistic, len(images), centered=name.startswith("frechet"), resamples=100)
            found[name] = (one.value, one.low, one.high)
        return found

    def _frechet(self, features: Tensor, weights: Tensor, chosen: Tensor) -> float:
        return frechet_distance(features[chosen], self.reference, weights)


def _tilted(tastes: Tensor, mean: float) -> Tensor | None:
    """Weights of true pictures that bring them to this mean taste; None where almost none are so."""
    if not tastes.min() < mean < tastes.max():
        return None
    weights = tilted_weights(tastes, mean)
    return weights if 1 / weights.square().sum() >= FEWEST else None


def rows_of(exam: Exam, method: str, passes: int, drawn: list[Tensor], seeds: list[int], command: str) -> list[Row]:
    """Means over seeds; an interval holds every seed's."""
    each = [exam.marks(images) for images in drawn]
    how = setup(f"{exam.judge.name}, {len(exam.reference)} reference pictures", split=exam.split)
    rows = []
    for metric in sorted(set.intersection(*map(set, each))):
        values, lows, highs = zip(*(marks[metric] for marks in each), strict=True)
        rows.append(
            Row("tiny", "", method, passes, metric, sum(values) / len(values), min(lows), max(highs), seeds,
                len(exam.captions), command, how)
        )  # fmt: skip
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path("runs/taste"), help="with preferences and reward")
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS))
    parser.add_argument("--strengths", nargs="+", type=float, help="instead of the ways' own")
    parser.add_argument("--student", default="tiny/student", help="of the world's teacher: who is to learn the taste")
    parser.add_argument("--guidance", type=float, default=0.0, help="of the teacher, instead of the recipe's")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument(
        "--split", choices=("val", "test"), default="test", help="val to choose by, into other --results"
    )
    parser.add_argument("--num", type=int, default=500, help="captions")
    parser.add_argument("--search", action="store_true", help="also the guided teacher, best of n, noise refined")
    parser.add_argument("--results", type=Path, default=RESULTS)
    given = parser.parse_args()
    reward = given.folder / "reward"
    cells = given.folder / ("cells" if given.student == "tiny/student" else f"cells-{Path(given.student).name}")

    base = StableDiffusion.load(world_folder() / "teacher", resolve(given.student, "student"))
    exam = Exam.make(given.split, given.num, base)
    liking = Preference(str(reward), encoder=str(world_folder() / "classifier"))
    own = shlex.join(["python", "examples/taste/study.py", *sys.argv[1:]])
    keep(rows_of(exam, "student before", 1, [draw(base, exam.captions, 0, "score")], [0], own), given.results)
    if given.search:
        keep(rows_of(exam, "guided teacher", 50, [by_teacher(base, exam)], [0], own), given.results)
        for num in SEARCHES["best of"]:
            keep(rows_of(exam, f"best of {num}", num, [searched(base, liking, exam, num)], [0], own), given.results)
        for num in SEARCHES["noise refined, steps"]:
            drawn = [refined(base, liking, exam, num)]
            keep(rows_of(exam, f"noise refined (ReNO), {num} steps", num, drawn, [0], own), given.results)
    for name in given.arms:
        arm = ARMS[name]
        for strength in given.strengths or arm.strengths:
            drawn, commands = [], []
            for seed in given.seeds:
                run = cells / f"{name.translate(_PLAIN)}-{strength:g}-{seed}"
                command = align_command(arm, strength, seed, given.student, given.guidance, reward, run)
                if not (run / "student").is_dir():
                    subprocess.run([sys.executable, "-m", *command, "--quiet"], check=True)
                family = build_trained(load_recipe(run), run, {})
                drawn.append(draw(family, exam.captions, seed, "score"))
                commands.append(shlex.join(command))
            method = f"{name}, {arm.knob.rpartition('.')[2].replace('_', ' ')} {strength:g}"
            keep(rows_of(exam, method, 1, drawn, given.seeds, commands[0]), given.results)
    print(table(read(given.results)))


def by_teacher(family: StableDiffusion, exam: Exam) -> Tensor:
    scale, images = world_report()["teacher guidance"], []
    for part in torch.arange(len(exam.captions)).split(50):
        prompt = family.encode_prompt([exam.captions[i] for i in part.tolist()])
        latent = family.multistep(noises(family, part, 0, "score"), prompt, 25, scale)
        images.append(family.codec.decode(latent).clamp(0, 1))
    return torch.cat(images)


def searched(family: StableDiffusion, liking: Preference, exam: Exam, num: int) -> Tensor:
    parts = torch.arange(len(exam.captions)).split(50)
    return torch.cat(
        [
            best_of(
                family, liking, [exam.captions[i] for i in part.tolist()],
                [noises(family, part, 0, "score" if n == 0 else f"try {n}") for n in range(num)],
            )
            for part in parts
        ]
    )  # fmt: skip


def refined(family: StableDiffusion, liking: Preference, exam: Exam, num: int) -> Tensor:
    parts = torch.arange(len(exam.captions)).split(50)
    return torch.cat(
        [
            refine_noise(
                family, liking, [exam.captions[i] for i in part.tolist()], noises(family, part, 0, "score"), num
            )
            for part in parts
        ]
    )


def keep(rows: list[Row], results: Path) -> None:
    write(results, merge(read(results), rows))
    print(json.dumps({row.metric: round(row.value, 3) for row in rows} | {"method": rows[0].method}), flush=True)


if __name__ == "__main__":
    main()
