"""Noise Consistency Training: a control learnt from the student's own pairs of noise and picture, without a teacher."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from jdmctl.diffusion.schedule import expand
from jdmctl.objectives.energy import pseudo_huber
from jdmctl.types import Batch, Codec, Losses, Phase, Student


@dataclass(frozen=True)
class NCTStep:
    """Noise Consistency Training (Luo et al. 2025, arXiv:2506.19741).

    The frozen student draws x = f(z) from noise z, and an extractor finds c in x. With fresh noise e,

        z_k = cos(a_k) z + sin(a_k) e,    a_k = (k / num_levels) pi / 2,

    is noise that knows less and less of c, at the last level nothing. A branch is trained so that

        consistency  f(z_k+1, c) = f(z_k, c)    for neighbouring levels, the right side held fixed
        boundary     f(z, c) = x                at the first level, within `limit`

    so what f(z, c) must be where z and c belong together spreads to where they do not. Without the
    boundary a branch that ignores its noise is perfectly consistent: the multiplier that holds the
    boundary is trained by gradient ascent, as the exponential of a parameter, so that it stays
    positive and needs no projection (the paper's projected ascent is not given in detail).

    No picture, no teacher, no fake score and no gradient through an extractor is needed.
    """

    student: Student
    codec: Codec
    extractors: Mapping[str, Callable[[Tensor], Tensor]]  # control -> (images -> conditions)
    latent_shape: tuple[int, int, int]  # C, h, w
    student_parameters: tuple[nn.Parameter, ...]
    log_multiplier: nn.Parameter  # [], in units of 1 / multiplier_speed
    limit: float
    multiplier_speed: float = 20.0
    num_levels: int = 16
    distance_scale: float = 0.03  # of the pseudo-Huber distance

    @property
    def phases(self) -> tuple[Phase, ...]:
        return (Phase("student", self.loss, (*self.student_parameters, self.log_multiplier)),)

    def loss(self, batch: Batch) -> Losses:
        shape = batch.latent_shape or self.latent_shape
        z, fresh = batch.draws.normal("student_noise", shape), batch.draws.normal("fresh_noise", shape)
        level = (batch.draws.uniform("level") * self.num_levels).floor()  # 0 ... num_levels - 1
        with torch.no_grad():
            x0 = self.student.generate(z, batch.prompt, {})
            image = self.codec.decode(x0).clamp(0, 1)
            conditions = {name: extract(image) for name, extract in self.extractors.items()}
            target = self.student.generate(self._mix(z, fresh, level), batch.prompt, conditions)
        torch.clear_autocast_cache()  # older torch would go on with weights cast above, which know no gradient
        drawn = self.student.generate(self._mix(z, fresh, level + 1), batch.prompt, conditions)
        consistency = self._distance(drawn, target)
        boundary = self._distance(self.student.generate(z, batch.prompt, conditions), x0)
        multiplier = (self.multiplier_speed * self.log_multiplier).exp()
        ascent = -multiplier * (boundary.detach() - self.limit)
        descent = consistency + multiplier.detach() * boundary
        logs = {"consistency_loss": consistency, "boundary_loss": boundary, "multiplier": multiplier}
        return Losses(descent + ascent, {name: value.detach() for name, value in logs.items()})

    def _mix(self, z: Tensor, fresh: Tensor, level: Tensor) -> Tensor:
        angle = expand(level / self.num_levels * (math.pi / 2), z)
        return angle.cos() * z + angle.sin() * fresh

    def _distance(self, a: Tensor, b: Tensor) -> Tensor:
        return pseudo_huber(a, b, self.distance_scale).mean()
