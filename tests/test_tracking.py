"""Event files for TensorBoard: the numbers of metrics.jsonl and the previews, each step once, whatever befell a run."""

import json
import os
import signal
import subprocess
import sys

import pytest
import torch
from PIL import Image
from test_resume import command, environment, run, wait_for

from jdmctl.training.tracking import EventFiles


def read(folder):
    """What TensorBoard shows of a stage: tag -> [(step, value)], and the steps of previews."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = accumulator.EventAccumulator(str(folder), {"scalars": 0, "images": 0}).Reload()
    tags = events.Tags()
    scalars = {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in tags["scalars"]}
    return scalars, [event.step for tag in tags["images"] for event in events.Images(tag)]


def record(stage, step, loss, **more):
    return {"event": "step", "stage": stage, "step": step, "num_steps": 30, "loss": loss, **more}


def test_what_is_done_again_is_there_once(tmp_path):
    """Left within the preview of step 30, begun again after step 10: 20 and 30 are what the second run says, and the
    warm-up, whose steps are counted apart, keeps its own 20."""
    pytest.importorskip("tensorboard")
    first = EventFiles(tmp_path)
    first.write(record("warm-up", 20, 5.0))
    for step in (0, 10, 20, 30):
        first.write(record("training", step, 1.0))
        first.show(Image.new("RGB", (8, 4), "red"))
    (cut,) = (tmp_path / "training").iterdir()
    os.truncate(cut, cut.stat().st_size - 5)
    second = EventFiles(tmp_path)
    second.write(record("training", 20, 2.0))
    assert read(tmp_path / "training") == ({"step/loss": [(0, 1.0), (10, 1.0), (20, 2.0)]}, [0, 10])
    second.write(record("training", 30, 2.0))
    second.show(Image.new("RGB", (8, 4), "blue"))
    scalars, pictures = read(tmp_path / "training")
    assert scalars["step/loss"] == [(0, 1.0), (10, 1.0), (20, 2.0), (30, 2.0)]
    assert pictures == [0, 10, 30]
    assert read(tmp_path / "warm-up")[0] == {"step/loss": [(20, 5.0)]}
    for files in (first, second):
        files.close()


def test_what_is_no_number_is_left_out(tmp_path):
    """Of a list, which is by noise levels, each entry has a curve; where nothing was measured it has a gap."""
    pytest.importorskip("tensorboard")
    files = EventFiles(tmp_path)
    files.write(record("training", 1, 0.5, by_time=[0.25, None], warning="too high", adherence={"canny f1": 0.5}))
    files.close()
    assert read(tmp_path / "training")[0] == {"step/loss": [(1, 0.5)], "step/by_time/0": [(1, 0.25)]}


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without distributed")
def test_a_killed_run_goes_on_with_two_processes(tiny_world, photos, tmp_path):
    """Killed by SIGKILL after the checkpoint of step 6: every number of metrics.jsonl, whose later records of a step
    stand for earlier ones, is in the event files once, and so is every preview. Of two processes one writes."""
    pytest.importorskip("tensorboard")
    env = environment(tiny_world, tmp_path / "cache")
    changes = ("training.num_steps=10", "training.save_every_steps=3", "training.log_every_steps=1")
    folder = tmp_path / "run"
    words = [*command(photos, folder, *changes, "training.preview_every_steps=2"), "--report_to", "tensorboard"]
    process = subprocess.Popen(words, env=env, stderr=subprocess.PIPE, text=True)
    wait_for(folder / "checkpoints" / "step-000006", process)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m"]
    run([*launcher, "jdmctl", "add-control", str(folder), "--resume", "--device", "cpu"], env)

    assert len(list((folder / "tensorboard" / "training").iterdir())) == 2
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for stage in ("fake-score-warmup", "training"):
        last = {(one["event"], one["step"]): one for one in records if one["stage"] == stage}
        told = {
            (f"{event}/{name}", step): pytest.approx(float(value), rel=1e-6)
            for (event, step), one in last.items()
            for name, value in one.items()
            if isinstance(value, int | float) and name not in ("step", "num_steps")
        }
        scalars, pictures = read(folder / "tensorboard" / stage)
        assert sum(map(len, scalars.values())) == len(told) > 10
        assert {(tag, step): value for tag, points in scalars.items() for step, value in points} == told
        assert pictures == ([0, 2, 4, 6, 8, 10] if stage == "training" else [])


def test_a_missing_package_is_told_before_anything_is_loaded(in_tiny_world, monkeypatch, jdmctl_command):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    code, _, error = jdmctl_command("distill", "tiny/distill", "--track", "tensorboard", "--output", "run")
    assert code == 1 and not (in_tiny_world / "run").exists()
    assert "training.tracker: tensorboard needs tensorboard, which is not installed" in error
    assert "hint: pip install 'jdmctl[track]'" in error


def test_nothing_is_written_unasked(in_tiny_world, monkeypatch, jdmctl_command):
    """And a recipe that asks can be told not to."""
    for words, asked in (((), "none"), (("--track", "tensorboard"), "tensorboard"), (("--report_to", "none"), "none")):
        code, out, error = jdmctl_command("distill", "tiny/distill", *words, "--dry-run", "--json")
        assert code == 0, error
        assert json.loads(out)["recipe"]["training"]["tracker"] == asked
