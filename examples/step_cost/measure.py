"""What a training step costs beyond its network passes, and whether it makes any pass too many.

    python examples/step_cost/measure.py [RECIPE] [--steps 20] [--results docs/results/step_cost.json]

Prints the passes of one step per network, counted by hooks, beside the stated minimum, and their operations; then the
wall time of whole steps (data with conditions that were extracted before, losses, optimisers, averages) over the sum of
the same bare passes timed in the same process.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from jdmctl.build_run import build_run
from jdmctl.cli.evaluate import keep
from jdmctl.comparison.cost import training_cost
from jdmctl.comparison.spent import shares
from jdmctl.evaluation.results import Row, setup
from jdmctl.recipe_files import load_recipe
from jdmctl.training.attention import training_attention
from jdmctl.training.checkpoint import Checkpoints
from jdmctl.training.loop import fit
from jdmctl.training.plan import Settings, Stage
from jdmctl.training.run import make_accelerator
from jdmctl.training.steps.jdm import JDMStep


def stated_minimum(step: JDMStep) -> dict[str, tuple[int, int]]:
    """Network -> (forward, backward) passes of one training step that the method cannot do without.

    k fake-score updates each draw a picture and denoise it; the student's update draws one, asks teacher (twice with
    guidance) and fake score for it, decodes it and goes back through the decoder once for each control.
    """
    k, controls = step.fake_score_updates, len(step.energies)
    guided = 1 if step.teacher.scale == 1 else 2
    through_teacher = controls if step.energy_at == "denoised" else 0
    passes = {
        "student": (k + 1, 1),
        "teacher": (guided * (2 if through_teacher else 1), guided * through_teacher),
        "fake score": (k + 1, k),
        "decoder": (1, controls),
        "encoder": (0, 0),
    }
    passes |= {f"student's {name} branch": (k + 1, 1) for name in step.student.branches}
    passes |= {f"fake score's {name} branch": (k + 1, k) for name in step.fake_score.branches}
    return passes


def bare_seconds(step: JDMStep, batch, autocast, repeats: int) -> float:
    """Seconds of one step's network passes alone, on tensors of the same shapes."""
    noise = torch.randn(len(batch), *step.latent_shape)
    t = torch.full((len(batch),), 0.5)
    seen = batch.conditions if step.form == "conditional" else None

    def fake_update() -> None:
        with torch.no_grad():
            x0 = step.student.generate(noise, batch.prompt, batch.conditions)
        step.fake_score(x0, t, batch.prompt, seen).mean().backward()

    def student_update() -> None:
        x0 = step.student.generate(noise, batch.prompt, batch.conditions)
        with torch.no_grad():
            step.teacher(noise, t, batch.prompt)
            step.fake_score(noise, t, batch.prompt, seen)
        if step.energies:
            leaf = x0.detach().requires_grad_()
            image = step.codec.decode(leaf)
            for energy in step.energies:
                value = energy(image, batch).sum()
                torch.autograd.grad(value, leaf, retain_graph=energy is not step.energies[-1])
        x0.mean().backward()

    began = time.perf_counter()
    for _ in range(repeats):
        with autocast(), training_attention("cpu"):
            for _ in range(step.fake_score_updates):
                fake_update()
            student_update()
    return (time.perf_counter() - began) / repeats


class Quiet:
    """An observer that looks at nothing."""

    def log(self, record) -> None: ...

    def validate(self) -> dict[str, float]:
        return {"score": 0.0}

    def preview(self, name: str) -> None: ...


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", nargs="?", default="tiny/depth")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--results", type=Path, help="file of rows, docs/results/NAME.json")
    arguments = parser.parse_args()

    recipe = load_recipe(arguments.recipe)
    accelerator = make_accelerator("", recipe.training.precision)
    run = build_run(recipe, accelerator)
    stage = run.stages[-1]
    step = stage.step
    for energy in step.energies:
        step.weights[energy.name] = 1.0
    batch = run.batches.batch("student", 0, 0)

    with accelerator.autocast():
        cost, least = training_cost(step, lambda phase: run.batches.batch(phase, 0)), stated_minimum(step)
    print(f"{'passes of one step':24}{'forward':>9}{'backward':>10}   stated minimum")
    for name, passes in cost.passes.items():
        print(f"{name:24}{passes[0]:9}{passes[1]:10}   {least[name][0]}, {least[name][1]}")

    print(f"{cost.flops / 1e9:.1f} GFLOP a step, of a batch of {len(batch)}: {shares(cost)}")

    for phase in step.phases:
        for number in range(arguments.steps * phase.repeats):
            run.batches.batch(phase.name, number)  # conditions are extracted once and kept
    moments: list[float] = []
    timed = Stage("cost", step, arguments.steps, "cost", before_step=lambda _: moments.append(time.perf_counter()))
    far = 10**9
    settings = Settings(run.settings.optimizers, run.settings.batch_size, log_every_steps=far, save_every_steps=far,
                        validate_every_steps=far, preview_every_steps=far)  # fmt: skip
    before = bare_seconds(step, batch, accelerator.autocast, 8)
    with TemporaryDirectory() as folder:
        fit([timed], run.batches, settings, accelerator=accelerator, checkpoints=Checkpoints(Path(folder, "c")),
            observer=Quiet())  # fmt: skip
    after = bare_seconds(step, batch, accelerator.autocast, 8)
    whole = sorted(b - a for a, b in zip(moments[:-1], moments[1:], strict=True))[len(moments) // 2]
    bare = (before + after) / 2
    print(f"\nwhole step {whole:.3f} s, bare passes {bare:.3f} s (before {before:.3f}, after {after:.3f}): "
          f"ratio {whole / bare:.3f}")  # fmt: skip
    command = f"python examples/step_cost/measure.py {arguments.recipe} --steps {arguments.steps}"
    how = setup(f"batch of {len(batch)}, {recipe.training.precision}, {torch.get_num_threads()} threads")
    measured = {
        "GFLOP a step": [cost.flops / 1e9] * 3,
        "whole step / bare passes": [whole / bare, whole / max(before, after), whole / min(before, after)],
    }
    rows = [
        Row("tiny", "+".join(energy.name for energy in step.energies), arguments.recipe, 1, metric, *values,
            [recipe.seed], arguments.steps, command, how)
        for metric, values in measured.items()
    ]  # fmt: skip
    keep(rows, arguments.results)
    if cost.passes != least:
        raise SystemExit("the passes differ from the stated minimum")


if __name__ == "__main__":
    main()
