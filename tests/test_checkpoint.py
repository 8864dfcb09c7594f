"""Checkpoints are whole or absent, and hold what was put in."""

import errno
import os
import shutil
import signal
import subprocess
import sys
from itertools import count
from pathlib import Path

import pytest
import torch
from torch import nn

from jdmctl.errors import JdmError, MissingWeightsError
from jdmctl.training.atomic import whole_folder
from jdmctl.training.checkpoint import Checkpoints
from jdmctl.training.memory import PeakBytes

TENSORS = {
    "weights": {"a": torch.arange(3.0)},
    "average": {"a": torch.ones(2, dtype=torch.bfloat16)},
}


def test_what_is_saved_comes_back(tmp_path):
    checkpoints = Checkpoints(tmp_path, {"recipe": "name: x"})
    path = checkpoints.save("step-000001", TENSORS, {"order": 1, "loss": 0.1 + 0.2})
    tensors, state = checkpoints.load(path)
    assert state == {"order": 1, "loss": 0.1 + 0.2}
    for stem, group in TENSORS.items():
        for name, value in group.items():
            assert torch.equal(tensors[stem][name], value) and tensors[stem][name].dtype == value.dtype


class OnDevice(PeakBytes):
    """Torch's `meta` in place of a GPU: what comes from it is ones, and only what is made on it is counted."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten._to_copy.default and args[0].is_meta and kwargs["device"].type == "cpu":
            return torch.empty_strided(args[0].shape, args[0].stride(), dtype=args[0].dtype).fill_(1)
        return super().__torch_dispatch__(func, types, args, kwargs)

    def _see(self, tensor, given):
        if tensor.is_meta:
            super()._see(tensor, given)


def test_saving_takes_no_memory_on_the_device(tmp_path):
    """Weights that lie channels last are made contiguous on the CPU; on the device that would be as much again."""
    weights = {
        "last": torch.empty(4, 3, 2, 2, device="meta").to(memory_format=torch.channels_last),
        "turned": torch.empty(3, 2, device="meta", dtype=torch.bfloat16).T,
        "first": nn.Parameter(torch.empty(5, device="meta")),
    }
    with OnDevice() as seen:
        path = Checkpoints(tmp_path).save("step-000001", {"weights": weights}, {"order": 1})
    assert seen.peak == 0
    for name, value in Checkpoints(tmp_path).load(path)[0]["weights"].items():
        assert torch.equal(value, torch.ones(weights[name].shape, dtype=weights[name].dtype)) and value.is_contiguous()


def test_every_safetensors_file_carries_the_recipe(tmp_path):
    from safetensors import safe_open

    path = Checkpoints(tmp_path, {"recipe": "name: x"}).save("step-000001", TENSORS, {"order": 1})
    with safe_open(path / "weights.safetensors", "pt") as file:
        assert file.metadata()["recipe"] == "name: x"


def test_latest_goes_by_order_and_ignores_what_is_half_written(tmp_path):
    """A killed process leaves a hidden folder, and a step-000009 of an earlier stage is not the latest."""
    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.latest() is None
    checkpoints.save("fake-score-warmup-000009", TENSORS, {"order": 9})
    newest = checkpoints.save("step-000001", TENSORS, {"order": 10})
    half = tmp_path / ".step-000002.partial"
    shutil.copytree(newest, half)
    (tmp_path / "step-000003").mkdir()  # no state.json: not a checkpoint
    assert checkpoints.latest() == newest
    checkpoints.prune({"step-000001"})
    assert os.listdir(tmp_path) == ["step-000001"]


def test_saving_again_replaces(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save("step-000001", {"weights": {"a": torch.zeros(3)}}, {"order": 1})
    path = checkpoints.save("step-000001", TENSORS, {"order": 1})
    assert torch.equal(checkpoints.load(path)[0]["weights"]["a"], torch.arange(3.0))


def test_the_folder_that_one_stands_in_is_filled_and_stays_the_same(tmp_path, monkeypatch):
    """One put in its place would leave the user's shell in a folder that is gone."""
    monkeypatch.chdir(tmp_path)
    before = os.stat(".").st_ino
    for text in ("old", "new"):
        with whole_folder(Path(".")) as partial:
            (partial / text / "within").mkdir(parents=True)
            (partial / f"{text}.txt").write_text(text)
        assert sorted(os.listdir(".")) == [text, f"{text}.txt"] and os.listdir(text) == ["within"]
    assert os.stat(tmp_path).st_ino == before
    assert not list(tmp_path.parent.glob(f".{tmp_path.name}*"))


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_said_and_leaves_the_last_checkpoint(tmp_path, monkeypatch, code):
    checkpoints = Checkpoints(tmp_path)
    first = checkpoints.save("step-000001", TENSORS, {"order": 1})

    def full(descriptor):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(JdmError, match="disk is full: could not save .*step-000002") as caught:
        checkpoints.save("step-000002", TENSORS, {"order": 2})
    assert "--resume" in caught.value.hint
    assert os.listdir(tmp_path) == ["step-000001"]
    assert checkpoints.latest() == first


def test_a_file_that_the_system_cuts_short_leaves_nothing(tmp_path):
    """A real write error from inside safetensors: the process may not write files beyond 64 KiB."""
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, hard))
    try:
        with pytest.raises(JdmError, match="could not save"):
            Checkpoints(tmp_path).save("step-000001", {"weights": {"a": torch.zeros(1 << 16)}}, {"order": 1})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert os.listdir(tmp_path) == []


