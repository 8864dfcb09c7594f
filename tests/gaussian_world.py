"""A world where every network of a JDM step is known exactly, in float64.

Teacher p(x) = N(mean, variance); requests c ~ N(0, request_variance); the control obeys
p(c | x) = N(x, tau^2), so its energy is (c - x)^2 / (2 tau^2); the student draws

    x = gain c + bias + spread z,   z ~ N(0, 1).

All gradients are polynomials of degree two in (z, c, noise), so the two points -1 and +1 integrate
each of the three exactly, and a batch that holds their product with a grid of times *is* the
expectation: one JDM step on it has no sampling error. Latents and images are [B, 1, 1, 1].
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from jdmctl.diffusion.schedule import DiscreteSchedule, Schedule, expand
from jdmctl.diffusion.timesteps import UniformTimesteps
from jdmctl.objectives.matching import Matching
from jdmctl.training.steps.jdm import JDMStep
from jdmctl.types import Batch, EnergyWeights


def stable_diffusion_schedule() -> DiscreteSchedule:
    """Stable Diffusion's table: beta from 0.00085 to 0.012, linear in its square root."""
    beta = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    return DiscreteSchedule((1 - beta).cumprod(0))


def gaussian_kl(mean, variance, target_mean, target_variance):
    """KL( N(mean, variance) || N(target_mean, target_variance) ) in nats."""
    ratio = variance / target_variance
    return 0.5 * (ratio - 1 - ratio.log() + (mean - target_mean) ** 2 / target_variance)


@dataclass(frozen=True)
class World:
    schedule: Schedule
    timesteps: UniformTimesteps = UniformTimesteps()
    num_times: int = 96
    mean: float = 0.0
    variance: float = 1.0
    request_variance: float = 1.0

    @property
    def t(self) -> Tensor:
        """Midpoints of equal slices: E over them is what "E over t" means below."""
        return self.timesteps(self._u)

    @property
    def alpha(self) -> Tensor:
        return self.schedule.alpha(self.t)

    @property
    def sigma(self) -> Tensor:
        return self.schedule.sigma(self.t)

    @property
    def _u(self) -> Tensor:
        return (torch.arange(self.num_times, dtype=torch.float64) + 0.5) / self.num_times

    def batch(self) -> Batch:
        sign = torch.tensor([-1.0, 1.0], dtype=torch.float64)
        z, c, noise, u = (v.flatten() for v in torch.meshgrid(sign, sign, sign, self._u, indexing="ij"))
        draws = GridDraws(z, noise, u)
        return Batch(None, {"request": (self.request_variance**0.5 * c).reshape(-1, 1, 1, 1)}, draws)

    def step(self, student: "GaussianStudent", form: str, k: float, **fields) -> JDMStep:
        """The step at lambda / tau^2 = k, with tau^2 = 0.1 as in the examples of the docs."""
        tau_squared = 0.1
        defaults = dict(
            student=student,
            teacher=ExactTeacher(self),
            fake_score=ExactFakeScore(self, student),
            codec=IdentityCodec(),
            schedule=self.schedule,
            timesteps=self.timesteps,
            matching=Matching("kl"),
            energies=(GaussianEnergy(tau_squared),),
            weights=EnergyWeights({"request": k * tau_squared}),
            latent_shape=(1, 1, 1),
            student_parameters=tuple(student.parameters()),
            fake_score_parameters=(),
            form=form,
        )
        return JDMStep(**defaults | fields)

    def denoise(self, x_t: Tensor, t: Tensor, mean: Tensor | float, variance: Tensor | float) -> Tensor:
        """E[x0 | x_t] for x0 ~ N(mean, variance)."""
        alpha, sigma = expand(self.schedule.alpha(t), x_t), expand(self.schedule.sigma(t), x_t)
        regression = alpha * variance / (alpha**2 * variance + sigma**2)
        return mean + regression * (x_t - alpha * mean)


class GaussianStudent(nn.Module):
    def __init__(self, gain: float = 0.0, spread: float = 1.0, bias: float = 0.0) -> None:
        super().__init__()
        self.gain, self.spread, self.bias = (
            nn.Parameter(torch.tensor(value, dtype=torch.float64)) for value in (gain, spread, bias)
        )

    def generate(self, noise, prompt, controls=None):
        return self.gain * controls["request"] + self.bias + self.spread * noise


@dataclass(frozen=True)
class ExactTeacher:
    world: World

    def __call__(self, x_t, t, prompt, controls=None):
        assert controls is None, "the teacher must not see controls"
        return self.world.denoise(x_t, t, self.world.mean, self.world.variance)


@dataclass(frozen=True)
class ExactFakeScore:
    """Knows the student: N(gain c + bias, spread^2) given c, the mixture of these if not."""

    world: World
    student: GaussianStudent

    def __call__(self, x_t, t, prompt, controls=None):
        gain, spread, bias = self.student.gain, self.student.spread, self.student.bias
        if controls is not None:
            return self.world.denoise(x_t, t, gain * controls["request"] + bias, spread**2)
        return self.world.denoise(x_t, t, bias, gain**2 * self.world.request_variance + spread**2)


class IdentityCodec:
    def encode(self, image):
        return image

    def decode(self, latent):
        return latent


@dataclass(frozen=True)
class GaussianEnergy:
    tau_squared: float
    name: str = "request"

    def __call__(self, image, batch):
        distance = (batch.conditions["request"] - image).flatten(1)
        return distance.square().sum(1) / (2 * self.tau_squared)


@dataclass(frozen=True)
class GridDraws:
    """Answers with grids; the two terms of the loss may share one, being expectations apart."""

    z: Tensor
    noise: Tensor
    u: Tensor

    @property
    def size(self) -> int:
        return len(self.u)

    def normal(self, name: str, shape: tuple[int, ...]) -> Tensor:
        values = self.z if name == "student_noise" else self.noise
        return values.reshape(-1, *shape)

    def uniform(self, name: str) -> Tensor:
        return self.u
