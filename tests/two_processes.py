"""Two processes on this machine that train together, as a launcher would start them."""

import multiprocessing
import os
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator


def start(folder: Path, work: Callable[..., Any], *arguments: Any) -> list[BaseProcess]:
    """`work(accelerator, *arguments)` in each; `work` is a module's function, and returns an exit code or None."""
    context = multiprocessing.get_context("spawn")
    each = [(rank, folder, work, arguments) for rank in range(2)]
    processes = [context.Process(target=_join, args=given, daemon=True) for given in each]
    for process in processes:
        process.start()
    return processes


def together(folder: Path, work: Callable[..., Any], *arguments: Any) -> None:
    """The same, until both have ended well."""
    processes = start(folder, work, *arguments)
    for process in processes:
        process.join(300)
    codes = [process.exitcode for process in processes]
    for process in processes:
        process.kill()
    assert codes == [0, 0]


def _join(rank: int, folder: Path, work: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "OMP_NUM_THREADS": 1}
    os.environ |= {name: str(number) for name, number in names.items()}
    torch.set_num_threads(1)
    meeting = f"file://{folder / 'meeting'}"
    torch.distributed.init_process_group("gloo", init_method=meeting, rank=rank, world_size=2)
    code = work(Accelerator(cpu=True), *arguments)
    torch.distributed.barrier()
    os._exit(code or 0)  # at once: gloo's threads do not always end well
