"""A run that was killed ends like one that was not; two processes train like one."""

import json
import os
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

SETTINGS = (
    "training.batch_size=4",
    "training.precision=fp32",
    "training.validate_every_steps=5",
    "training.preview_every_steps=50",
    "training.log_every_steps=5",
    "fake_score.warmup_min_steps=0",
    "fake_score.warmup_max_steps=3",
    "training.dsm_warmup_steps=0",
    "fake_score.rank=2",
    "data.num_validation_samples=2",
)


def command(photos: Path, output: Path, *changes: str) -> list[str]:
    words = [sys.executable, "-m", "jdmctl", "add-control", "--student", "tiny", "--teacher", "tiny"]
    words += ["--control", "softedge", "--data", str(photos), "--output", str(output), "--device", "cpu"]
    return words + [word for change in (*SETTINGS, *changes) for word in ("--set", change)]


def environment(tiny_world: Path, cache: Path) -> dict[str, str]:
    root = Path(__file__).parents[1]
    return os.environ | {
        "JDMCTL_WORLD": str(tiny_world),
        "JDMCTL_CACHE": str(cache),
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(root),
    }


def run(words: list[str], env: dict[str, str]) -> None:
    done = subprocess.run(words, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """Everything in the last checkpoint: trained weights, their average, moments."""
    orders = {p.parent: json.loads(p.read_text())["order"] for p in folder.glob("checkpoints/*/state.json")}
    last = max(orders, key=orders.__getitem__)
    return {
        f"{file.stem} {name}": value
        for file in last.glob("*.safetensors")
        for name, value in load_file(file).items()
    } | {f"product {name}": value for file in folder.glob("controlnet/*.safetensors")
         for name, value in load_file(file).items()}  # fmt: skip


def assert_same_bits(one: Path, other: Path) -> None:
    a, b = weights(one), weights(other)
    assert a.keys() == b.keys() and len(a) > 100
    for name, value in a.items():
        assert torch.equal(value, b[name]), name


def wait_for(path: Path, process: subprocess.Popen) -> None:
    while not path.exists():
        assert process.poll() is None, f"ended before {path} was there: {process.stderr.read()}"
        time.sleep(0.02)


def test_a_run_killed_and_resumed_is_bit_identical(tiny_world, photos, tmp_path):
    """Killed by SIGKILL at some moment after the checkpoint of step 6, wherever that finds it."""
    env = environment(tiny_world, tmp_path / "cache")
    changes = ("training.num_steps=12", "training.save_every_steps=3")
    run(command(photos, tmp_path / "whole", *changes), env)
    killed = tmp_path / "killed"
    process = subprocess.Popen(command(photos, killed, *changes), env=env, stderr=subprocess.PIPE, text=True)
    wait_for(killed / "checkpoints" / "step-000006", process)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (killed / "controlnet").exists()
    run([sys.executable, "-m", "jdmctl", "add-control", str(killed), "--resume", "--device", "cpu"], env)
    assert_same_bits(tmp_path / "whole", killed)


def test_ctrl_c_saves_and_says_how_to_go_on(tiny_world, photos, tmp_path):
    env = environment(tiny_world, tmp_path / "cache")
    folder = tmp_path / "run"
    words = command(photos, folder, "training.num_steps=100000", "training.save_every_steps=100000")
    process = subprocess.Popen(words, env=env, stderr=subprocess.PIPE, text=True)
    wait_for(folder / "checkpoints" / "step-000000", process)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate()
    assert process.returncode == 130, err
    assert f"go on with: jdmctl add-control {folder} --resume" in err
    assert "Traceback" not in err
    (checkpoint,) = [p for p in (folder / "checkpoints").iterdir() if p.name != "step-000000"]
    assert (checkpoint / "state.json").exists()


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without distributed")
@pytest.mark.parametrize(
    ("optimizer", "furthest"),
    [
        ("adamw", 1e-4),
        pytest.param(
            "adamw_8bit", 4.5e-4, marks=pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="the extra 8bit")
        ),
    ],
)
def test_two_processes_train_like_one(tiny_world, photos, tmp_path, optimizer, furthest):
    """Same global batch, so the same gradients up to the order of summation: 1e-4 after 20 steps. In 8 bits a moment
    between two codes may fall to either, which changes its weight by one update at most: 1e-4 / sqrt(1 - 0.95)."""
    env = environment(tiny_world, tmp_path / "cache")
    changes = ("training.num_steps=20", "training.save_every_steps=20", "training.learning_rate=1e-4")
    changes += (f"memory.optimizer={optimizer}",)
    one, two = tmp_path / "one", tmp_path / "two"
    run(command(photos, one, *changes), env)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m"]
    done = subprocess.run(
        launcher + command(photos, two, *changes)[2:] + ["--json"], env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["num_processes"] == 2
    a, b = weights(one), weights(two)
    assert a.keys() == b.keys()
    compared = [name for name in a if name.startswith(("weights", "average", "product"))]
    assert max((a[name] - b[name]).abs().max().item() for name in compared) < furthest
    moved = [name for name in a if name.startswith("product controlnet_mid_block")]  # zero at the start
    assert max(a[name].abs().max().item() for name in moved) > 1e-4
