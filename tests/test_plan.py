"""`jdmctl plan` against what a run of the tiny world really holds."""

import json
import shutil
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from jdmctl import build_plan
from jdmctl.build import build_roles
from jdmctl.build_plan import MemoryPlan, plan_memory, suggestions
from jdmctl.build_run import build_run
from jdmctl.cli.plan import plan
from jdmctl.errors import JdmError
from jdmctl.families.offload import offloaded_weights
from jdmctl.families.published import find_published, published
from jdmctl.families.standins.write import STAND_INS
from jdmctl.objectives.guidance import Guided
from jdmctl.recipe_files import load_recipe, parse_recipe
from jdmctl.training.memory import PeakBytes, Working, held_bytes, weights_of
from jdmctl.training.run import make_accelerator
from jdmctl.training.state import TrainingState

SMALL = ["training.batch_size=4", "data.num_samples=8", "data.num_validation_samples=4"]
LORA = "fake_score.trainable=lora"
needs_bitsandbytes = pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="the extra 8bit")
WAIT = 60  # seconds, far more than it takes
OFFLOAD = "memory.offload=true"
EIGHT_BIT = "memory.optimizer=adamw_8bit"
LATENTS = "memory.cache_latents=true"
LOW_MEMORY = [
    "memory.gradient_checkpointing=true",
    "memory.average_on_cpu=true",
    "memory.cache_embeddings=true",
    "memory.frozen_precision=bf16",
]


def allocated(update) -> int:
    """The most bytes that torch's CPU allocator had given out at once beyond what it had at the start."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as seen:
        update()
    events = [e for e in seen.profiler.kineto_results.events() if e.name() == "[memory]"]
    now = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    return peak


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("tiny/canny", ["training.precision=fp32"]),
        ("tiny/lowres", ["training.precision=bf16", "training.gradient_accumulation_steps=2", LORA]),
        ("tiny/canny", ["training.precision=bf16", LORA, *LOW_MEMORY]),
        ("tiny/canny", ["training.precision=bf16", LORA, *LOW_MEMORY, OFFLOAD]),
        ("tiny/canny", ["training.precision=bf16", LORA, *LOW_MEMORY, LATENTS]),
        pytest.param("tiny/canny", ["training.precision=fp32", EIGHT_BIT], marks=needs_bitsandbytes),
    ],
)
def test_the_plan_is_what_a_real_run_holds(in_tiny_world, name, changes):
    """Weights, moments and average to the byte, and each phase's peak within 10 % of what the allocator gave out."""
    recipe = load_recipe(name, [*SMALL, *changes])
    planned = plan_memory(recipe)
    accelerator = make_accelerator("cpu", recipe.training.precision)
    run = build_run(recipe, accelerator)
    phases = {phase.name: phase for stage in run.stages for phase in stage.step.phases}
    state = TrainingState(list(phases.values()), run.settings.optimizers, 0.99)
    pieces = run.settings.gradient_accumulation_steps
    for phase in phases.values():

        def update(phase=phase):
            for piece in range(pieces):
                batch = run.batches.batch(phase.name, 0, piece)
                with accelerator.autocast():
                    losses = phase.loss(batch)
                losses.total.backward()
                del losses

        update()  # conditions are made and kept, the energies get weights
        for parameter in phase.parameters:
            parameter.grad = None
        measured = allocated(update)
        assert planned.working[phase.name].peak == pytest.approx(measured, rel=0.1), phase.name
        state.optimizers[phase.name].step()
        state.optimizers[phase.name].zero_grad(set_to_none=True)
    if recipe.memory.cache_latents:
        codec, other = run.stages[-1].step.codec, torch.rand(1, 3, 64, 64)
        new = allocated(lambda: (run.batches.batch("dsm", 0), codec.encode(other)))
        assert planned.working["new latents"].peak == pytest.approx(new, rel=0.1)
    first = run.validation.batches[0]
    shown = allocated(lambda: run.validation.draw(first)) + held_bytes({"": first.conditions.values()})[""]
    assert planned.working["validation"].peak == pytest.approx(shown, rel=0.1)
    moments = [t for one in state.optimizers.values() for s in one.state.values() for t in s.values()]
    assert planned.optimizer == held_bytes({"all": [t for t in moments if torch.is_tensor(t)]})["all"]
    state.enter(0, run.stages[-1].averaged)
    assert planned.average == (not recipe.memory.average_on_cpu) * sum(t.nbytes for t in state.average.values)
    assert ("text encoders" in planned.weights) != recipe.memory.cache_embeddings
    step = run.stages[-1].step
    teacher = step.teacher.denoiser if isinstance(step.teacher, Guided) else step.teacher
    real = {"teacher": teacher, "student": step.student, "fake": step.fake_score, "vae": step.codec.vae}
    held = sum(held_bytes({name: weights_of(module) for name, module in real.items()}).values())
    names = ("teacher", "student", "control branches", "fake score", "VAE")
    assert sum(planned.weights.get(name, 0) for name in names) == held


