"""The comparisons: each yields (divergence, metric, value).

"Off by" is relative and the largest found: of a ratio or a weight h in one sample, of a gradient at x0 in the norm of
one sample, of a gradient at the student's weights in the norm of one tensor. Its interval is the range of the seeds.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from statistics import median

import torch
from ours import CHANNELS, Inputs, Networks, agreed_times, our_step, our_student_step
from theirs import FastGen, student_step
from torch import Tensor

from jdmctl.diffusion.schedule import DiscreteSchedule, RectifiedFlow, diffuse, expand
from jdmctl.evaluation.bootstrap import Estimate, bootstrap
from jdmctl.objectives.divergence import load_divergence
from jdmctl.objectives.ratio import RatioNormaliser, time_bins
from jdmctl.training.steps.weighting import sample_weights

KEYS = {
    "reverse-kl": "rkl", "softened-reverse-kl": "sf", "js": "js", "squared-hellinger": "sh", "forward-kl": "kl",
    "jeffreys": "jf", "neyman": "neyman",
}  # fmt: skip
SEEDS = list(range(5))
NUM_LOGITS = 256
GAN_WEIGHT = 1e-3  # FastGen's for CIFAR-10 and Stable Diffusion 1.5
Found = tuple[str, str, Estimate]


def off_by(ours: Tensor, theirs: Tensor) -> float:
    """Largest |ours - theirs| / |ours| along the first dimension."""
    ours, theirs = (values.double().reshape(len(values), -1) for values in (ours, theirs))
    return ((ours - theirs).norm(dim=1) / ours.norm(dim=1)).max().item()


def worst(values: list[float], samples: int) -> Estimate:
    """The largest, and the range of the seeds, each of so many samples."""
    return Estimate(max(values), min(values), max(values), len(values) * samples)


def exact(value: float, n: int) -> Estimate:
    return Estimate(value, value, value, n)


def weights(fastgen: FastGen) -> Iterator[Found]:
    """h(r) over log r in [-3, 3], in float64."""
    log_r = torch.linspace(-3, 3, 601, dtype=torch.float64)
    for name, key in KEYS.items():
        quotient = load_divergence(name).log_weight(log_r).exp() / fastgen.weights[key](log_r.exp())
        constant = quotient.median()
        yield name, "weight / FastGen's", Estimate(constant.item(), quotient.min().item(), quotient.max().item(), 601)
        yield name, "weight off a constant by", exact((quotient / constant - 1).abs().max().item(), 601)


def ratios(fastgen: FastGen) -> Iterator[Found]:
    """Normalised ratio and h of the same logits, some beyond the clamps, at the same times."""
    for name, key in list(KEYS.items())[1:]:  # its reverse KL does not run: see `its_reverse_kl`
        ratio_off, h_off = [], []
        for seed in SEEDS:
            logits, t = _logits_and_times(torch.Generator().manual_seed(seed))
            model = fastgen.model(Networks(0), key)
            their_h = model._get_f_div_weighting_h(logits[:, None], t)
            our_h, _ = sample_weights(load_divergence(name), RatioNormaliser(), logits, [], t)
            h_off.append(off_by(our_h, their_h))
            seen: list[Tensor] = []
            model.f_div_weighting_function = lambda ratio, seen=seen: seen.append(ratio) or ratio
            model._get_f_div_weighting_h(logits[:, None], t)
            ratio_off.append(off_by(RatioNormaliser()(logits, t).exp(), seen[0]))
        yield name, "ratio off by", worst(ratio_off, NUM_LOGITS)
        yield name, "h off by", worst(h_off, NUM_LOGITS)


def moving_average(fastgen: FastGen) -> Iterator[Found]:
    """Their bins begin at 1, ours at the first batch's means: how long that is seen, at a rate of 1/2."""
    off: list[list[float]] = []
    for seed in SEEDS:
        generator = torch.Generator().manual_seed(seed)
        model, normaliser = fastgen.model(Networks(0), "js", ema_rate=0.5), RatioNormaliser(decay=0.5)
        off.append([])
        for _ in range(30):
            logits, t = _logits_and_times(generator)
            their_h = model._get_f_div_weighting_h(logits[:, None], t)
            our_h, _ = sample_weights(load_divergence("js"), normaliser, logits, [], t)
            off[-1].append(off_by(our_h, their_h))
    for batch in (1, 10, 30):
        yield "js", f"h at EMA 0.5 off in batch {batch} by", worst([seen[batch - 1] for seen in off], NUM_LOGITS)


