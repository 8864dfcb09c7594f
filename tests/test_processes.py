"""Several processes: the messages in which they average, and that they stop and halt as one."""

import os
import signal
import time
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from accelerate import PartialState
from accelerate.utils import broadcast
from torch import nn
from toy_training import ToyStep, Watcher, stages, train
from two_processes import start, together

from jdmctl.errors import RunInterrupted
from jdmctl.training import processes
from jdmctl.training.checkpoint import Checkpoints
from jdmctl.training.plan import Stage
from jdmctl.training.run import make_accelerator

pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without distributed")


@dataclass
class Counted:
    """One of two processes of which the other has no gradient: what is sent, and a mean of half."""

    sent: list[int]
    num_processes: int = 2

    def reduce(self, tensor, reduction):
        assert reduction == "mean"
        self.sent.append(tensor.nbytes)
        return tensor / 2


def parameters(*shapes: tuple[int, ...]) -> list[nn.Parameter]:
    found = [nn.Parameter(torch.zeros(shape)) for shape in shapes]
    for number, parameter in enumerate(found):
        generator = torch.Generator().manual_seed(number)
        parameter.grad = torch.randn(parameter.shape, generator=generator)
    found[1].grad = found[1].grad.contiguous(memory_format=torch.channels_last)
    return [*found, nn.Parameter(torch.zeros(3))]  # the last has no gradient


SHAPES = ((5,), (6, 4, 3, 3), (), (2, 40), (7, 3), (1, 4, 30))  # 20, 864, 4, 320, 84, 480 bytes


def test_messages_are_no_larger_than_a_piece(monkeypatch):
    """Of 200 bytes: a number of the longest dimension has 144, 8 and 16 bytes, so slices of 1, 25 and 12 of them."""
    monkeypatch.setattr(processes, "PIECE_BYTES", 200)
    found, accelerator = parameters(*SHAPES), Counted([])
    before = [p.grad.clone() for p in found[:-1]]
    processes.average_gradients(found, accelerator)
    assert accelerator.sent == [20 + 144, *[144] * 4, 144 + 4, 200, 120, 84, 192, 192, 96]
    assert all(torch.equal(p.grad, grad / 2) for p, grad in zip(found[:-1], before, strict=True))
    assert found[-1].grad is None


def average_both_ways(accelerator) -> None:
    """Gradients that differ between processes, in one message and in pieces of 200 bytes; and weights sent around."""
    ways = [parameters(*SHAPES) for _ in range(2)]
    for size, found in zip((2**20, 200), ways, strict=True):
        processes.PIECE_BYTES = size
        for parameter in found[:-1]:
            parameter.grad.mul_(1.7 ** (1 + accelerator.process_index)).add_(accelerator.process_index)
        processes.average_gradients(found, accelerator)
    for one, other in zip(*ways, strict=True):
        assert one.grad is None or torch.equal(one.grad, other.grad)
    first = [broadcast(p.grad.clone()) for p in ways[0][:-1]]
    assert all(torch.equal(p.grad, sent) for p, sent in zip(ways[0], first, strict=False))

    weights = [nn.Parameter(torch.full(shape, 1.0 + accelerator.process_index)) for shape in SHAPES]
    processes.broadcast_parameters(weights, accelerator)
    assert all((weight == 1).all() for weight in weights)


def test_two_processes_average_in_pieces_as_in_one_message_bit_for_bit(tmp_path):
    together(tmp_path, average_both_ways)


class SlowDisk(Checkpoints):
    """A second for each checkpoint."""

    def save(self, name, tensors, state):
        time.sleep(1)
        return super().save(name, tensors, state)


def train_until_stopped(accelerator, folder: Path) -> int:
    """Leaves what the newest checkpoint was when this process left the loop."""
    step = ToyStep()
    checkpoints = SlowDisk(folder / "checkpoints")
    with pytest.raises(RunInterrupted) as stopped:
        train(checkpoints, step, stages(step, 0, 10**9), accelerator=accelerator, save_every_steps=10**9)
    latest = checkpoints.latest()
    (folder / f"left-{accelerator.process_index}").write_text(f"{stopped.value}\n{latest and latest.name}")
    return stopped.value.exit_code


def test_nobody_leaves_before_all_is_saved(tmp_path):
    """Both are told twice within milliseconds, by a scheduler and by the launcher. With a slow disk the second process
    would leave first, and a launcher would then end the first."""
    both = start(tmp_path, train_until_stopped, tmp_path)
    while not (tmp_path / "checkpoints" / "step-000000").exists():
        assert all(process.is_alive() for process in both)
        time.sleep(0.02)
    time.sleep(0.5)
    for _ in range(2):
        for process in both:
            os.kill(process.pid, signal.SIGTERM)
        time.sleep(0.05)
    for process in both:
        process.join(120)
    assert [process.exitcode for process in both] == [130, 130]
    told = [(tmp_path / f"left-{rank}").read_text().splitlines() for rank in range(2)]
    assert told[0] == told[1]
    step = int(told[0][0].split()[4])
    assert step > 0 and told[0][1] == f"step-{step:06d}"


class Alarmed(Watcher):
    """Alarms that never end."""

    def validate(self):
        return super().validate() | {"alarm": 2}


def halt(accelerator, folder: Path) -> None:
    step = ToyStep()
    two = stages(step, 0, 20) + stages(step, 0, 30)
    state, _ = train(folder, step, two, watcher=Alarmed(step), accelerator=accelerator)
    assert (state.stage, state.step, state.halted) == (1, 10, True)
    assert step.calls.count("student") == 20 + 10


def test_two_processes_halt_at_the_same_step_and_not_while_they_warm_up(tmp_path):
    together(tmp_path, halt, tmp_path)
    assert Checkpoints(tmp_path / "checkpoints").latest().name == "step-000010"


class LateReader(Checkpoints):
    """The second process reads a second after the first."""

    def load(self, path):
        read = self.folder / ".read"
        while int(os.environ["RANK"]) and not read.exists():
            time.sleep(0.02)
        time.sleep(int(os.environ["RANK"]))
        found = super().load(path)
        read.touch()
        return found


def resume(accelerator, folder: Path) -> None:
    step = ToyStep()
    train(LateReader(folder), step, two_stages(step), accelerator=accelerator, resume=True)


def two_stages(step: ToyStep) -> list[Stage]:
    return stages(step, 0, 10) + [replace(stages(step, 0, 10)[0], name="second", prefix="second")]


def test_nothing_is_saved_or_deleted_before_all_have_read(tmp_path):
    """The first process enters the second stage at once, and its save there deletes what the other is yet to read."""
    step = ToyStep()
    train(Checkpoints(tmp_path / "checkpoints"), step, two_stages(step)[:1])
    together(tmp_path, resume, tmp_path / "checkpoints")
    assert Checkpoints(tmp_path / "checkpoints").latest().name == "second-000010"


def test_processes_wait_for_hours(monkeypatch):
    """What accelerate tells torch in the second of two processes: by itself NCCL waits for ten minutes, gloo for 30."""
    told = {}

    def begin(**settings):
        told.update(settings)
        raise InterruptedError

    names = {"RANK": 1, "LOCAL_RANK": 1, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "OMP_NUM_THREADS": 1}
    for name, number in names.items():
        monkeypatch.setenv(name, str(number))
    monkeypatch.setattr(torch.distributed, "init_process_group", begin)
    monkeypatch.setattr(PartialState, "_shared_state", {})  # as in a new process
    with pytest.raises(InterruptedError):
        make_accelerator("cpu", "fp32")
    assert told["backend"] == "gloo" and told["timeout"] >= timedelta(hours=2)