def test_peak_counts_what_lives_together():
    """Two of 400 bytes at once, the third after one of them is gone; a view is nothing new."""
    with PeakBytes() as seen:
        a = torch.zeros(100)
        b = a + 1
        b.view(10, 10)
        del a
        assert (seen.now, seen.peak) == (400, 800)
        c = b * 2
        assert seen.peak == 800
        d = c + b
        assert seen.peak == 1200
    assert len(d) == 100


def test_the_worst_phase_makes_the_peak_and_a_gpu_keeps_one_gibibyte():
    gib = 2**30
    plan = MemoryPlan({"teacher": 4 * gib}, gib, gib, {"a": Working(0, gib), "b": Working(gib, 5 * gib)})
    assert plan.peak == 11 * gib
    assert plan.fits(12) and not plan.fits(11)


def test_sd_turbo_before_it_is_downloaded(in_tiny_world, capsys):
    """866 M parameters each for teacher and student, in float32, and a branch of 364 M; nothing is there on disk."""
    args = ["model.teacher=stabilityai/stable-diffusion-2-1-base", "model.student=stabilityai/sd-turbo"]
    args += ["method=dsm", "data.source=images", "data.path=photos", "training.batch_size=1"]
    args += ["controls=[{name: canny, init: student}]", "training.dsm_warmup_steps=0"]
    plan("tiny/canny", overrides=args, as_json=True)
    record = json.loads(capsys.readouterr().out)
    assert record["weights_bytes"]["teacher"] == record["weights_bytes"]["student"] == 4 * 865_910_724
    assert 300e6 < record["weights_bytes"]["control branches"] / 4 < 400e6
    assert record["optimizer_bytes"] > 8 * 300e6
    assert 80 in record["fits_gib"] and 8 not in record["fits_gib"]


SIGMA = "PixArt-alpha/PixArt-Sigma-XL-2-1024-MS"  # of which no student is published
PLANNED = {
    "sana_sprint/canny": [],
    "tiny/distill": [
        "model.family=pixart_sigma",
        f"model.teacher={SIGMA}",
        "data={source: prompts, path: prompts.txt}",
    ],
}


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", PLANNED)
def test_a_published_model_has_a_plan(name):
    """Its teacher holds as many parameters as are published, at two bytes each or at four, and beside them tables of
    places and norms that stay in float32: less than three hundredths. Each phase and the validation have a peak. Of
    one picture, to save time."""
    one = ["training.batch_size=1", "training.gradient_accumulation_steps=1"]
    recipe = load_recipe(name, [*PLANNED[name], *one])
    planned = plan_memory(recipe)
    teacher = find_published(recipe.model.teacher)
    count = published().components[teacher.backbone].build().num_parameters()
    bytes_each = 4 if recipe.memory.frozen_precision == "fp32" else 2
    assert 1 <= planned.weights["teacher"] / (count * bytes_each) < 1.03
    assert planned.working.keys() >= {"fake_score", "student", "validation"}
    assert all(one.peak > 0 for one in planned.working.values())


@pytest.mark.parametrize("family", ["qwen_image", "z_image"])
def test_a_pipeline_that_counts_its_words_is_played_without_a_tokenizer(family, tmp_path):
    """Its teacher's weights are as many bytes as in its file, in float32; its branch is trained, but for what its
    last block says to the text, which nobody reads."""
    STAND_INS[family].write(tmp_path)
    shutil.rmtree(tmp_path / "teacher" / "tokenizer")
    model = {"family": family, "teacher": str(tmp_path / "teacher"), "student": str(tmp_path / "student")}
    data = {"source": "prompts", "path": "prompts.txt"}
    recipe = parse_recipe({"name": "x", "model": model, "controls": [{"name": "canny"}], "data": data},
                          ["training.batch_size=2", LORA])  # fmt: skip
    planned = plan_memory(recipe)
    weights = load_file(tmp_path / "teacher/transformer/diffusion_pytorch_model.safetensors")
    assert planned.weights["teacher"] == 4 * sum(value.numel() for value in weights.values())
    trained = planned.working["student"].gradients / planned.weights["control branches"]
    assert trained == 1 if family == "z_image" else 0.8 < trained < 1


