"""How fast a recipe trains on this machine and what it holds, with random weights of the published sizes.

    python examples/benchmarks/measure.py RECIPE ... [--steps 50] [--set KEY=VALUE] [--results FILE.json]

Nothing is downloaded: networks are made of their configurations as `jdmctl plan` makes them, with random weights, and
trained on random conditions by the loop that trains everything else. Beside each recipe stands the plain layout, three
copies (teacher, student and fake score each whole) of the same precision, trained weights, optimizer, batch and
checkpointing, measured in the same process; and beside the memory of both what the plan foretells.
"""

from __future__ import annotations

import argparse
import gc
import platform
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import quantiles
from typing import Any
from unittest.mock import patch

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from jdmctl.build import build_jdm_step
from jdmctl.build_plan import plan_memory, present_controls
from jdmctl.build_run import training_settings
from jdmctl.build_skeletons import prepared_roles, skeletons
from jdmctl.cli.evaluate import keep
from jdmctl.comparison.cost import networks
from jdmctl.controls.base import Control
from jdmctl.evaluation.results import Row, setup
from jdmctl.families.prompts import repeat
from jdmctl.families.skeleton import random_weights
from jdmctl.recipe import Recipe
from jdmctl.recipe_files import load_recipe
from jdmctl.training.batches import Batches
from jdmctl.training.checkpoint import Checkpoints
from jdmctl.training.loop import fit
from jdmctl.training.memory import held_bytes, weights_of
from jdmctl.training.plan import Stage
from jdmctl.training.run import make_accelerator

GIB = 2**30


@dataclass(frozen=True)
class Noise:
    """Samples of random conditions and pictures."""

    controls: Sequence[str]
    pixels: int

    def __len__(self) -> int:
        return 1024

    def text(self, index: int) -> str:
        return f"a photo of thing number {index}"

    def take(self, indices: Sequence[int]) -> tuple[Tensor, dict[str, Tensor]]:
        shape = len(indices), 3, self.pixels, self.pixels
        return torch.rand(shape), {name: torch.rand(shape) for name in self.controls}


class QuickNumbers(TorchFunctionMode):
    """Fills large tensors with the same random numbers over and over: a billion weights in a second, not in ten."""

    size = 2**20

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func not in (Tensor.uniform_, Tensor.normal_) or args[0].numel() <= self.size:
            return func(*args, **kwargs)
        numbers = func(args[0].new_empty(self.size), *args[1:], **kwargs)
        flat = args[0].view(-1)
        rows = flat.numel() // self.size
        flat[: rows * self.size].view(rows, -1).copy_(numbers)
        flat[rows * self.size :].copy_(numbers[: flat.numel() - rows * self.size])
        return args[0]


class Nowhere(Checkpoints):
    """Keeps nothing."""

    def save(self, name: str, tensors: Any, state: Any) -> Path:
        return self.folder / name

    def prune(self, keep: set[str]) -> None: ...


@dataclass
class Watch:
    """An observer that stops the clock and the count of bytes after the last update."""

    device: torch.device
    last: int
    starts: list[float] = field(default_factory=list)
    held: int = 0  # on a GPU, by its allocator
    update: int = 0  # the most that the last step had beside it

    def before_step(self, step: int) -> None:
        if step == self.last:
            self.start()
        self.starts.append(now(self.device))

    def start(self) -> None:
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            self.held = torch.cuda.memory_allocated(self.device)
        else:
            self.seen = torch.profiler.profile(
                activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
            ).__enter__()

    def log(self, record: dict[str, Any]) -> None:
        if record["event"] == "step" and record["step"] == self.last + 1:
            if self.device.type == "cuda":
                self.update = torch.cuda.max_memory_allocated(self.device) - self.held
            else:
                self.seen.__exit__(None, None, None)
                self.update = peak_of(self.seen)

    def validate(self) -> dict[str, float]:
        return {"score": 0.0}

    def preview(self, name: str) -> None: ...


def peak_of(seen: torch.profiler.profile) -> int:
    """The most bytes that torch's CPU allocator had given out at once beyond what it had at the start."""
    events = [e for e in seen.profiler.kineto_results.events() if e.name() == "[memory]"]
    total = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        total += event.nbytes()
        peak = max(peak, total)
    return peak


def now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


