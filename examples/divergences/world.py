"""A teacher of five modes in the plane, and a student that can draw only two ellipses, all of whose scores are known.

Points are latents [B, 2, 1, 1]. Everything is a mixture of Gaussians, and stays one when noised: N(m, S) becomes
N(alpha m, alpha^2 S + sigma^2 I).
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from jdmctl.diffusion.schedule import Schedule

NUM_MODES, RADIUS, SPREAD = 5, 2.0, 0.25


@dataclass(frozen=True)
class Mixture:
    """Equal weights; means [K, 2] and covariances [K, 2, 2]."""

    means: Tensor
    covariances: Tensor

    def noised(self, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """Means [B, K, 2] and covariances [B, K, 2, 2] at each of B noise levels."""
        noise = (sigma**2)[:, None, None, None] * torch.eye(2)
        return alpha[:, None, None] * self.means, (alpha**2)[:, None, None, None] * self.covariances + noise

    def log_density(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """log p_t(x_t) [B] of x [B, 2]."""
        return _log_parts(x, *self.noised(alpha, sigma)).logsumexp(1) - math.log(len(self.means))

    def denoise(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """E[x0 | x_t] [B, 2]: each part's linear regression, by how likely the part is."""
        means, covariances = self.noised(alpha, sigma)
        shares = _log_parts(x, means, covariances).softmax(1)  # [B, K]
        solved = torch.linalg.solve(covariances, x[:, None] - means)  # [B, K, 2]
        back = self.means + alpha[:, None, None] * (self.covariances @ solved[..., None])[..., 0]
        return (shares[..., None] * back).sum(1)

    def sample(self, number: int, generator: torch.Generator) -> Tensor:
        which = torch.randint(len(self.means), (number,), generator=generator)
        z = torch.randn(number, 2, generator=generator)
        return self.means[which] + (torch.linalg.cholesky(self.covariances)[which] @ z[..., None])[..., 0]


def _log_parts(x: Tensor, means: Tensor, covariances: Tensor) -> Tensor:
    """log N(x; mean, covariance) of each part, [B, K]."""
    away = x[:, None] - means
    square = (away * torch.linalg.solve(covariances, away)).sum(-1)
    return -0.5 * (square + covariances.logdet()) - math.log(2 * math.pi)


def teacher_mixture() -> Mixture:
    angle = torch.arange(NUM_MODES) * (2 * math.pi / NUM_MODES)
    means = RADIUS * torch.stack([angle.cos(), angle.sin()], dim=1)
    return Mixture(means, SPREAD**2 * torch.eye(2).expand(NUM_MODES, 2, 2))


class TwoEllipses(nn.Module):
    """x0 = b_k + A_k z, k by which side of 0 the first coordinate of a second noise lies on: half and half."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.center = nn.Parameter(torch.randn(2, 2, generator=generator))
        self.stretch = nn.Parameter(0.7 * torch.eye(2).repeat(2, 1, 1))

    def generate(self, noise, prompt, controls=None):
        """Noise [B, 3, 1, 1]: two coordinates to be stretched, and one that chooses."""
        z, which = noise[:, :2, 0, 0], (noise[:, 2, 0, 0] > 0).long()
        return (self.center[which] + (self.stretch[which] @ z[..., None])[..., 0])[..., None, None]

    def mixture(self) -> Mixture:
        stretch = self.stretch.detach()
        return Mixture(self.center.detach(), stretch @ stretch.mT + 1e-6 * torch.eye(2))


@dataclass(frozen=True)
class Exact:
    """The denoiser of a mixture, or of a student as it is at the moment."""

    of: Mixture | TwoEllipses
    schedule: Schedule

    def __call__(self, x_t, t, prompt, controls=None):
        mixture = self.of.mixture() if isinstance(self.of, TwoEllipses) else self.of
        return mixture.denoise(x_t[..., 0, 0], self.schedule.alpha(t), self.schedule.sigma(t))[..., None, None]


@dataclass(frozen=True)
class ExactCritic:
    teacher: Mixture
    student: TwoEllipses
    schedule: Schedule

    def __call__(self, x_t, t, prompt, controls=None):
        x, levels = x_t[..., 0, 0], (self.schedule.alpha(t), self.schedule.sigma(t))
        return self.teacher.log_density(x, *levels) - self.student.mixture().log_density(x, *levels)


class LearnedCritic(nn.Module):
    """A small network with the logits' own view of x_t and t."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.net = nn.Sequential(nn.Linear(3, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, 1))
        nn.init.zeros_(self.net[-1].weight)

    def forward(self, x_t, t, prompt, controls=None):
        return self.net(torch.cat([x_t.flatten(1), t[:, None]], dim=1))[:, 0]
