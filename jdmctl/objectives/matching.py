"""Fidelity: how the student's sample should move so that its distribution nears the teacher's."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol

from torch import Tensor

from jdmctl.diffusion.schedule import expand


class Fidelity(Protocol):
    """A rule for d(loss)/d(x0). `through_networks`: it differentiates both networks with respect to their inputs."""

    through_networks: ClassVar[bool]

    def gradient(
        self, x0: Tensor, teacher_x0: Tensor, fake_x0: Tensor, alpha: Tensor, sigma: Tensor
    ) -> Tensor: ...  # [B, C, h, w]; alpha and sigma are [B]


@dataclass(frozen=True)
class Matching:
    """The gradient of reverse KL between the diffused student q_t and the diffused teacher p_t.

    With x_t = alpha x0 + sigma noise and s = (alpha x0hat - x_t) / sigma^2 for both scores,

        d KL(q_t || p_t) / d x0  =  alpha (s_fake - s_teacher)
                                 =  (alpha^2 / sigma^2) (fake_x0 - teacher_x0)

    (Luo et al. 2023, Diff-Instruct, arXiv:2305.18455). `weight` says what stands before the
    difference:

        kl          alpha^2 / sigma^2: this gradient itself, in nats, summed over dimensions
        normalized  1 / mean |x0 - teacher_x0|: about the same size at every noise level
                    (Yin et al. 2024, DMD, arXiv:2311.18828, eq. 8)
    """

    weight: Literal["kl", "normalized"] = "normalized"

    through_networks: ClassVar[bool] = False

    def gradient(self, x0: Tensor, teacher_x0: Tensor, fake_x0: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """d(loss)/d(x0) of each sample [B, C, h, w]; alpha and sigma are [B]."""
        scale = _WEIGHTS[self.weight](x0, teacher_x0, alpha, sigma)  # [B]
        return expand(scale, x0) * (fake_x0 - teacher_x0)


def _kl(x0: Tensor, teacher_x0: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    return (alpha / sigma) ** 2


def _normalized(x0: Tensor, teacher_x0: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    return 1 / (x0 - teacher_x0).abs().flatten(1).mean(1).clamp(min=1e-6)


_WEIGHTS: dict[str, Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]] = {
    "kl": _kl,
    "normalized": _normalized,
}
