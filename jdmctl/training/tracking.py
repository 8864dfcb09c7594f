"""A run's numbers and pictures once more, in the files that TensorBoard reads (`tensorboard --logdir runs`)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from jdmctl.errors import JdmError
from jdmctl.training.atomic import writing

_PLACE = ("stage", "step", "num_steps")


class EventFiles:
    """tensorboard/STAGE/events.out.tfevents...: a curve's steps are those of one stage, as in metrics.jsonl.

    A file begins by taking back whatever earlier files hold of its first step and later ones: so what a killed run did
    after its last checkpoint is there once, as the resumed run did it again. Every record is on its way to the disk
    when `write` returns.
    """

    def __init__(self, folder: Path):
        self._folder = folder
        self._stage, self._step = "", 0
        self._writer: Any = None

    def write(self, record: Mapping[str, Any]) -> None:
        """The numbers of a record of metrics.jsonl, as EVENT/NAME; of a list each entry, as EVENT/NAME/0 and so on."""
        with writing(self._folder):
            self._go_to(record["stage"], record["step"])
            for name, value in _numbers(record):
                self._writer.add_scalar(f"{record['event']}/{name}", value, self._step)
            self._writer.flush()

    def show(self, picture: Image.Image) -> None:
        """A picture of where the last record was."""
        with writing(self._folder):
            self._writer.add_image("preview", np.asarray(picture), self._step, dataformats="HWC")
            self._writer.flush()

    def close(self) -> None:
        with writing(self._folder):
            if self._writer:
                self._writer.close()

    def _go_to(self, stage: str, step: int) -> None:
        if stage != self._stage:
            self.close()
            self._writer = summary_writer()(self._folder / stage, purge_step=step)
        self._stage, self._step = stage, step


def summary_writer() -> Any:
    """torch's class that writes event files. Raises JdmError if tensorboard is not there."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as problem:
        raise JdmError(
            "training.tracker: tensorboard needs tensorboard, which is not installed",
            hint="pip install 'jdmctl[track]'",
        ) from problem
    return SummaryWriter


def _numbers(record: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    for name, value in record.items():
        entries = {f"{name}/{at}": one for at, one in enumerate(value)} if isinstance(value, list) else {name: value}
        if name not in _PLACE:
            yield from ((key, one) for key, one in entries.items() if isinstance(one, int | float))
