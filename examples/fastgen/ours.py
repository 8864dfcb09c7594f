"""Small networks, fixed inputs and our side of a student's step."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from jdmctl.diffusion.schedule import RectifiedFlow
from jdmctl.diffusion.timesteps import UniformTimesteps
from jdmctl.objectives.divergence import load_divergence
from jdmctl.objectives.matching import Matching
from jdmctl.objectives.ratio import RatioNormaliser
from jdmctl.training.steps.jdm import JDMStep
from jdmctl.types import Batch, EnergyWeights

CHANNELS = 4
STUDENT_TIME = 0.999  # the last of FastGen's schedule


class Network(nn.Module):
    """A denoiser of `2 depth` blocks; a critic reads what comes out of the first half."""

    def __init__(self, width: int, depth: int) -> None:
        super().__init__()
        self.tell = nn.Linear(1, width)
        self.enter = nn.Conv2d(CHANNELS, width, 3, padding=1)
        self.first, self.second = (
            nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in range(depth)) for _ in range(2)
        )
        self.leave = nn.Conv2d(width, CHANNELS, 3, padding=1)

    def features(self, x_t: Tensor, t: Tensor) -> Tensor:
        hidden = self.enter(x_t) + self.tell(t[:, None])[..., None, None]
        for block in self.first:
            hidden = hidden + block(silu(hidden))
        return hidden

    def look(self, x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """x0 and the features."""
        features = hidden = self.features(x_t, t)
        for block in self.second:
            hidden = hidden + block(silu(hidden))
        return self.leave(silu(hidden)), features

    def forward(self, x_t: Tensor, t: Tensor, prompt=None, controls=None) -> Tensor:
        return self.look(x_t, t)[0]


class Head(nn.Module):
    """Logits [B, heads] of features at one place: a mean would hardly differ between samples, and reach no clamp."""

    def __init__(self, width: int, heads: int, gain: float) -> None:
        super().__init__()
        self.judge = nn.Conv2d(width, heads, 3, padding=1, bias=False)
        self.gain = gain

    def forward(self, features: Tensor) -> Tensor:
        return self.gain * self.judge(features)[..., 0, 0]


class Networks:
    def __init__(self, seed: int, *, width: int = 16, depth: int = 1, heads: int = 1, gain: float = 8.0) -> None:
        torch.manual_seed(seed)
        self.student, self.teacher, self.fake_score = (Network(width, depth) for _ in range(3))
        self.head = Head(width, heads, gain)
        for module in (self.teacher, self.fake_score, self.head):
            module.requires_grad_(False)

    def to(self, dtype: torch.dtype) -> Networks:
        for module in (self.student, self.teacher, self.fake_score, self.head):
            module.to(dtype)
        return self


@dataclass(frozen=True)
class Inputs:
    """Draws that were made before: z, noise [B, C, h, w] and t [B]."""

    z: Tensor
    noise: Tensor
    t: Tensor

    @classmethod
    def of(cls, seed: int, dtype: torch.dtype, size: int = 48, side: int = 8) -> Inputs:
        generator = torch.Generator().manual_seed(seed)
        z, noise = torch.randn(2, size, CHANNELS, side, side, generator=generator).to(dtype)
        return cls(z, noise, agreed_times(size, generator).to(dtype))

    @property
    def size(self) -> int:
        return len(self.t)

    def normal(self, name: str, shape: tuple[int, ...]) -> Tensor:
        return self.z if name == "student_noise" else self.noise

    def uniform(self, name: str) -> Tensor:
        return self.t


def agreed_times(size: int, generator: torch.Generator) -> Tensor:
    """Times [size] of all ten bins, that lie in the same bin of [0, 1] and of FastGen's [0, 0.999]."""
    k = torch.randint(0, 10, (size,), generator=generator)
    inside = 0.001 + 0.998 * torch.rand(size, generator=generator)  # off the edges, where rounding decides
    return 0.1 * k + inside * (0.0999 - 0.0001 * k)


@dataclass
class OneStepStudent:
    network: Network
    x0: Tensor | None = None  # what it drew last

    def generate(self, noise: Tensor, prompt=None, controls=None) -> Tensor:
        self.x0 = self.network(noise, torch.full((len(noise),), STUDENT_TIME, dtype=noise.dtype))
        return self.x0

    def __call__(self, x_t: Tensor, t: Tensor, prompt=None, controls=None) -> Tensor:
        return self.network(x_t, t)


@dataclass(frozen=True)
class TeacherCritic:
    networks: Networks

    def __call__(self, x_t: Tensor, t: Tensor, prompt=None, controls=None) -> Tensor:
        return self.networks.head(self.networks.teacher.features(x_t, t)).mean(1)


class Untouched:
    def encode(self, image: Tensor) -> Tensor:
        return image

    def decode(self, latent: Tensor) -> Tensor:
        return latent


def our_step(networks: Networks, divergence: str, gan_weight: float, side: int) -> JDMStep:
    return JDMStep(
        student=OneStepStudent(networks.student),
        teacher=networks.teacher,
        fake_score=networks.fake_score,
        codec=Untouched(),
        schedule=RectifiedFlow(),
        timesteps=UniformTimesteps(0, 1),
        matching=Matching("normalized"),
        energies=(),
        weights=EnergyWeights(),
        latent_shape=(CHANNELS, side, side),
        student_parameters=tuple(networks.student.parameters()),
        fake_score_parameters=(),
        divergence=load_divergence(divergence),
        critic=TeacherCritic(networks),
        normaliser=RatioNormaliser(),
        gan_weight=gan_weight,
    )


def our_student_step(step: JDMStep, inputs: Inputs) -> tuple[Tensor, Tensor]:
    """Our loss, a scalar, and x0 [B, C, h, w] that it hangs on."""
    total = step.student_loss(Batch(None, {}, inputs)).total
    assert isinstance(step.student, OneStepStudent) and step.student.x0 is not None
    return total, step.student.x0
