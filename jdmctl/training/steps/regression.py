"""A first approximation of a one-step student: the teacher's own answers to the same noise."""

from dataclasses import dataclass

from torch import nn

from jdmctl.objectives.energy import pseudo_huber
from jdmctl.types import Batch, Losses, Phase, Student

SMALL = 0.1  # an error of a latent that counts by its square still


@dataclass(frozen=True)
class RegressionStep:
    """E |G(z) - teacher(z)|, pseudo-Huber, over pairs of noise z and what many steps of the teacher make of it.

    (Yin et al. 2024, DMD, arXiv:2311.18828, has it beside the matching, DMD2, arXiv:2405.14867, before it.) Its
    optimum is a mean and so blurred; matching then makes it sharp.
    """

    student: Student
    student_parameters: tuple[nn.Parameter, ...]

    @property
    def phases(self) -> tuple[Phase, ...]:
        return (Phase("regression", self.loss, self.student_parameters),)

    def loss(self, batch: Batch) -> Losses:
        """Needs the teacher's latents and the noise that they came from."""
        if batch.latents is None or batch.latent_noise is None:
            raise ValueError("regression needs pairs of noise and the teacher's latents")
        x0 = self.student.generate(batch.latent_noise, batch.prompt, batch.conditions)
        total = pseudo_huber(x0, batch.latents, SMALL).mean()
        return Losses(total, {"regression_loss": total.detach()})
