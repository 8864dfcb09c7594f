"""`jdmctl align` from the command to a student that plain diffusers draws with, on random tiny models."""

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file

from jdmctl.cli import app as cli
from jdmctl.cli.align import _rewards
from jdmctl.cli.training import plan
from jdmctl.errors import JdmError, RecipeError
from jdmctl.recipe_files import load_recipe, parse_recipe, to_yaml
from jdmctl.training.samples import StudentPictures
from jdmctl.training.steps.jdm import JDMStep
from jdmctl.training.watch import Watch

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
        return captured.out + captured.err

    return run


@pytest.fixture
def many_photos(tmp_path):
    from tiny_sd import write_photos

    folder = tmp_path / "many"
    folder.mkdir()
    write_photos(folder, number=24)
    return folder


def records(run: str, event: str) -> list[dict]:
    lines = [json.loads(line) for line in Path(run, "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["event"] == event]


def test_a_lora_for_a_reward_with_another_watching(in_tiny_world, many_photos, jdmctl, clip):
    words = ("--student", "tiny", "--teacher", "tiny", "--data", many_photos)
    out = jdmctl("align", *words, "--reward", "brightness", "--heldout", "warmth", *SET, "-o", "run")
    assert "run/student_lora" in out
    recipe = load_recipe("run")
    assert recipe.student.trainable == "lora" and recipe.name == "brightness"
    steps = [record for record in records("run", "step") if record["stage"] == "training"]
    assert {"fidelity_norm", "brightness_norm", "brightness_energy", "fake_score_loss"} <= steps[0].keys()
    validation = records("run", "validation")[-1]
    assert {"brightness", "warmth (held out)", "frechet", "diversity"} == set(validation["adherence"])
    assert {"kid", "recall", "sharpness", "saturation"} == set(validation["watched"])
    assert validation["sharpness"] > 0 and 0 <= validation["saturation"] <= 1
    assert Path("run/curve.png").exists() and list(Path("run/previews").iterdir())
    out = jdmctl("eval", "run", "--data", many_photos, "--features", clip, "--num", 8, "--json")
    rows = json.loads(out[out.index("{") :].splitlines()[0])["rows"]
    told = {(row["method"], row["metric"]): row["value"] for row in rows}
    for metric in ("reward brightness", "held-out reward warmth", "frechet"):
        assert {("jdm", metric), ("student without control", metric)} <= told.keys()
    jdmctl("sample", "run", "-p", "a red box", "-o", "drawn")
    assert Path("drawn/grid.png").exists()


def test_all_of_a_student_is_an_ordinary_pipeline(in_tiny_world, many_photos, jdmctl):
    """Full training, guidance apart and coupled: one pass of the result either way."""
    words = ("--student", "tiny", "--teacher", "tiny", "--data", many_photos, "--trainable", "full")
    for guidance in ("decoupled", "coupled"):
        jdmctl(
            "align", *words, "--reward", "brightness", "--guidance", guidance, "--guidance-scale", 2.0, *SET,
            "-o", guidance,
        )  # fmt: skip
        steps = [record for record in records(guidance, "step") if record["stage"] == "training"]
        assert ("guidance_norm" in steps[0]) == (guidance == "decoupled")
        pipe = StableDiffusionPipeline.from_pretrained(f"{guidance}/student", safety_checker=None)
        calls = []
        pipe.unet.register_forward_hook(lambda *_: calls.append(1))  # noqa: B023
        pipe("a red box", num_inference_steps=1, guidance_scale=1.0, output_type="np")
        assert len(calls) == 1
    left, right = (load_file(f"{g}/student/unet/diffusion_pytorch_model.safetensors") for g in ("coupled", "decoupled"))
    assert any(not torch.equal(left[name], right[name]) for name in left)


def test_a_control_and_a_reward_in_one_run(in_tiny_world, many_photos, jdmctl):
    """Both energies are weighed against fidelity, and both products are there."""
    Path("both.yaml").write_text(
        f"""name: both
model: {{teacher: tiny, student: tiny}}
controls: [{{name: lowres}}]
rewards: [{{name: brightness, ratio: 0.5, crop: 0.5, threshold: 0.9}}]
data: {{source: images, path: {many_photos}}}
"""
    )
    jdmctl("align", "both.yaml", *SET, "-o", "run")
    assert Path("run/controlnet").is_dir() and Path("run/student_lora").is_dir()
    steps = [record for record in records("run", "step") if record["stage"] == "training"]
    assert {"lowres_norm", "brightness_norm"} <= steps[-1].keys()
    adherence = records("run", "validation")[-1]["adherence"]
    assert "brightness" in adherence and any(name.startswith("lowres") for name in adherence)

    jdmctl("align", "run", "-o", "again", "--set", "controls.lowres.init=run/controlnet")  # a branch that is there
    assert Path("again/controlnet").is_dir()


def test_a_finished_run_with_a_control_goes_on_with_its_branch_and_a_lora(in_tiny_world, many_photos, jdmctl):
    """It begins with the adherence that the first run ended with, not with a new branch's."""
    words = ("--student", "tiny", "--teacher", "tiny", "--data", many_photos, "--control", "lowres", *SET)
    jdmctl("add-control", *words, "--learning-rate", 1e-2, "-o", "first")
    jdmctl("align", "first", "--reward", "brightness", *SET, "-o", "then")
    recipe = load_recipe("then")
    assert recipe.student.trainable == "lora" and recipe.controls[0].init == "first/controlnet"
    assert Path("then/controlnet").is_dir() and Path("then/student_lora").is_dir()
    ended, began = records("first", "validation"), records("then", "validation")[0]
    best = max(ended[1:], key=lambda record: record["score"])["lowres_psnr"]
    assert began["lowres_psnr"] == pytest.approx(best, abs=1e-3)
    assert abs(best - ended[0]["lowres_psnr"]) > 0.01  # so a branch that starts anew would be told


@pytest.mark.parametrize(
    "method, left, changes",
    [
        ("distill", "student", {"training": {"regression_steps": 5}, "objective": {"divergence": "js"}}),
        ("nct", "controlnet", {"controls": [{"name": "canny", "ramp_steps": 5}]}),
        ("jdm", "controlnet", {"controls": [{"name": "canny", "init": "dsm"}], "training": {"dsm_warmup_steps": 5}}),
    ],
)
def test_what_any_method_left_goes_on_by_jdm(tmp_path, method, left, changes):
    values = {
        "name": "x",
        "method": method,
        "model": {"teacher": "tiny", "student": "tiny"},
        "data": {"source": "tiny"},
    }
    (tmp_path / "recipe.yaml").write_text(to_yaml(parse_recipe(values | changes)))
    (tmp_path / left).mkdir()
    recipe, _ = plan(str(tmp_path), {"rewards": [{"name": "warmth"}]}, (), None, False, command="align")
    assert (recipe.method, recipe.student.trainable, recipe.name) == ("jdm", "lora", "x-align")
    assert recipe.training.dsm_warmup_steps == recipe.training.regression_steps == 0
    begins = recipe.model.student if left == "student" else recipe.controls[0].init
    assert begins == str(tmp_path / left)
    assert all(control.ramp_steps == 0 for control in recipe.controls)  # a branch that is there needs none


def test_runs_from_which_no_other_can_begin(in_tiny_world, many_photos, jdmctl, monkeypatch):
    words = ("--student", "tiny", "--teacher", "tiny", "--data", many_photos, "--control", "lowres", *SET)
    jdmctl("add-control", *words, "--set", "student.trainable=lora", "-o", "with_lora")
    jdmctl("add-control", *words, "--set", "controls.lowres.branch=t2i_adapter", "-o", "adapter")
    jdmctl("add-control", *words, "-o", "unfinished")
    shutil.rmtree("unfinished/controlnet")
    problems = {"with_lora": "as a LoRA", "adapter": "left a t2i_adapter", "unfinished": "has not finished"}
    for run, problem in problems.items():
        monkeypatch.setattr(sys, "argv", ["jdmctl", "align", run, "--reward", "brightness"])
        with pytest.raises(JdmError, match=problem):
            cli.app()


def test_the_ablation_trains_no_fake_score_and_keeps_the_same_weight(in_tiny_world, many_photos, jdmctl):
    """Calibrated as if fidelity were there, so both runs have the same lambda; then only the student is trained."""
    words = ("--student", "tiny", "--teacher", "tiny", "--data", many_photos, "--reward", "brightness", *SET)
    jdmctl("align", *words, "-o", "with")
    jdmctl("align", *words, "-o", "without", "--set", "objective.fidelity=false", "--set", "student.l2_to_start=0.1")
    last = [[r for r in records(run, "step") if r["stage"] == "training"][0] for run in ("with", "without")]
    assert "fidelity_norm" in last[0] and not {"fidelity_norm", "fake_score_loss"} & last[1].keys()
    assert "anchor_loss" in last[1]
    assert last[1]["brightness_norm"] == pytest.approx(last[0]["brightness_norm"], rel=1e-3)


def test_a_run_that_was_stopped_goes_on_bit_for_bit(in_tiny_world, many_photos, jdmctl):
    words = ("--student", "tiny", "--teacher", "tiny", "--data", many_photos, "--reward", "brightness",
             *SET, "--set", "training.save_every_steps=1")  # fmt: skip
    jdmctl("align", *words, "--set", "training.num_steps=4", "-o", "whole")
    jdmctl("align", *words, "-o", "half")
    jdmctl("align", "half", "--resume", "--num-steps", 4)
    whole, half = (Path(run, "checkpoints", "step-000004") for run in ("whole", "half"))
    for file in whole.glob("*.safetensors"):
        one, other = load_file(file), load_file(half / file.name)
        assert all(torch.equal(one[name], other[name]) for name in one)
    states = [json.loads(next(folder.glob("*.json")).read_text()) for folder in (whole, half)]
    assert states[0]["extra"]["watch"] == states[1]["extra"]["watch"]
    assert len(states[0]["extra"]["watch"]["history"]) == 5


def test_a_run_does_not_go_on_with_other_rewards(in_tiny_world, many_photos, jdmctl, jdmctl_command):
    """And says so before its recipe is another one."""
    words = ("--student", "tiny", "--teacher", "tiny", "--data", many_photos, "--reward", "brightness", *SET)
    jdmctl("align", *words, "-o", "run")
    AcceleratorState._reset_state()
    code, _, err = jdmctl_command("align", "run", "--resume", "--reward", "warmth", "--num-steps", 3)
    assert code == 1 and "calibrated for brightness, and is to go on with warmth" in err
    assert load_recipe("run").rewards[0].name == "brightness"


def test_prompts_alone_are_compared_with_the_teacher(in_tiny_world, jdmctl, monkeypatch):
    """Not with what the student draws, of which no second one is kept; and weights rest on 32 samples, all pieces."""
    Path("prompts.txt").write_text("".join(f"a red box number {i}\n" for i in range(24)))
    drawn, calibrated, norms = [], [], JDMStep.gradient_norms
    monkeypatch.setattr(StudentPictures, "image", lambda self, index: drawn.append(index))
    monkeypatch.setattr(
        JDMStep, "gradient_norms", lambda self, batch: calibrated.append(len(batch)) or norms(self, batch)
    )
    words = ("--student", "tiny", "--teacher", "tiny", "--data", "prompts.txt", "--reward", "brightness", *SET)
    jdmctl("align", *words, "--set", "training.gradient_accumulation_steps=4", "-o", "run")
    assert not drawn and calibrated == [1] * 32
    assert records("run", "validation")[0]["kid"] > 0


def test_alarms_end_a_run_and_tell_why(in_tiny_world, many_photos, jdmctl, monkeypatch):
    """Two looks with something wrong end it; resumed without the rule it goes on."""
    monkeypatch.setattr(Watch, "problems", lambda self: {"x": "x grew odd"} if len(self.history) > 2 else {})
    words = ("--student", "tiny", "--teacher", "tiny", "--data", many_photos, "--reward", "brightness", *SET,
             "--set", "training.num_steps=6")  # fmt: skip
    out = jdmctl("align", *words, "-o", "run")
    assert "x grew odd. lower rewards.brightness.ratio" in out
    assert "stopped before its last step" in out and "step-000001, the best before" in out
    assert records("run", "validation")[-1]["step"] == 3
    jdmctl("align", "run", "--resume", "--set", "training.stop_on_alarm=false")
    assert records("run", "validation")[-1]["step"] == 6


def test_a_warm_up_raises_no_alarm_against_the_training_after_it(in_tiny_world, many_photos, jdmctl, monkeypatch):
    """Every look at the warm-up is wrong; the training is held against its own start, so nothing is at its first."""
    monkeypatch.setattr(Watch, "problems", lambda self: {"x": "x grew odd"} if len(self.history) > 1 else {})
    words = ("--student", "tiny", "--teacher", "tiny", "--data", many_photos, "--reward", "brightness", *SET,
             "--set", "training.dsm_warmup_steps=3", "--set", "controls=[{name: lowres, init: dsm}]")  # fmt: skip
    out = jdmctl("align", *words, "--set", "training.num_steps=4", "-o", "run")
    assert "stopped before its last step" in out
    looks = [(look["stage"], look["step"], look["alarm"]) for look in records("run", "validation")]
    warmup, training = ([look[1:] for look in looks if look[0] == stage] for stage in ("dsm-warmup", "training"))
    assert warmup == [(0, 0), (1, 1), (2, 2), (3, 3)] and training == [(0, 0), (1, 1), (2, 2)]


def test_where_every_look_was_alarmed_that_is_told(in_tiny_world, many_photos, jdmctl, monkeypatch):
    monkeypatch.setattr(Watch, "problems", lambda self: {"x": "x grew odd"} if len(self.history) > 1 else {})
    words = ("--student", "tiny", "--teacher", "tiny", "--data", many_photos, "--reward", "brightness", *SET)
    out = jdmctl("align", *words, "--set", "training.num_steps=4", "-o", "run")
    assert ", alarmed too" in out


@pytest.mark.parametrize(
    "changes, problem",
    [
        (["method=dsm", "controls=[{name: canny}]"], "takes no rewards"),
        (["rewards=[{name: brightnes}]"], "did you mean 'brightness'?"),
        (["rewards=[{name: warmth}, {name: warmth}]"], "named twice"),
        (["rewards=[{name: warmth, label: canny}]", "controls=[{name: canny}]"], "give the reward another label"),
        (["heldout_rewards=[{name: contrast}, {name: contrast}]"], "heldout_rewards: the same reward is named twice"),
        (["rewards=[]", "student.trainable=lora"], "there are none"),
        (["student.trainable=frozen"], "student.trainable is lora or full"),
        (["rewards.warmth.crop=0"], "greater than 0"),
        (["rewards.warmth.ration=1"], "rewards.0.ration: unknown key, did you mean 'ratio'?"),
        (["student.trainabel=full"], "did you mean 'trainable'?"),
        (["critic.update=1"], "did you mean 'updates'?"),
        (["objective.fidelity=false", "objective.gan_weight=1"], "leaves no room"),
        (["objective.divergence=sim", "objective.guidance=decoupled"], "coupled guidance only"),
    ],
)
def test_recipes_that_cannot_be(changes, problem):
    values = {"name": "x", "model": {"teacher": "tiny", "student": "tiny"}, "data": {"source": "tiny"},
              "rewards": [{"name": "warmth"}], "heldout_rewards": [{"name": "contrast"}]}  # fmt: skip
    with pytest.raises(RecipeError) as error:
        parse_recipe(values, changes)
    assert problem in str(error.value)


def test_two_rewards_of_one_kind_are_called_by_their_labels(in_tiny_world, many_photos, jdmctl):
    """Each has a weight of its own, which its label finds."""
    jdmctl(
        "align", "--student", "tiny", "--teacher", "tiny", "--data", many_photos, "--reward", "warmth", *SET,
        "--set", "rewards=[{name: warmth}, {name: warmth, label: crops, crop: 0.5}]", "--set", "rewards.crops.ratio=2",
        "-o", "run",
    )  # fmt: skip
    last = records("run", "step")[-1]
    assert {"warmth_energy", "crops_energy", "warmth_norm", "crops_norm"} <= last.keys()
    assert {"warmth", "crops"} <= records("run", "validation")[-1].keys()
    assert last["crops_norm"] > 1.3 * last["warmth_norm"] > 0


def test_folders_of_one_kind_of_reward_lend_it_their_names():
    assert _rewards(["preference=runs/mine", "preference=runs/yours", "clip=c"]) == [
        {"name": "preference", "options": {"folder": "runs/mine"}, "label": "mine"},
        {"name": "preference", "options": {"folder": "runs/yours"}, "label": "yours"},
        {"name": "clip", "options": {"folder": "c"}},
    ]


def test_a_recipe_of_another_command_is_named(in_tiny_world, monkeypatch, capsys):
    for command, recipe, right in (("align", "tiny/canny", "add-control"), ("align", "tiny/distill", "distill")):
        monkeypatch.setattr(sys, "argv", ["jdmctl", command, recipe])
        with pytest.raises(RecipeError) as error:
            cli.app()
        assert f"is a recipe of jdmctl {right}" in str(error.value)
