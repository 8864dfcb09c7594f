"""`jdmctl add-control` from the command to the weights, on random tiny models."""

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from diffusers import ControlNetModel, StableDiffusionControlNetPipeline, UNet2DConditionModel
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file

from jdmctl.build import build_family
from jdmctl.build_run import build_run
from jdmctl.cli import app as cli
from jdmctl.cli.training import data_changes, plan
from jdmctl.errors import JdmError
from jdmctl.families.base import DiffusionDenoiser
from jdmctl.recipe_files import load_recipe, parse_recipe, to_yaml
from jdmctl.recipe_sections import Model
from jdmctl.training.run import make_accelerator
from jdmctl.training.samples import StudentPictures

QUICK = (
    "training.batch_size=4",
    "training.num_steps=4",
    "training.precision=fp32",
    "training.validate_every_steps=2",
    "training.preview_every_steps=4",
    "training.save_every_steps=2",
    "training.log_every_steps=1",
    "fake_score.warmup_min_steps=0",
    "fake_score.warmup_max_steps=2",
    "fake_score.rank=2",
    "objective.guidance_scale=1.5",
    "data.num_validation_samples=3",
)
SET = [word for change in QUICK for word in ("--set", change)]


@pytest.fixture
def add_control(monkeypatch, capsys):
    """Runs add-control in this process; returns what it wrote to stdout and stderr."""

    def run(*words) -> tuple[str, str]:
        AcceleratorState._reset_state()  # as in a new process: precision is kept for a process's life
        monkeypatch.setattr(sys, "argv", ["jdmctl", "add-control", *map(str, words)])
        with pytest.raises(SystemExit) as left:
            cli.app()
        captured = capsys.readouterr()
        assert not left.value.code, captured.err
        return captured.out, captured.err

    return run


