"""What a divergence does to a student that is too small: which modes it draws, and how far it stays in KL both ways.

    python examples/divergences/compare.py

The teacher has five modes in the plane, the student two ellipses. Each divergence trains it by the very step of
`jdmctl`, with exact scores and the exact ratio; some again with a ratio that a critic learns meanwhile. Writes
docs/results/divergences.json and the picture beside this file.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor
from world import RADIUS, SPREAD, Exact, ExactCritic, LearnedCritic, Mixture, TwoEllipses, teacher_mixture

from jdmctl.diffusion.schedule import RectifiedFlow
from jdmctl.diffusion.timesteps import UniformTimesteps
from jdmctl.evaluation.bootstrap import mean
from jdmctl.evaluation.results import Row, table, write
from jdmctl.objectives.divergence import load_divergence
from jdmctl.objectives.matching import Matching
from jdmctl.objectives.ratio import RatioNormaliser
from jdmctl.training.steps.jdm import JDMStep
from jdmctl.types import Batch, EnergyWeights

HERE = Path(__file__).parent
RESULTS = HERE.parents[1] / "docs" / "results" / "divergences.json"
EXACT = ("reverse-kl", "softened-reverse-kl", "js", "squared-hellinger", "jeffreys", "forward-kl", "neyman", "pearson")
LEARNED = ("js", "forward-kl")
BATCH_SIZE, LEARNING_RATE = 256, 2e-2
COVERED = 0.02  # share of the samples within three deviations of a mode, whose fair share is 0.2


@dataclass(frozen=True)
class PlaneDraws:
    """One generator's stream; the same name gives the same numbers within the batch."""

    generator: torch.Generator
    drawn: dict[str, Tensor]
    size: int = BATCH_SIZE

    def normal(self, name, shape):
        width = 3 if name == "student_noise" else 2  # the student needs one more, to choose its ellipse
        return self.drawn.setdefault(name, torch.randn(self.size, width, 1, 1, generator=self.generator))

    def uniform(self, name):
        return self.drawn.setdefault(name, torch.rand(self.size, generator=self.generator))


def train(divergence: str, is_exact: bool, seed: int, num_steps: int) -> TwoEllipses:
    teacher, student, schedule = teacher_mixture(), TwoEllipses(seed), RectifiedFlow()
    critic = ExactCritic(teacher, student, schedule) if is_exact else LearnedCritic(seed)
    step = JDMStep(
        student=student,
        teacher=Exact(teacher, schedule),
        fake_score=Exact(student, schedule),
        codec=None,
        schedule=schedule,
        timesteps=UniformTimesteps(0.1, 0.9),
        matching=Matching("kl"),
        energies=(),
        weights=EnergyWeights(),
        latent_shape=(2, 1, 1),
        student_parameters=tuple(student.parameters()),
        fake_score_parameters=(),
        divergence=load_divergence(divergence),
        critic=critic,
        critic_parameters=() if is_exact else tuple(critic.parameters()),
        critic_updates=4,
        normaliser=RatioNormaliser(low=0.01, high=100.0, decay=0.9),
    )
    phases = [phase for phase in step.phases if phase.parameters]  # the exact fake score has nothing to learn
    rates = {"student": LEARNING_RATE, "critic": 5e-3}
    optimizers = {p.name: torch.optim.Adam(p.parameters, lr=rates[p.name], betas=(0.5, 0.95)) for p in phases}
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizers["student"], num_steps)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(num_steps):
        for phase in phases:
            for _ in range(phase.repeats):
                real = teacher.sample(BATCH_SIZE, generator)[..., None, None] if phase.name == "critic" else None
                batch = Batch(None, {}, PlaneDraws(generator, {}), latents=real)
                optimizers[phase.name].zero_grad()
                phase.loss(batch).total.backward()
                optimizers[phase.name].step()
        decay.step()
    return student


@torch.no_grad()
def measure(student: TwoEllipses, seed: int, number: int = 20_000) -> tuple[dict[str, float], Tensor]:
    """Modes covered, and both KLs in nats over samples of their left side; and the student's samples [N, 2]."""
    p, q, generator = teacher_mixture(), student.mixture(), torch.Generator().manual_seed(1000 + seed)
    clean = torch.ones(number), torch.zeros(number)
    x = q.sample(number, generator)
    near = torch.cdist(x, p.means) < 3 * SPREAD
    return {
        "modes covered": float((near.double().mean(0) >= COVERED).sum()),
        "KL(student || teacher)": _kl(q, p, x, clean),
        "KL(teacher || student)": _kl(p, q, p.sample(number, generator), clean),
    }, x


def _kl(left: Mixture, right: Mixture, x: Tensor, clean: tuple[Tensor, Tensor]) -> float:
    return (left.log_density(x, *clean) - right.log_density(x, *clean)).mean().item()


def draw(pictures: dict[str, Tensor], path: Path) -> None:
    columns = 5
    rows = -(-len(pictures) // columns)
    figure = Figure(figsize=(2 * columns, 2.15 * rows))
    axes = figure.subplots(rows, columns, squeeze=False)
    real = teacher_mixture().sample(1500, torch.Generator().manual_seed(0))
    for axis in axes.flat:
        axis.set_axis_off()
    for axis, (name, x) in zip(axes.flat, pictures.items(), strict=False):
        axis.scatter(*real.T, s=1, color="0.8", linewidths=0)
        axis.scatter(*x[:800].T, s=1, color="tab:red", alpha=0.6, linewidths=0)
        axis.set(xlim=(-RADIUS - 2, RADIUS + 2), ylim=(-RADIUS - 2, RADIUS + 2), aspect="equal")
        axis.set_title(name, fontsize=8)
    figure.tight_layout(pad=0.8)
    figure.savefig(path, dpi=80)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--picture", type=Path, default=HERE / "samples.png")
    settings = parser.parse_args()
    torch.set_num_threads(1)
    seeds, rows, pictures = list(range(settings.seeds)), [], {}
    for is_exact, divergence in [*((True, name) for name in EXACT), *((False, name) for name in LEARNED)]:
        method = divergence if is_exact else f"{divergence}, learned ratio"
        found = []
        for seed in seeds:
            values, x = measure(train(divergence, is_exact, seed, settings.steps), seed)
            found.append(values)
            pictures.setdefault(method, x)
        for metric in found[0]:
            value = mean(torch.tensor([values[metric] for values in found]))
            command = "python examples/divergences/compare.py"
            rows.append(
                Row("mixture-2d", "", method, 1, metric, value.value, value.low, value.high, seeds, len(seeds), command)
            )
        print(table(rows[-3:]).splitlines()[-1], file=sys.stderr, flush=True)
    settings.output.parent.mkdir(parents=True, exist_ok=True)
    write(settings.output, rows)
    draw(pictures, settings.picture)
    print(table(rows))


if __name__ == "__main__":
    main()
