"""`jdmctl distill` from the command to a student that plain diffusers draws with, on random tiny models."""

import json
import sys
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import load_file

from jdmctl.build import build_family, build_jdm_step, build_roles, build_trained
from jdmctl.build_run import build_run
from jdmctl.cli import app as cli
from jdmctl.comparison.contest import build_base
from jdmctl.errors import BadInputError, RecipeError
from jdmctl.recipe_files import load_recipe, parse_recipe
from jdmctl.recipe_sections import Model
from jdmctl.training.run import make_accelerator
from jdmctl.training.steps.regression import RegressionStep
from jdmctl.types import Batch

QUICK = (
    "training.batch_size=4",
    "training.num_steps=2",
    "training.validate_every_steps=1",
    "training.preview_every_steps=2",
    "training.log_every_steps=1",
    "training.teacher_steps=2",
    "fake_score.warmup_min_steps=0",
    "fake_score.warmup_max_steps=1",
    "fake_score.rank=2",
    "objective.guidance_scale=1.5",
    "data.num_validation_samples=4",
)
SET = [word for change in QUICK for word in ("--set", change)]


@pytest.fixture
def jdmctl(monkeypatch, capsys):
    def run(*words) -> str:
        AcceleratorState._reset_state()
        monkeypatch.setattr(sys, "argv", ["jdmctl", *map(str, words)])
        with pytest.raises(SystemExit) as left:
            cli.app()
        captured = capsys.readouterr()
        assert not left.value.code, captured.err
        return captured.out

    return run


