"""What holds parameters near where they started."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn


@dataclass(frozen=True)
class Anchor:
    """weight / 2 |theta - theta_0|^2, the usual alternative to fidelity against fooled rewards.

    (Regularisation towards the pre-trained weights, as in Reward-Instruct, Luo et al. 2025, arXiv:2503.13070.) It
    knows no distribution: a direction that ruins pictures costs as much as one that does not.
    """

    parameters: tuple[nn.Parameter, ...]
    start: tuple[Tensor, ...]
    weight: float

    @classmethod
    def here(cls, parameters: Sequence[nn.Parameter], weight: float) -> Anchor:
        """At where the parameters are now."""
        return cls(tuple(parameters), tuple(parameter.detach().clone() for parameter in parameters), weight)

    def __call__(self) -> Tensor:
        """A scalar, differentiable."""
        distances = [(now - start).square().sum() for now, start in zip(self.parameters, self.start, strict=True)]
        return self.weight / 2 * sum(distances[1:], start=distances[0])
