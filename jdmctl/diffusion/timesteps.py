"""Which noise levels a loss looks at."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class UniformTimesteps:
    """t uniform in [low, high).

    The default leaves out both ends, as DMD2 does (Yin et al. 2024, arXiv:2405.14867).
    """

    low: float = 0.02
    high: float = 0.98

    def __call__(self, u: Tensor) -> Tensor:
        """u [B] uniform in [0, 1) -> t [B]."""
        return self.low + (self.high - self.low) * u