def _logits_and_times(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    return 2.5 * torch.randn(NUM_LOGITS, generator=generator), agreed_times(NUM_LOGITS, generator)


def times(fastgen: FastGen) -> Iterator[Found]:
    """Shares of uniform times that mean another bin, or another row of Stable Diffusion's table of noise."""
    t = torch.linspace(0, 0.999, 100_001, dtype=torch.float64)
    flow = fastgen.noise_schedule()
    theirs = ((t - flow.min_t) / (flow.max_t - flow.min_t) * 10).long().clamp(0, 9)
    yield "any", "share of times in another bin", exact((theirs != time_bins(t, 10)).double().mean().item(), len(t))
    beta = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    table = (1 - beta).cumprod(0)
    rows = fastgen.table_schedule(table)._t_to_idx(t) - DiscreteSchedule(table).timestep(t)
    yield "any", "share of times in the next row", exact((rows.abs() == 1).double().mean().item(), len(t))
    yield "any", "rows apart at most", exact(float(rows.abs().max()), len(t))


def gradients(fastgen: FastGen, name: str, case: str) -> Iterator[Found]:
    """One student's step.

    Ours over theirs is the number of elements of a sample: their loss is a mean over them, ours a sum. Their GAN term
    is no such mean, so the same step has a GAN weight as many times larger here.
    """
    dtype = torch.float32 if case == " in float32" else torch.float64
    gan_weight = GAN_WEIGHT if "GAN" in case else 0.0
    at_x0, at_weights, samples = [], [], 0
    for seed in SEEDS:
        networks = Networks(seed, heads=2 if "two heads" in case else 1).to(dtype)
        inputs = Inputs.of(seed, dtype)
        samples, elements = inputs.size, inputs.z[0].numel()
        parameters = list(networks.student.parameters())
        step = our_step(networks, name, gan_weight * elements, side=inputs.z.shape[-1])
        total, x0 = our_student_step(step, inputs)
        ours = torch.autograd.grad(total, [x0, *parameters])
        total, x0 = student_step(_model(fastgen, networks, name, gan_weight), inputs)
        theirs = [elements * gradient for gradient in torch.autograd.grad(total, [x0, *parameters])]
        at_x0.append(off_by(ours[0], theirs[0]))
        at_weights.append(max(off_by(a[None], b[None]) for a, b in zip(ours[1:], theirs[1:], strict=True)))
    yield name, f"gradient at x0{case} off by", worst(at_x0, samples)
    yield name, f"gradient at weights{case} off by", worst(at_weights, samples)


def explained(fastgen: FastGen, name: str) -> Iterator[Found]:
    """What is left of the difference at x0 once their 1e-6 is added to every denominator here too."""
    left, samples = [], 0
    for seed in SEEDS:
        networks, inputs = Networks(seed).to(torch.float64), Inputs.of(seed, torch.float64)
        total, x0 = student_step(_model(fastgen, networks, name, 0.0), inputs)
        (theirs,) = torch.autograd.grad(total, x0)
        samples = inputs.size
        with torch.no_grad():
            left.append(off_by(_with_additions(fastgen, networks, name, inputs, x0), theirs))
    yield name, "gradient at x0 with 1e-6 added off by", worst(left, samples)


def _with_additions(fastgen: FastGen, networks: Networks, name: str, inputs: Inputs, x0: Tensor) -> Tensor:
    """h w (fake_x0 - teacher_x0) / (B elements), written out in float64."""
    t, tiny = inputs.t, 1e-6
    x_t = diffuse(RectifiedFlow(), x0, inputs.noise, t)
    teacher_x0, fake_x0 = networks.teacher(x_t, t), networks.fake_score(x_t, t)
    scale = 1 / ((x0 - teacher_x0).abs().flatten(1).mean(1) + tiny)
    if name != "reverse-kl":
        logits = networks.head(networks.teacher.features(x_t, t)).mean(1)
        r = logits.clamp(-10, 10).exp().clamp(0.1, 20)
        where = time_bins(t, 10)
        count, total = torch.bincount(where, minlength=10), torch.bincount(where, r, minlength=10)
        h = fastgen.weights[KEYS[name]](r / (total / (count + tiny) + tiny)[where])
        scale = scale * h / (h.mean() + tiny)
    return expand(scale, x0) * (fake_x0 - teacher_x0) / x0.numel()


def step_time(fastgen: FastGen, name: str, gan_weight: float, pairs: int) -> Iterator[Found]:
    """Loss and backward pass to the student's weights, alternating: a ratio of medians of processor time.

    Processor time, since others use the machine too; on one thread it is the time that a step takes.
    """
    networks, inputs = Networks(0, width=48, depth=3), Inputs.of(0, torch.float32, size=16, side=16)
    step = our_step(networks, name, gan_weight * CHANNELS * 16 * 16, side=16)
    model = _model(fastgen, networks, name, gan_weight)
    sides: list[Callable[[], Tensor]] = [
        lambda: our_student_step(step, inputs)[0],
        lambda: student_step(model, inputs)[0],
    ]
    seconds: list[list[float]] = [[], []]
    for pair in range(pairs + 3):  # the first three warm up
        for side in (0, 1) if pair % 2 else (1, 0):
            began = time.process_time()
            torch.autograd.grad(sides[side](), step.student_parameters)
            seconds[side].append(time.process_time() - began)
    ours, theirs = (values[3:] for values in seconds)
    case = "with" if gan_weight else "without"
    yield (
        name,
        f"step time / FastGen's {case} GAN",
        bootstrap(lambda chosen: median(ours[i] for i in chosen) / median(theirs[i] for i in chosen), pairs),
    )


def its_reverse_kl(fastgen: FastGen) -> str:
    """What its f-distill makes of reverse KL."""
    try:
        student_step(fastgen.model(Networks(0), "rkl"), Inputs.of(0, torch.float32))
    except TypeError as error:
        return f"FastGen's f-distill with rkl raises {type(error).__name__}: {error}; its DMD2 stands for reverse-kl"
    return "FastGen's f-distill with rkl runs; its DMD2 stands for reverse-kl all the same"


def _model(fastgen: FastGen, networks: Networks, name: str, gan_weight: float):
    return fastgen.model(networks, "" if name == "reverse-kl" else KEYS[name], gan_weight)