@dataclass
class Shares:
    """Seconds in each network on the way forward, and in all ways back; inside, it is counted."""

    step: Any
    accelerator: Accelerator
    seconds: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))

    def __enter__(self) -> Shares:
        self.began = now(self.accelerator.device)
        self.hooks = [
            hook
            for name, module in networks(self.step).items()
            for hook in (
                module.register_forward_pre_hook(lambda *_, name=name: self.count(name, -1)),
                module.register_forward_hook(lambda *_, name=name: self.count(name, +1)),
            )
        ]
        self.patches = [
            patch.object(self.accelerator, "backward", self.timed(self.accelerator.backward)),
            patch.object(torch.autograd, "grad", self.timed(torch.autograd.grad)),
        ]
        for patched in self.patches:
            patched.start()
        return self

    def timed(self, backward: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            self.count("backward passes", -1)
            result = backward(*args, **options)
            self.count("backward passes", +1)
            return result

        return call

    def count(self, name: str, sign: int) -> None:
        self.seconds[name] += sign * now(self.accelerator.device)

    def __exit__(self, *_: Any) -> None:
        whole = now(self.accelerator.device) - self.began
        for patched in self.patches:
            patched.stop()
        for hook in self.hooks:
            hook.remove()
        self.seconds["all else"] = whole - sum(self.seconds.values())


def measure(recipe: Recipe, three_copies: bool, num_steps: int) -> dict[str, tuple[float, float, float]]:
    """Metric -> value, low and high, of one layout on the accelerator at hand."""
    AcceleratorState._reset_state()  # which would keep the precision of the recipe before
    accelerator = make_accelerator("", recipe.training.precision)
    device, training = accelerator.device, recipe.training
    with skeletons(recipe) as local, random_weights(), QuickNumbers():
        family, _ = prepared_roles(local, device)
        if recipe.memory.cache_embeddings:
            prompt, empty = family.encode_prompt([""]), family.empty_prompt(1)
            family.use_prompts(lambda texts: repeat(prompt, len(texts)), empty)
        controls, _ = present_controls(local, device)
        step = build_jdm_step(local, family, controls)
    if three_copies:
        for parameter in step.fake_score.parameters():
            if not parameter.requires_grad:
                parameter.data = parameter.data.clone()
    step.weights.update(dict.fromkeys(step.weights, 1.0))
    batches = Batches(
        Noise(list(controls), family.resolution_px),
        family.encode_prompt,
        recipe.seed,
        training.batch_size,
        training.gradient_accumulation_steps,
        device=device,
    )

    def run(watch: Watch, number: int) -> Any:
        stage = Stage(
            "benchmark", step, number, "benchmark", averaged=step.student_parameters, before_step=watch.before_step
        )
        never = {f"{what}_every_steps": 10**9 for what in ("log", "save", "validate", "preview")}
        settings = replace(training_settings(recipe), **never)
        return fit([stage], batches, settings, accelerator=accelerator, checkpoints=Nowhere(Path()), observer=watch)

    watch = Watch(device, last=num_steps - 1)
    state = run(watch, num_steps)
    seconds = [b - a for a, b in zip(watch.starts[1:-2], watch.starts[2:-1], strict=True)]  # not the first nor the last
    images = [training.batch_size / one for one in quantiles(seconds, n=4, method="inclusive")]
    held = watch.held or count_held(recipe, family, step, state, controls)
    del state
    found = {
        "images/s": (images[1], images[2], images[0]),
        "peak GiB": one(held + watch.update),
        "weights and optimizer GiB": one(held),
        "activations GiB": one(watch.update),
    }
    with Shares(step, accelerator) as shares:
        run(Watch(device, last=-1), max(2, num_steps // 5))
    whole = sum(shares.seconds.values())
    return found | {f"% {name}": (100 * value / whole,) * 3 for name, value in shares.seconds.items()}


def count_held(recipe: Recipe, family: Any, step: Any, state: Any, controls: Mapping[str, Control]) -> int:
    """Bytes that would lie on a device, where the CPU's own allocator cannot tell."""
    extractors = [value for control in controls.values() for value in vars(control).values()]
    tensors = weights_of(*networks(step).values(), *(one for one in extractors if isinstance(one, nn.Module)))
    tensors += weights_of(family.teacher, step.student, step.fake_score, family.parts["vae"])
    tensors += [] if recipe.memory.cache_embeddings else weights_of(*family.text_encoders)
    tensors += [] if recipe.memory.average_on_cpu else state.average.values
    moments = (value for o in state.optimizers.values() for kept in o.state.values() for value in kept.values())
    tensors += [value for value in moments if torch.is_tensor(value)]
    return held_bytes({"all": tensors})["all"]


def one(size: int) -> tuple[float, float, float]:
    return (size / GIB,) * 3


def main_stage(recipe: Recipe) -> Recipe:
    """The recipe without the warm-ups before its main stage, which are not run here and which a plan would count."""
    controls = [c.model_copy(update={"init": "student"}) if c.init == "dsm" else c for c in recipe.controls]
    training = recipe.training.model_copy(update={"dsm_warmup_steps": 0, "regression_steps": 0})
    return recipe.model_copy(update={"controls": tuple(controls), "training": training})


def copies_of(recipe: Recipe) -> Recipe:
    """The recipe in the plain layout, nothing shared and nothing away from the device."""
    memory = recipe.memory.model_copy(update={"share_backbone": False, "offload": False})
    return recipe.model_copy(update={"memory": memory})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipes", nargs="+", metavar="RECIPE")
    parser.add_argument("--steps", type=int, default=50, help="five at least")
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--results", type=Path, help="file of rows, docs/results/NAME.json")
    arguments = parser.parse_args()
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
    where = gpu or f"{platform.machine()} CPU"
    for name in arguments.recipes:
        recipe = main_stage(load_recipe(name, arguments.overrides))
        label = " ".join([name, *(f"--set {change}" for change in arguments.overrides)])
        command = f"python examples/benchmarks/measure.py {label} --steps {arguments.steps}"
        how = setup(where if gpu else f"{where}, {torch.get_num_threads()} threads, beside other work")
        planned = plan_memory(recipe)
        working = {name: one for name, one in planned.working.items() if name != "validation"}  # which is not measured
        planned = replace(planned, working=working)
        for layout in (recipe, copies_of(recipe)):
            plain = layout is not recipe
            found = measure(layout, plain, arguments.steps)
            if not plain:
                found |= {"planned peak GiB": one(planned.peak), "planned weights and optimizer GiB": one(planned.held)}
            rows = [
                Row(f"{name.partition('/')[0]} on {where}", "+".join(c.name for c in recipe.controls),
                    f"{label}, three copies" if plain else label, 1, metric, *values, [recipe.seed],
                    arguments.steps, command, how)
                for metric, values in found.items()
            ]  # fmt: skip
            print("\n".join([rows[0].method, *(f"  {row.metric:40}{row.value:10.3f}" for row in rows)]), flush=True)
            keep(rows, arguments.results)
            gc.collect()
            if gpu:
                torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
