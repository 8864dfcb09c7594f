"""The command line: what it prints where, exit codes, and what it does not import."""

import json
import subprocess
import sys

import pytest

from jdmctl.cli import app as cli
from jdmctl.cli.output import Output
from jdmctl.errors import JdmError, RunInterrupted

HEAVY = ("torch", "numpy", "pydantic", "diffusers", "transformers", "accelerate", "rich", "yaml", "cv2", "PIL")


def modules_after(*words: str) -> set[str]:
    """Top-level modules that a fresh process has loaded after a command."""
    code = (
        f"import sys; sys.argv = {['jdmctl', *words]!r}\n"
        "from jdmctl.cli.app import main\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "print('MODULES', *{m.partition('.')[0] for m in sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.rpartition("MODULES")[2].split())


def test_help_loads_nothing_heavy():
    assert not modules_after("--help") & set(HEAVY)


@pytest.mark.parametrize("command", ["add-control", "export", "recipes", "reward", "rewards", "sample", "world"])
def test_help_of_a_command_loads_nothing_heavy(command):
    """Typer itself reads a command's options by pydantic."""
    assert not modules_after(command, "--help") & (set(HEAVY) - {"pydantic"})


def test_listing_recipes_and_checking_one_does_not_load_torch():
    assert not modules_after("recipes", "ls") & {"torch", "diffusers", "numpy"}
    assert not modules_after("recipes", "validate", "tiny/canny") & {"torch", "diffusers", "numpy"}


def test_help_names_every_command(jdmctl_command):
    code, out, _ = jdmctl_command("--help")
    assert code == 0
    for command in (
        "add-control",
        "distill",
        "sample",
        "eval",
        "compare",
        "export",
        "divergences",
        "world",
        "recipes",
        "controls",
        "rewards",
        "reward",
        "doctor",
    ):
        assert command in out


def test_every_option_of_add_control_is_explained(jdmctl_command):
    """And the names that diffusers' training scripts use for the same things are accepted."""
    _, out, _ = jdmctl_command("add-control", "-h")
    aliases = "pretrained_model_name_or_path controlnet_model_name_or_path max_train_steps train_batch_size"
    aliases += " learning_rate output_dir mixed_precision train_data_dir use_8bit_adam report_to"
    for alias in aliases.split():
        assert f"--{alias}" in out


def test_a_mistake_is_a_sentence_and_a_hint(jdmctl_command):
    code, out, err = jdmctl_command("recipes", "show", "tiny/cany")
    assert code == 1 and out == ""
    assert err.startswith("error: no recipe named tiny/cany")
    assert "\nhint: jdmctl recipes ls" in err
    assert "Traceback" not in err


def test_debugging_shows_the_traceback(monkeypatch):
    monkeypatch.setenv("JDMCTL_DEBUG", "1")
    monkeypatch.setattr(sys, "argv", ["jdmctl", "recipes", "show", "tiny/cany"])
    with pytest.raises(JdmError):
        cli.main()


def test_an_interrupted_run_exits_with_130(monkeypatch, jdmctl_command):
    def interrupted():
        raise RunInterrupted("stopped at step 3", "go on")

    monkeypatch.setattr(cli, "app", interrupted)
    assert jdmctl_command() == (130, "", "error: stopped at step 3\nhint: go on\n")


def test_a_bug_keeps_its_traceback(monkeypatch):
    def bug():
        raise ZeroDivisionError

    monkeypatch.setattr(cli, "app", bug)
    with pytest.raises(ZeroDivisionError):
        cli.main()


def test_recipes_ls(jdmctl_command):
    code, out, _ = jdmctl_command("recipes", "ls", "--json")
    rows = [json.loads(line) for line in out.splitlines()]
    assert code == 0 and {"name", "title"} == rows[0].keys()
    assert "tiny/canny" in [row["name"] for row in rows]
    _, out, _ = jdmctl_command("recipes", "ls")
    assert out.splitlines()[0].split() == ["name", "title"]


def test_recipes_show_and_copy(jdmctl_command, tmp_path):
    _, shown, _ = jdmctl_command("recipes", "show", "tiny/canny")
    code, out, err = jdmctl_command("recipes", "copy", "tiny/canny", tmp_path / "mine.yaml")
    assert code == 0 and out.strip() == str(tmp_path / "mine.yaml")
    assert (tmp_path / "mine.yaml").read_text() == shown
    assert "jdmctl add-control" in err
    assert jdmctl_command("recipes", "copy", "tiny/canny", tmp_path / "mine.yaml")[0] == 1


def test_recipes_show_resolved_and_overridden(jdmctl_command):
    _, out, _ = jdmctl_command("recipes", "show", "tiny/canny", "--set", "training.num_steps=7")
    assert "num_steps: 7" in out and "ema_decay:" in out


def test_recipes_validate(jdmctl_command, tmp_path):
    assert jdmctl_command("recipes", "validate", "tiny/canny", "tiny/depth")[0] == 0
    (tmp_path / "bad.yaml").write_text("name: x\n")
    code, _, err = jdmctl_command("recipes", "validate", tmp_path / "bad.yaml")
    assert code == 1 and "3 problems" in err


def test_the_version_loads_nothing_heavy(jdmctl_command):
    from jdmctl import __version__

    assert jdmctl_command("--version") == (0, f"jdmctl {__version__}\n", "")
    assert not modules_after("--version") & (set(HEAVY) - {"pydantic"})


def test_controls(jdmctl_command):
    code, out, _ = jdmctl_command("controls", "--json")
    rows = {row["name"]: row for row in map(json.loads, out.splitlines())}
    assert code == 0 and {"canny", "depth", "lowres", "softedge"} <= rows.keys()
    assert rows["lowres"]["gradient"] == "exact" and rows["canny"]["gradient"] == "surrogate"


def test_doctor(jdmctl_command):
    code, out, _ = jdmctl_command("doctor", "--json")
    found = {row["what"]: row["found"] for row in map(json.loads, out.splitlines())}
    assert code == 0 and {"torch", "torchvision state", "device", "embedded world"} <= found.keys()


STEP = {
    "event": "step",
    "stage": "training",
    "step": 10,
    "num_steps": 20,
    "fidelity_norm": 31.0,
    "canny_norm": 12.5,
    "canny_energy": 0.25,
    "student_update_norm": 1.0,
    "fake_score_loss": 0.03,
    "samples_per_second": 40.0,
    "seconds_left": 75.0,
}
VALIDATION = {"event": "validation", "stage": "training", "step": 10, "adherence": {"canny f1": 0.5}, "score": -0.7}


def test_json_puts_every_event_on_stdout(capsys):
    with Output("json") as out:
        for record in (STEP, VALIDATION):
            out.event(record)
        out.note("not for machines")
    captured = capsys.readouterr()
    assert [json.loads(line) for line in captured.out.splitlines()] == [STEP, VALIDATION]
    assert captured.err == ""


def test_without_a_terminal_progress_is_plain_lines_on_stderr(capsys):
    with Output("human") as out:
        out.event(STEP)
        out.event(VALIDATION)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines() == [
        "training 10/20: fidelity 31, canny 12.5 (energy 0.25), fake score loss 0.03, 40.0 samples/s, 1:15 left",
        "training 10: canny f1 0.5000",
    ]


def test_at_a_terminal_there_is_one_live_line(capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with Output("human") as out:
        out.event(STEP)
        out.event(VALIDATION)
        out.event(STEP | {"step": 20})
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "20/20" in captured.err and "canny f1 0.5000" in captured.err


def test_quiet_leaves_only_results(capsys):
    with Output("quiet") as out:
        out.event(STEP)
        out.note("on the way")
        out.result({"path": "x"}, "x")
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("x\n", "")


SLOW = """
import os, signal, time
from pathlib import Path
from jdmctl.cli import app
from jdmctl.training.atomic import whole_folder

def command():
    with whole_folder(Path("made")):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)

app.app = command
app.main()
"""


def test_sigterm_ends_a_command_as_ctrl_c_does(tmp_path):
    """It leaves nothing half-written, and ends with 128 and the signal's number."""
    done = subprocess.run([sys.executable, "-c", SLOW], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (143, "")
    assert not list(tmp_path.iterdir())


def test_a_training_s_warning_is_told_once(capsys):
    """A ratio that says little stays so for many records; one warning is enough, and --json keeps it in each record."""
    record = STEP | {"warning": "the critic tells student and teacher apart"}
    out = Output("human")
    out.event(record)
    out.event(record)
    assert capsys.readouterr().err.count("warning: training") == 1
    Output("json").event(record)
    assert json.loads(capsys.readouterr().out)["warning"] == record["warning"]


def test_each_alarm_of_a_validation_is_told(capsys):
    """A run may end by another alarm than the first."""
    out = Output("human")
    for problem in ("sharpness", "diversity"):
        out.event(VALIDATION | {"warning": problem})
    told = capsys.readouterr().err
    assert "warning: training 10: sharpness" in told and "warning: training 10: diversity" in told