def test_an_exception_inside_leaves_the_folder_as_it_was(tmp_path):
    target = tmp_path / "controlnet"
    target.mkdir()
    (target / "old").write_text("old")
    with pytest.raises(ZeroDivisionError):
        with whole_folder(target) as partial:
            (partial / "new").write_text("new")
            raise ZeroDivisionError
    assert os.listdir(tmp_path) == ["controlnet"]
    assert os.listdir(target) == ["old"]


@pytest.mark.parametrize("is_here", [False, True])
@pytest.mark.parametrize("error", [OSError(errno.EACCES, "no"), SystemExit(143)])
def test_what_is_there_stays_if_it_cannot_be_replaced(tmp_path, monkeypatch, error, is_here):
    """Each renaming fails once, before or after it is done: by a disk, or by the exception that SIGTERM becomes."""
    target, rename = tmp_path / "made", Path.rename
    (target / "both").mkdir(parents=True)
    (target / "old").write_text("old")
    if is_here:
        monkeypatch.chdir(target)

    def replace(fails_at, is_done):
        calls = count()

        def failing(path, to):
            fails = next(calls) == fails_at
            if is_done or not fails:
                rename(path, to)
            if fails:
                raise error

        with monkeypatch.context() as patched:
            patched.setattr(Path, "rename", failing)
            with whole_folder(target) as partial:
                (partial / "both").mkdir()
                (partial / "new").write_text("new")

    for is_done in (False, True):
        for number in range(4 if is_here else 2):
            with pytest.raises(JdmError if isinstance(error, OSError) else SystemExit):
                replace(number, is_done)
            assert sorted(os.listdir(target)) == ["both", "old"]
            assert os.listdir(tmp_path) == ["made"]
    replace(-1, False)
    assert sorted(os.listdir(target)) == ["both", "new"] and os.listdir(tmp_path) == ["made"]


KILLED = """
import os, signal, sys
from pathlib import Path
from jdmctl.training.atomic import whole_folder

calls, rename = [], Path.rename

def killing(path, to):
    calls.append(path)
    if len(calls) == int(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGKILL)
    rename(path, to)

Path.rename = killing
with whole_folder(Path(sys.argv[1])) as partial:
    (partial / "state.json").write_text('{"order": 1, "which": "new"}')
"""


@pytest.mark.parametrize(("killed_at", "which"), [(1, "old"), (2, "old"), (3, "new")])
def test_a_checkpoint_survives_kill_9_while_it_is_replaced(tmp_path, killed_at, which):
    """Before the old one is laid aside, before the new one takes its name, and before the old one goes."""
    checkpoints = Checkpoints(tmp_path)
    path = checkpoints.save("step-000001", TENSORS, {"order": 1, "which": "old"})
    done = subprocess.run([sys.executable, "-c", KILLED, str(path), str(killed_at)])
    assert done.returncode == -signal.SIGKILL
    assert checkpoints.latest() == path and checkpoints.state(path)["which"] == which
    assert (len(checkpoints.load(path)[0]) == len(TENSORS)) == (which == "old")
    checkpoints.save("step-000001", TENSORS, {"order": 1, "which": "again"})
    assert os.listdir(tmp_path) == ["step-000001"] and checkpoints.state(path)["which"] == "again"


@pytest.mark.parametrize("killed_at", [1, 2, 3])
def test_a_folder_that_kill_9_left_aside_is_put_back_by_the_next_that_fails(tmp_path, killed_at):
    target = tmp_path / "made"
    with whole_folder(target) as partial:
        (partial / "state.json").write_text("old")
    subprocess.run([sys.executable, "-c", KILLED, str(target), str(killed_at)])
    with pytest.raises(ZeroDivisionError), whole_folder(target):
        raise ZeroDivisionError
    assert os.listdir(target) == ["state.json"]


def test_what_kill_9_left_of_other_checkpoints_goes_with_them(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    for number, at in enumerate((1, 2, 3)):
        path = checkpoints.save(f"step-00000{number}", TENSORS, {"order": number})
        subprocess.run([sys.executable, "-c", KILLED, str(path), str(at)])
    checkpoints.save("step-000004", TENSORS, {"order": 4})
    checkpoints.prune({"step-000004"})
    assert os.listdir(tmp_path) == ["step-000004"]


@pytest.mark.parametrize("is_file", [False, True])
def test_a_link_is_followed_and_a_file_is_not_replaced(tmp_path, is_file):
    """The folder that a link names is replaced, where it is."""
    (tmp_path / "far").mkdir()
    target, link = tmp_path / "far" / "made", tmp_path / "link"
    link.symlink_to(target)
    target.write_text("mine") if is_file else (target / "old").mkdir(parents=True)
    if is_file:
        with pytest.raises(JdmError, match="could not save .*link"), whole_folder(link):
            pass
        assert target.read_text() == "mine"
    else:
        with whole_folder(link) as partial:
            (partial / "new").write_text("new")
        assert os.listdir(target) == ["new"]
    assert link.is_symlink() and os.listdir(tmp_path / "far") == ["made"]


def test_a_truncated_checkpoint_is_named(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    path = checkpoints.save("step-000001", TENSORS, {"order": 1})
    file = path / "weights.safetensors"
    file.write_bytes(file.read_bytes()[:-4])
    with pytest.raises(MissingWeightsError, match="step-000001 cannot be read"):
        checkpoints.load(path)
    (path / "state.json").write_text('{"ord')
    with pytest.raises(MissingWeightsError, match="step-000001 cannot be read") as caught:
        checkpoints.latest()
    assert f"delete {path}" in caught.value.hint
