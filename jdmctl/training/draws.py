"""Random numbers that belong to a sample, not to a process or a moment."""

import functools
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class SampleDraws:
    """Draws for a batch, each a function of (seed, stream, global sample index, name) alone.

    So neither the number of processes, nor the order of calls, nor a resumed run changes what a
    sample gets. Philox is counter-based and takes a 128-bit key (Salmon et al. 2011,
    doi:10.1145/2063384.2063405); torch's CPU generator would keep only 32 bits of a seed, few
    enough to give two samples of a run the same noise.
    """

    seed: int
    stream: str
    indices: Sequence[int]  # global sample indices
    device: torch.device | str = "cpu"

    @property
    def size(self) -> int:
        return len(self.indices)

    def normal(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """N(0, 1), float32 [B, *shape]."""
        return self._stack(name, lambda rng: rng.standard_normal(shape, dtype=np.float32))

    def uniform(self, name: str) -> Tensor:
        """Uniform in [0, 1), float32 [B]."""
        return self._stack(name, lambda rng: rng.random((), dtype=np.float32))

    def _stack(self, name: str, draw: Callable[[np.random.Generator], np.ndarray]) -> Tensor:
        rows = [draw(self._generator(index, name)) for index in self.indices]
        return torch.from_numpy(np.stack(rows)).to(self.device)

    def _generator(self, index: int, name: str) -> np.random.Generator:
        identity = f"{self.seed}\n{self.stream}\n{index}\n{name}".encode()
        key = int.from_bytes(hashlib.blake2b(identity, digest_size=16).digest(), "little")
        return np.random.Generator(np.random.Philox(key=key))


@functools.lru_cache(maxsize=32)
def order(seed: int, stream: str, epoch: int, size: int) -> list[int]:
    """The order in which an epoch of a stream goes through `size` things."""
    keys = SampleDraws(seed, f"{stream} order", range(epoch, epoch + 1)).normal("order", (size,))
    return keys[0].argsort(stable=True).tolist()