def records(run: str, event: str) -> list[dict]:
    lines = [json.loads(line) for line in Path(run, "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["event"] == event]


@pytest.fixture
def many_photos(tmp_path):
    from tiny_sd import write_photos

    folder = tmp_path / "many"
    folder.mkdir()
    write_photos(folder, number=24)
    return folder


def test_a_student_of_a_teacher_and_pictures(in_tiny_world, tiny_folders, many_photos, jdmctl):
    """js needs a ratio, so a critic is trained; the student is another network than its teacher."""
    teacher = tiny_folders[0]
    out = jdmctl(
        "distill", "--teacher", teacher, "--data", many_photos, "--divergence", "js", "--gan-weight", 0.01, *SET,
        "-o", "run",
    )  # fmt: skip
    assert out.strip() == "run/student"
    warmup, *steps = records("run", "step")
    assert warmup["stage"] == "fake-score-warmup" and {"critic_loss", "fake_score_loss"} <= warmup.keys()
    assert {"fidelity_norm", "critic_loss", "critic_accuracy", "fake_score_loss"} <= steps[0].keys()
    by_time = [known for known in steps[0]["h_by_time"] if known is not None]
    assert len(steps[0]["h_by_time"]) == 10 and by_time and all(h > 0 for h in by_time)
    assert len(steps[0]["critic_accuracy_by_time"]) == 10
    validation = records("run", "validation")[-1]
    assert set(validation["adherence"]) == {"kid", "frechet", "recall"} and validation["frechet"] > 0
    pipe = StableDiffusionPipeline.from_pretrained("run/student", safety_checker=None)
    teacher_unet = UNet2DConditionModel.from_pretrained(teacher, subfolder="unet")
    assert any(not torch.equal(a, b) for a, b in zip(pipe.unet.parameters(), teacher_unet.parameters(), strict=True))
    image = pipe("a red box", num_inference_steps=1, guidance_scale=1.0, output_type="np").images[0]
    assert image.shape == (64, 64, 3)
    assert pipe.scheduler.timesteps.tolist() == [999]
    assert load_recipe("run").method == "distill"

    jdmctl("sample", "run", "-p", "a red box", "-o", "drawn")
    assert Path("drawn/grid.png").exists()


def test_a_student_as_a_lora(in_tiny_world, tiny_folders, many_photos, jdmctl):
    """It makes plain diffusers' pipeline of the teacher draw what the run draws, and is a student to others."""
    teacher = tiny_folders[0]
    words = ("--teacher", teacher, "--data", many_photos, "--trainable", "lora", *SET)
    assert jdmctl("distill", *words, "--learning-rate", 0.03, "-o", "run").strip() == "run/student_lora"
    latent = {}
    noise = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    for name, family in (
        ("left", build_trained(load_recipe("run"), Path("run"), {})),
        (
            "given",
            build_family(Model(family="stable_diffusion", teacher=str(teacher), student="run/student_lora"), "cpu"),
        ),
        ("teacher", build_base(load_recipe("run"))),
    ):
        latent[name] = family.student.generate(noise, family.encode_prompt(["a red box"] * 2), {}).detach()
    jdmctl("distill", *words, "--learning-rate", 0.03, "--set", "memory.share_backbone=true", "-o", "shared")
    lora = [load_file(Path(run, "student_lora", "pytorch_lora_weights.safetensors")) for run in ("run", "shared")]
    assert all(torch.equal(lora[0][name], lora[1][name]) for name in lora[0])
    held = build_roles(load_recipe("shared"), "cpu")
    assert next(held.student.backbone.parameters()) is next(held.teacher.backbone.parameters())
    assert torch.allclose(latent["left"], latent["given"], atol=1e-5)
    assert not torch.allclose(latent["left"], latent["teacher"], atol=1e-3)

    jdmctl("sample", "run", "-p", "a red box", "-o", "drawn")
    jdmctl("export", "run", "-o", "exported", "--check")
    assert Path("exported/student_lora").exists()


@pytest.mark.parametrize("divergence", ["sim", "alpha:0.5"])
def test_prompts_alone_and_the_teacher_s_own_samples(in_tiny_world, tiny_folders, jdmctl, divergence):
    """No picture anywhere: regression pairs, the critic's positives and the reference are the teacher's."""
    Path("prompts.txt").write_text("".join(f"a red box number {i}\n" for i in range(24)))
    jdmctl(
        "distill", "--teacher", tiny_folders[0], "--data", "prompts.txt", "--divergence", divergence, *SET, "-o", "run",
        "--set", "critic.positives=teacher", "--set", "training.regression_steps=2",
    )  # fmt: skip
    stages = [record["stage"] for record in records("run", "step")]
    assert stages[:2] == ["regression", "regression"]
    assert Path("run/student/model_index.json").exists()


@pytest.mark.parametrize("positives", ["pictures", "teacher"])
def test_what_the_critic_takes_for_true(in_tiny_world, tiny_folders, many_photos, positives):
    """Regression sees the teacher's own samples either way; the critic, as the recipe says."""
    values = {
        "name": "x", "method": "distill", "model": {"teacher": str(tiny_folders[0])},
        "data": {"source": "images", "path": str(many_photos)}, "critic": {"positives": positives},
    }  # fmt: skip
    recipe = parse_recipe(values, [*QUICK, "objective.gan_weight=0.1", "training.regression_steps=2"])
    batches = build_run(recipe, make_accelerator("cpu", "fp32")).batches
    assert batches.batch("regression", 0).latents is not None
    assert (batches.batch("critic", 0).latents is None) == (positives == "pictures")


@pytest.mark.parametrize("more", [(), ("critic.positives=teacher", "training.regression_steps=3")])
def test_a_run_that_was_stopped_goes_on_bit_for_bit(in_tiny_world, tiny_folders, many_photos, jdmctl, more):
    """The ratio's running means are a part of the state: without them the second half would weigh otherwise. So are not
    the teacher's samples, which are drawn again."""
    words = ("--teacher", tiny_folders[0], "--data", many_photos, "--divergence", "forward-kl", *SET,
             "--set", "training.save_every_steps=1", "--set", "training.lr_warmup_steps=1")  # fmt: skip
    words += tuple(word for change in more for word in ("--set", change))
    jdmctl("distill", *words, "--set", "training.num_steps=4", "-o", "whole")
    jdmctl("distill", *words, "-o", "half")  # 2 steps
    jdmctl("distill", "half", "--resume", "--num-steps", 4)
    whole, half = (_tensors(Path(run, "checkpoints", "step-000004")) for run in ("whole", "half"))
    assert whole.keys() == half.keys() and any("critic" in name for name in whole)
    assert all(torch.equal(whole[name], half[name]) for name in whole)


def _tensors(checkpoint: Path) -> dict[str, torch.Tensor]:
    loaded = {file.name: load_file(file) for file in checkpoint.glob("*.safetensors")}
    return {f"{file} {name}": value for file, tensors in loaded.items() for name, value in tensors.items()}


def test_a_student_that_is_given_goes_on(in_tiny_world, tiny_folders, many_photos, jdmctl):
    """What is not trained yet is that student, not the teacher."""
    teacher, student = tiny_folders
    words = ("--teacher", teacher, "--data", many_photos, *SET)
    jdmctl("distill", *words, "-o", "new")
    jdmctl("distill", *words, "--student", student, "-o", "on")
    assert records("on", "validation")[0]["frechet"] != records("new", "validation")[0]["frechet"]
    family = build_roles(load_recipe("on"), "cpu")
    given = UNet2DConditionModel.from_pretrained(student, subfolder="unet")
    for ours, theirs in zip(family.student.backbone.parameters(), given.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_too_few_pictures_to_validate_on_are_told_before_training(in_tiny_world, photos):
    """A quarter of twelve is held out; each drawn picture is compared by its third neighbour."""
    recipe = load_recipe("tiny/distill", [*QUICK, "data.source=images", f"data.path={photos}"])
    with pytest.raises(BadInputError, match="for 3 samples, and needs 4") as raised:
        build_run(recipe, make_accelerator("cpu", "fp32"))
    assert "give 16 samples or more" in raised.value.hint


def test_recipes_find_their_own_command(in_tiny_world, monkeypatch, capsys):
    commands = {"distill": "tiny/canny", "add-control": "tiny/distill"}
    for command, other in (("distill", "add-control"), ("add-control", "distill")):
        monkeypatch.setattr(sys, "argv", ["jdmctl", command, commands[command]])
        with pytest.raises(SystemExit):
            cli.main()
        assert f"jdmctl {other} {commands[command]}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["objective.divergence=jss"], "no divergence is named 'jss'"),
        (["objective.divergence=sim", "objective.gan_weight=0.1"], "do not go together"),
        (["objective.divergence=js", "data.source=prompts", "data.path=x.txt"], "critic.positives: teacher"),
        (["objective.gan_max_time=0.02"], "gan_max_time 0.02 is not above min_time 0.02"),
        (["method=jdm"], "name at least one"),
        (["controls=[{name: canny}]"], "without controls"),
    ],
)
def test_what_does_not_fit_together_is_told(changes, message):
    values = {"name": "x", "method": "distill", "model": {"teacher": "tiny"}, "data": {"source": "tiny"}}
    with pytest.raises(RecipeError, match=message):
        parse_recipe(values, changes)


@pytest.mark.parametrize("guidance", ["coupled", "decoupled"])
def test_guidance_leads_away_from_the_prompt_that_all_others_are_made_like(in_tiny_world, monkeypatch, guidance):
    """A loss is computed under autocast, where the text encoder would answer in bfloat16: it is asked before, once, in
    float32."""
    recipe = load_recipe("tiny/distill", [*QUICK, "training.precision=bf16", f"objective.guidance={guidance}"])
    family, accelerator = build_roles(recipe, "cpu"), make_accelerator("cpu", "bf16")
    expected, encode, asked = family.empty_prompt(3), family.encode_prompt, []
    monkeypatch.setattr(family, "encode_prompt", lambda texts: asked.append(texts) or encode(texts))
    step = build_jdm_step(recipe, family, {})
    with accelerator.autocast():
        found = (step.guidance or step.teacher).empty_prompt(3)
        (step.guidance or step.teacher).empty_prompt(2)
    assert torch.equal(found, expected) and found.dtype == torch.float32
    assert asked == [[""]]


def test_regression_is_zero_where_the_student_is_its_teacher():
    class Student:
        def generate(self, noise, prompt, controls):
            return 2 * noise

    noise = torch.ones(3, 1, 2, 2)
    step = RegressionStep(Student(), ())
    batch = Batch(None, {}, None, latents=2 * noise, latent_noise=noise)
    assert step.loss(batch).total == 0
    off = Batch(None, {}, None, latents=2 * noise + 0.1, latent_noise=noise)
    # pseudo-Huber of 0.1 with c = 0.1: 0.1 (sqrt 2 - 1)
    assert step.loss(off).total.item() == pytest.approx(0.1 * (2**0.5 - 1), rel=1e-5)


def test_divergences_are_listed_with_their_weights(jdmctl):
    rows = {row["name"]: row for row in map(json.loads, jdmctl("divergences", "--json").splitlines())}
    assert rows["forward-kl"]["h(10)"] == "10" and rows["reverse-kl"]["h(0.1)"] == "1"
    assert "hellinger" in rows["squared-hellinger"]["also"] and "sid" in rows


def test_a_student_that_draws_at_another_time_is_compared_with_the_world_s_own_at_its_time(in_tiny_world):
    recipe = load_recipe("tiny/distill", ["model.student_timestep=399"])
    family, usual = build_base(recipe), build_base(load_recipe("tiny/distill"))
    noise, prompt = torch.randn(2, *usual.latent_shape), usual.encode_prompt(["a red cone", ""])
    assert torch.equal(family.student.generate(noise, prompt), usual.student.generate(noise, prompt))
    other = build_family(recipe.model.model_copy(update={"student": "tiny"}), "cpu")
    assert not torch.equal(other.student.generate(noise, prompt), usual.student.generate(noise, prompt))