def metrics(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_a_run_without_a_recipe(in_tiny_world, photos, add_control):
    out, err = add_control(
        "--student", "tiny", "--teacher", "tiny", "--control", "softedge", "--data", photos, *SET, "-o", "run"
    )  # fmt: skip
    run = Path("run")
    assert out.strip() == str(run / "controlnet")
    assert "jdmctl sample run" in err
    branch = ControlNetModel.from_pretrained(run / "controlnet")
    zero_at_the_start = branch.controlnet_mid_block.weight
    assert zero_at_the_start.abs().max() > 0

    recipe = load_recipe(run)
    assert recipe.controls[0].name == "softedge" and recipe.data.source == "images"
    assert recipe.controls[0].init == "dsm" and recipe.training.dsm_warmup_steps == recipe.training.num_steps == 4
    for file in run.rglob("*.safetensors"):
        with safe_open(file, "pt") as weights:
            assert "name: softedge" in weights.metadata()["jdmctl_recipe"]

    steps = [record for record in metrics(run) if record["event"] == "step" and record["stage"] == "training"]
    assert [record["step"] for record in steps] == [1, 2, 3, 4]
    assert {"fidelity_norm", "softedge_norm", "softedge_energy", "fake_score_loss"} <= steps[0].keys()
    validations = [record for record in metrics(run) if record["event"] == "validation"]
    assert [(record["stage"], record["step"]) for record in validations] == [
        (stage, step) for stage in ("dsm-warmup", "training") for step in (0, 2, 4)
    ]
    assert all(len(record["adherence"]) == 1 for record in validations)

    assert {"step-000000.png", "step-000004.png"} < {path.name for path in (run / "previews").iterdir()}
    assert Image.open(run / "curve.png").size[0] > 100
    assert "step-000004" in {path.name for path in (run / "checkpoints").iterdir()}
    assert not [path for path in run.rglob(".*")]


@pytest.mark.parametrize(
    "data, overrides",
    [("photos", ["controls.softedge.init=student"]), ("photos", ["training.dsm_warmup_steps=0"]), ("prompts", [])],
)
def test_a_branch_begins_at_the_student_if_said_or_without_pictures(in_tiny_world, photos, data, overrides):
    Path("prompts.txt").write_text("a red cube\n")
    given = {"model.student": "tiny", "model.teacher": "tiny", "controls": [{"name": "softedge"}]}
    found = data_changes(str(photos if data == "photos" else "prompts.txt"))
    recipe, _ = plan("", given | found, overrides, None, False)
    assert recipe.controls[0].init == "student" and not recipe.training.dsm_warmup_steps


def test_json_lines(in_tiny_world, photos, add_control):
    out, _ = add_control(
        "--student", "tiny", "--teacher", "tiny", "--control", "lowres", "--data", photos, *SET, "--json"
    )
    records = [json.loads(line) for line in out.splitlines()]
    assert {record["event"] for record in records} == {"step", "validation", "done"}
    assert records[-1]["products"] == {"controlnet": "runs/lowres/controlnet"}
    assert records[-1]["run"] == "runs/lowres"


def test_weights_are_calibrated_to_the_ratio_and_kept(in_tiny_world, photos, add_control):
    """The first logged |lambda grad E| / |grad fidelity| is near the ratio asked for.

    It is exact only on the calibration's own batches, so the bound is a factor of two.
    """
    add_control(
        "--student", "tiny", "--teacher", "tiny", "--control", "softedge", "--data", photos, *SET,
        "--set", "controls.softedge.ratio=0.5", "-o", "run",
    )  # fmt: skip
    first = next(r for r in metrics(Path("run")) if r["event"] == "step" and r["stage"] == "training")
    assert 0.25 < first["softedge_norm"] / first["fidelity_norm"] < 1.0
    states = [json.loads(file.read_text()) for file in Path("run/checkpoints").glob("step-*/state.json")]
    lambdas = [state["extra"]["balance"]["lambdas"]["softedge"] for state in states]
    assert lambdas[0] > 0 and len(set(lambdas)) == 1
    with safe_open("run/controlnet/diffusion_pytorch_model.safetensors", "pt") as weights:
        assert json.loads(weights.metadata()["jdmctl_balance"]) == {
            "lambdas": {"softedge": lambdas[0]},
            "ratios": {"softedge": 0.5},
        }


@pytest.mark.parametrize(
    "changes",
    [
        ["objective.form=conditional", "objective.weight=kl", "fake_score.trainable=full"],
        ["objective.energy_at=denoised", "objective.balance=continuous", "training.gradient_accumulation_steps=2"],
        ["controls.softedge.init=dsm", "training.dsm_warmup_steps=2", "training.precision=bf16"],
        ["objective.divergence=js", "objective.gan_weight=0.01", "objective.form=conditional"],
        ["objective.divergence=js", "objective.ratio=learned", "critic.r1_weight=1", "critic.features=fake_score"],
    ],
)
def test_every_kind_of_objective_runs(in_tiny_world, photos, add_control, changes):
    words = [word for change in changes for word in ("--set", change)]
    add_control(
        "--student", "tiny", "--teacher", "tiny", "--control", "softedge", "--data", photos, *SET, *words, "-o", "run"
    )
    values = [v for r in metrics(Path("run")) if r["event"] == "step" for k, v in r.items() if k.endswith("norm")]
    assert values and all(0 <= value < 1e6 for value in values)


@pytest.mark.parametrize("method", ["nct", "dsm"])
def test_other_methods_leave_the_same_kind_of_branch(in_tiny_world, photos, add_control, method):
    """Not the one that they began with, and the student is what it was."""
    add_control(
        "--student", "tiny", "--teacher", "tiny", "--control", "canny", "--data", photos, "--method", method, *SET,
        "-o", "run",
    )  # fmt: skip
    branch = ControlNetModel.from_pretrained("run/controlnet")
    assert branch.controlnet_mid_block.weight.abs().max() > 0
    steps = [record for record in metrics(Path("run")) if record["event"] == "step"]
    assert {record["stage"] for record in steps} == {"training"}
    expected = {"nct": {"consistency_loss", "boundary_loss", "multiplier"}, "dsm": {"dsm_loss"}}
    assert expected[method] <= steps[-1].keys()
    assert [r["step"] for r in metrics(Path("run")) if r["event"] == "validation"] == [0, 2, 4]


@pytest.mark.parametrize("method", ["dmd-control", "implicit", "redistill"])
def test_methods_whose_teacher_sees_the_control(in_tiny_world, tiny_world, photos, add_control, method):
    """They use what --method dsm left, and leave it as it was."""
    words = ["--student", "tiny", "--teacher", "tiny", "--control", "canny", "--data", photos, *SET]
    add_control(*words, "--method", "dsm", "-o", "ordinary")
    before = load_file("ordinary/controlnet/diffusion_pytorch_model.safetensors")
    add_control(
        *words, "--method", method, "--set", "controls.canny.teacher_branch=ordinary/controlnet",
        "--set", "objective.implicit_weight=1.5", "-o", "run",
    )  # fmt: skip
    branch = ControlNetModel.from_pretrained("run/controlnet")
    assert branch.controlnet_mid_block.weight.abs().max() > 0
    after = load_file("ordinary/controlnet/diffusion_pytorch_model.safetensors")
    assert all(torch.equal(before[name], after[name]) for name in before)
    steps = [r for r in metrics(Path("run")) if r["event"] == "step" and r["stage"] == "training"]
    assert "fidelity_norm" in steps[0] and "canny_energy" not in steps[0]
    if method == "redistill":  # a student of its own, which plain diffusers draws with in one step
        pipeline = StableDiffusionControlNetPipeline.from_pretrained("run/student", controlnet=branch)
        unet = dict(pipeline.unet.named_parameters())
        assert pipeline.scheduler.__class__.__name__ == "LCMScheduler"
        teacher = UNet2DConditionModel.from_pretrained(tiny_world / "teacher", subfolder="unet")
        assert any(not torch.equal(unet[name], value) for name, value in teacher.named_parameters())


@pytest.mark.parametrize("method", ["dmd-control", "implicit"])
def test_a_teacher_that_sees_keeps_its_own_controlnet_beside_a_warm_up(in_tiny_world, method):
    """It is the one that was given, and the warm-up trains nothing of it."""
    torch.manual_seed(0)
    family = build_family(Model(teacher="tiny", student="tiny"), "cpu")
    with torch.no_grad():
        family.add_control_branch("canny").controlnet_mid_block.bias.fill_(0.1)
    family.save_control_branch("canny", "given")
    values = {
        "name": "x", "model": {"student": "tiny", "teacher": "tiny"}, "data": {"source": "tiny"}, "method": method,
        "controls": [{"name": "canny", "init": "dsm", "teacher_branch": "given"}],
    }  # fmt: skip
    changes = [*QUICK, "training.dsm_warmup_steps=2", "data.num_samples=16"]
    run = build_run(parse_recipe(values, changes), make_accelerator("cpu", "fp32"))
    teacher = run.stages[-1].step.teacher
    while not isinstance(teacher, DiffusionDenoiser):  # within its guidance
        teacher = teacher.denoiser
    given = load_file("given/diffusion_pytorch_model.safetensors")
    assert all(torch.equal(value, given[name]) for name, value in teacher.branches["canny"].state_dict().items())
    assert not {id(p) for p in teacher.parameters()} & {id(p) for p in run.stages[0].step.parameters}


def test_a_method_says_what_it_needs(in_tiny_world):
    values = {
        "name": "x", "model": {"student": "tiny", "teacher": "tiny"}, "controls": [{"name": "canny"}],
        "data": {"source": "tiny"}, "method": "dmd-control",
    }  # fmt: skip
    with pytest.raises(JdmError, match="teacher_branch"):
        parse_recipe(values, [], "here")


def test_lora_on_the_student_is_saved_beside_the_branch(in_tiny_world, add_control):
    """The student that draws the conditions stays as it was: a copy."""
    Path("prompts.txt").write_text("".join(f"a red box number {i}\n" for i in range(8)))
    add_control(
        "--student", "tiny", "--teacher", "tiny", "--control", "lowres", "--data", "prompts.txt", *SET,
        "--set", "student.trainable=lora", "--set", "student.rank=2", "-o", "run",
    )  # fmt: skip
    assert list(Path("run/student_lora").glob("*.safetensors"))
    assert Path("run/controlnet/config.json").exists()


def test_a_run_is_of_its_world(in_tiny_world, photos, add_control, tiny_world, monkeypatch):
    """In another, `tiny` in its recipe would mean other models."""
    words = ["--student", "tiny", "--teacher", "tiny", "--control", "lowres", "--data", photos]
    add_control(*words, *SET, "-o", "run")
    assert load_recipe("run").model.student == "tiny"
    monkeypatch.delenv("JDMCTL_WORLD")
    with pytest.raises(JdmError, match="the shipped one is in use") as caught:
        load_recipe("run")
    assert f"export JDMCTL_WORLD={tiny_world}" in caught.value.hint
    monkeypatch.setenv("JDMCTL_WORLD", str(tiny_world))
    Path("run/world.txt").write_text("\n")
    with pytest.raises(JdmError, match="made in the shipped world"):
        load_recipe("run")


def test_two_controls_leave_a_branch_each(in_tiny_world, photos, add_control):
    add_control(
        "--student", "tiny", "--teacher", "tiny", "--control", "lowres", "--control", "depth", "--data", photos,
        *SET, "-o", "run",
    )  # fmt: skip
    for name in ("lowres", "depth"):
        ControlNetModel.from_pretrained(Path("run", f"controlnet-{name}"))
    adherence = [record["adherence"] for record in metrics(Path("run")) if record["event"] == "validation"]
    assert len(adherence[-1]) == 2
    assert load_recipe("run").controls[1].options["scorer"] == "tiny/depth_heldout"


def test_prompts_alone_are_data_enough(in_tiny_world, add_control):
    Path("prompts.txt").write_text("".join(f"a red box number {i}\n" for i in range(8)))
    add_control(
        "--student", "tiny", "--teacher", "tiny", "--control", "canny", "--data", "prompts.txt", *SET, "-o", "run"
    )
    assert load_recipe("run").data.source == "prompts"
    assert Path("run/controlnet/config.json").exists()


def test_pictures_of_the_student_are_drawn_in_float32(in_tiny_world, add_control, monkeypatch):
    """Those that calibration met first were drawn in the run's bf16, and by a resumed run in float32."""
    Path("prompts.txt").write_text("".join(f"a red box number {i}\n" for i in range(64)))
    found, draw = [], StudentPictures.image

    def image(self, index):
        found.append(torch.is_autocast_enabled("cpu"))
        return draw(self, index)

    monkeypatch.setattr(StudentPictures, "image", image)
    words = ["--student", "tiny", "--teacher", "tiny", "--control", "lowres", "--data", "prompts.txt", *SET]
    add_control(*words, "--set", "training.precision=bf16", "--set", "training.num_steps=1", "-o", "run")
    assert len(found) > 16 and not any(found)


def test_condition_maps_are_recognised(in_tiny_world, photos, add_control, tmp_path):
    maps = tmp_path / "maps"
    shutil.copytree(photos, maps)
    rows = [json.loads(line) for line in (maps / "metadata.jsonl").read_text().splitlines()]
    lines = [json.dumps({"conditioning_image": row["file_name"], "text": row["text"]}) + "\n" for row in rows]
    (maps / "metadata.jsonl").write_text("".join(lines))
    add_control("--student", "tiny", "--teacher", "tiny", "--control", "canny", "--data", maps, *SET, "-o", "run")
    assert load_recipe("run").data.source == "conditions"


def test_a_branch_can_start_from_a_controlnet(in_tiny_world, photos, add_control):
    first = ["--student", "tiny", "--teacher", "tiny", "--control", "lowres", "--data", photos, *SET]
    add_control(*first, "-o", "one")
    add_control(*first, "-o", "two", "--controlnet_model_name_or_path", "one/controlnet")
    assert load_recipe("two").controls[0].init == "one/controlnet"


def test_dry_run_shows_and_writes_nothing(in_tiny_world, photos, add_control):
    out, _ = add_control(
        "--student", "tiny", "--teacher", "tiny", "--control", "lowres", "--data", photos, "--dry-run", "--json"
    )
    plan = json.loads(out)
    assert plan["recipe"]["training"]["num_steps"] > 0
    assert plan["parameters"]["trained_in_student"] < plan["parameters"]["student"]
    assert plan["parameters"]["trained_in_fake_score"] > 0
    assert not Path("runs").exists()


def test_a_recipe_with_changes(in_tiny_world, add_control):
    out, _ = add_control("tiny/lowres", "--max_train_steps", "7", "--mixed_precision", "no", "--seed", "0",
                         "--use_8bit_adam", "--dry-run", "--json")  # fmt: skip
    recipe = json.loads(out)["recipe"]
    assert recipe["training"]["num_steps"] == 7
    assert recipe["training"]["precision"] == "fp32"
    assert recipe["memory"]["optimizer"] == "adamw_8bit"


def refused(monkeypatch, *words) -> JdmError:
    monkeypatch.setattr(sys, "argv", ["jdmctl", "add-control", *map(str, words)])
    with pytest.raises(JdmError) as caught:
        cli.app()
    assert caught.value.hint
    return caught.value


def test_what_is_missing_is_said(in_tiny_world, monkeypatch):
    assert "nothing to train" in str(refused(monkeypatch))
    error = str(refused(monkeypatch, "--control", "canny"))
    for key in ("model.teacher", "model.student", "data.source"):
        assert f"{key}: required, not given" in error


def test_a_run_folder_is_never_overwritten(in_tiny_world, monkeypatch):
    Path("run").mkdir()
    Path("run/precious.txt").write_text("x")
    error = refused(monkeypatch, "tiny/lowres", "-o", "run")
    assert "run is already there" in str(error) and error.hint == "choose another --output"


def test_what_goes_on_with_a_run_is_told_by_its_folder(in_tiny_world, monkeypatch):
    """Of another folder than the one that was named: the new run's."""
    for folder in ("old", "run"):
        Path(folder).mkdir()
        Path(folder, "recipe.yaml").write_text(to_yaml(load_recipe("tiny/lowres")))
    error = refused(monkeypatch, "old", "-o", "run")
    assert error.hint == "go on with it: jdmctl add-control run --resume, or choose another --output"


def test_nothing_to_resume(in_tiny_world, monkeypatch):
    Path("empty").mkdir()
    for words in (("empty", "--resume"), ("tiny/lowres", "--resume"), ("--resume", "-o", "nowhere")):
        assert "nothing to resume" in str(refused(monkeypatch, *words))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--data", "nowhere"], "no folder nowhere"),
        (["--student", "nowhere"], "no folder nowhere"),
        (["--init", "nowhere"], "nowhere"),
        (["--set", "controls.lowres.options={size: 3}"], "has no option 'size'"),
        (["--set", "training.batch_size=3", "--set", "training.gradient_accumulation_steps=2"], "not a multiple"),
        (["--device", "cuda:7"], "device cuda:7 is not there"),
        (["--device", "banana", "--dry-run"], "device banana is not there (there is cpu"),
    ],
)
def test_bad_input_leaves_no_folder(in_tiny_world, monkeypatch, photos, words, message):
    if "--device" in words and torch.cuda.device_count() > 7:
        pytest.skip("that device is there")
    base = {"--student": "tiny", "--teacher": "tiny", "--control": "lowres", "--data": photos}
    for flag in list(base):
        if flag in words:
            del base[flag]
    arguments = [word for pair in base.items() for word in pair]
    assert message in str(refused(monkeypatch, *arguments, *SET, *words, "-o", "run"))
    assert not Path("run").exists()