def test_switches_come_one_by_one_until_it_fits(in_tiny_world, monkeypatch):
    """What changes nothing goes first, then rounding, then the decoder; nothing is suggested that is there already."""

    def load(chosen):
        return load_recipe("tiny/distill", [*SMALL, "training.precision=fp32", *chosen])

    def by_pieces(recipe):
        """21 GiB, and as much less as there are switches set."""
        memory = recipe.memory
        used = (recipe.training.gradient_accumulation_steps > 1, recipe.training.precision == "bf16",
                recipe.fake_score.trainable == "lora", memory.gradient_checkpointing, memory.average_on_cpu,
                memory.cache_embeddings, memory.cache_latents,
                memory.offload, memory.frozen_precision == "bf16", memory.decoder != "",
                memory.optimizer != "adamw")  # fmt: skip
        return MemoryPlan({}, 0, 0, {"a": Working(0, (21 - sum(used)) * 2**30)})

    monkeypatch.setattr(build_plan, "plan_memory", by_pieces)
    found = list(suggestions(load(["fake_score.trainable=full"]), load, gibibytes=0))
    assert [one[-1] for one, _ in found] == [
        *LOW_MEMORY[:3], LATENTS, "training.gradient_accumulation_steps=4", OFFLOAD, "training.precision=bf16",
        LOW_MEMORY[3], "memory.decoder=madebyollin/taesd", LORA, EIGHT_BIT,
    ]  # fmt: skip
    assert [one.peak >> 30 for _, one in found] == list(range(20, 9, -1))
    assert len(list(suggestions(load([]), load, gibibytes=20))) == 2


def test_a_critic_that_pairs_pictures_keeps_two_in_a_piece(in_tiny_world, monkeypatch):
    def load(chosen):
        changes = ("objective.form=conditional", "objective.divergence=js", "training.batch_size=6")
        return load_recipe("tiny/canny", [*changes, *chosen])

    monkeypatch.setattr(build_plan, "plan_memory", lambda recipe: MemoryPlan({}, 2**40, 0, {"a": Working(0, 0)}))
    chosen = list(suggestions(load([]), load, gibibytes=0))[-1][0]
    assert "training.gradient_accumulation_steps=3" in chosen


def test_kept_latents_take_the_encoder_out_of_the_plan(in_tiny_world):
    """By what really stays away, and a new picture is encoded apart from any update."""
    dsm = [*SMALL, "method=dsm", "training.precision=fp32"]
    encoding, kept = (plan_memory(load_recipe("tiny/softedge", [*dsm, *more])) for more in ([], [LATENTS]))
    away = offloaded_weights(build_roles(load_recipe("tiny/softedge", [*dsm, LATENTS]), "cpu").parts["vae"])
    assert encoding.weights["VAE"] - kept.weights["VAE"] == sum(weight.nbytes for weight in away) > 0
    assert encoding.working.keys() == {"dsm", "validation"}
    assert kept.working.keys() == {"dsm", "new latents", "validation"}


def test_the_process_that_plays_ends_with_its_parent():
    """Killed, the parent cannot end it; played plans take gigabytes."""
    played = (
        f"import time; from jdmctl import build_plan; build_plan._begin(); print('up', flush=True); time.sleep({WAIT})"
    )
    script = (
        "from multiprocessing import get_context; import time\n"
        f"child = get_context('spawn').Process(target=exec, args=({played!r},)); child.start()\n"
        f"print(child.pid, flush=True); time.sleep({WAIT})"
    )
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    child, up = int(parent.stdout.readline()), parent.stdout.readline()
    assert up == "up\n"
    parent.kill()
    parent.wait()
    for _ in range(100):
        if not is_running(child):
            break
        time.sleep(0.1)
    assert not is_running(child)


def is_running(pid: int) -> bool:
    """A process that has ended and that nobody waited for is not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def test_an_unknown_model_is_told(in_tiny_world):
    with pytest.raises(JdmError, match="nobody/nothing"):
        plan_memory(load_recipe("tiny/canny", [*SMALL, "model.teacher=nobody/nothing"]))
