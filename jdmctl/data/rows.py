"""What every format of data comes down to: numbered captions and pictures, and condition pictures if it has them."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from torch import Tensor

from jdmctl.data.formats import CONDITION
from jdmctl.data.pictures import Picture, read_image, require_fit
from jdmctl.errors import BadInputError


class Rows(Protocol):
    """Row i is the same each time, in whatever order rows are asked for: resuming a run rests on it."""

    @property
    def conditions(self) -> tuple[str, ...]: ...  # columns of ready-made condition pictures

    def __len__(self) -> int: ...

    def text(self, index: int) -> str: ...

    def picture(self, index: int, column: str = "") -> Picture: ...  # of a column of `conditions`; "" is the picture

    def repeats(self, index: int) -> int: ...  # how often an epoch of training shows it

    def shown(self, index: int) -> Hashable: ...  # its picture: equal for rows known to share one, and in another run

    def identity(self) -> str: ...  # changes when the files do, or another column is their picture


@dataclass(frozen=True)
class ListedRows:
    """Rows whose pictures are files."""

    folder: Path  # of the data set
    files: Sequence[Path]
    texts: Sequence[str]
    others: Mapping[str, Sequence[Path]] = field(default_factory=dict)  # column of conditions -> files
    times: Sequence[int] = ()

    @property
    def conditions(self) -> tuple[str, ...]:
        return tuple(self.others)

    def __len__(self) -> int:
        return len(self.files)

    def text(self, index: int) -> str:
        return self.texts[index]

    def picture(self, index: int, column: str = "") -> Path:
        return (self.others[column] if column else self.files)[index]

    def repeats(self, index: int) -> int:
        return self.times[index] if self.times else 1

    def shown(self, index: int) -> str:
        return name_in(self.folder, self.files[index])

    def identity(self) -> str:
        return identity_of(self.files)


def name_in(folder: Path, file: Path) -> str:
    """What a file is called in a folder's list, whether by a path from there or by one from the root."""
    return str(file).removeprefix(os.path.join(folder, ""))


def identity_of(files: Sequence[Path]) -> str:
    """A digest of where files are, how large, and when they were last written."""
    states = ((file, file.stat()) for file in files)
    lines = (f"{file.absolute()} {state.st_size} {state.st_mtime_ns}\n" for file, state in states)
    digest = hashlib.sha256()
    for line in lines:
        digest.update(line.encode())
    return digest.hexdigest()


class Pictures:
    """Rows as tensors: squares of a side, or of a height and width for each. A picture is opened when asked for."""

    def __init__(self, rows: Rows, size_px: int | Callable[[int], tuple[int, int]]) -> None:
        self.rows, self._size_px = rows, size_px

    def __len__(self) -> int:
        return len(self.rows)

    def text(self, index: int) -> str:
        return self.rows.text(index)

    def image(self, index: int) -> Tensor:
        """[3, H, W] in [0, 1]; raises BadInputError for a picture that cannot be read."""
        return self._read(index)

    def _read(self, index: int, column: str = "") -> Tensor:
        size = self._size_px if isinstance(self._size_px, int) else self._size_px(index)
        return read_image(self.rows.picture(index, column), size)


class PairedPictures(Pictures):
    """Pictures with the condition pictures that lie beside them.

    Raises BadInputError where there are none for a control. With one control `conditioning_image` serves for it.
    """

    def __init__(
        self, rows: Rows, controls: Sequence[str], size_px: int | Callable[[int], tuple[int, int]], path: str
    ) -> None:
        super().__init__(rows, size_px)
        found = rows.conditions
        self._columns = {name: f"{CONDITION}_{name}" for name in controls}
        if len(controls) == 1 and self._columns[controls[0]] not in found:
            self._columns[controls[0]] = CONDITION
        missing = [column for column in self._columns.values() if column not in found]
        if missing:
            raise BadInputError(
                f"{path} has no {', '.join(missing)}; of condition pictures it has {', '.join(found) or 'none'}",
                hint="add them, or extract conditions from its pictures: --set data.source=images",
            )

    def conditions(self, index: int) -> dict[str, Tensor]:
        """Control -> condition [3, H, W] in [0, 1]; raises BadInputError for one of another shape than its picture."""
        for column in self._columns.values():
            require_fit(self.rows.picture(index), self.rows.picture(index, column))
        return {name: self._read(index, column) for name, column in self._columns.items()}
