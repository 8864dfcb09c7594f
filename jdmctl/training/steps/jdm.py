"""Joint Distribution Matching: one-step students, taught by a teacher that never sees a control."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from jdmctl.diffusion.schedule import Schedule, diffuse, expand
from jdmctl.diffusion.timesteps import UniformTimesteps
from jdmctl.objectives.anchor import Anchor
from jdmctl.objectives.denoising import denoising_loss
from jdmctl.objectives.divergence import Divergence
from jdmctl.objectives.guidance import PromptGuidance
from jdmctl.objectives.matching import Fidelity
from jdmctl.objectives.ratio import RatioNormaliser, gan_loss
from jdmctl.training.steps.weighting import jittered, joint_samples, real_samples, sample_weights, teach
from jdmctl.types import (
    Batch,
    Codec,
    Controls,
    Critic,
    Denoiser,
    Energy,
    EnergyWeights,
    Losses,
    Phase,
    Student,
)

Noised = Callable[[Tensor, Batch], tuple[Tensor, Tensor]]  # x0 -> x_t and t


@dataclass(frozen=True)
class JDMStep:
    """The losses of Joint Distribution Matching (Luo et al. 2025, arXiv:2503.06652).

    Wanted: the student q(x, c) = p(c) q(x | c) near the teacher times the controls,

        KL( q(x, c) || p(x) prod_k p_k(c_k | x)^lambda_k )
            =  fidelity: q against the teacher p(x)   +   sum_k lambda_k E_q[ energy_k ]   +  const,

    where energy_k = -log p_k(c_k | x). The teacher answers for fidelity and never sees c. `form`
    says what the fake score follows, that is which q stands in the fidelity term:

        conditional  E_c KL( q(x | c) || p(x) ): the identity above, exactly.
        marginal     KL( q(x) || p(x) ): at lambda = 1 the sum is then the joint KL + H_q(c | x),
                     for a discrete c an upper bound of it.

    What is trained matches diffused distributions, E_t KL(q_t || p_t), beside an energy on the
    clean picture. For one step q = p there, but with energies its optimum is not
    p(x) p(c | x)^lambda: it holds less variety (tests/test_closed_forms.py derives how much).

    With no energies this is Diff-Instruct / DMD distillation. A reward is an energy too: -R(x, prompt).

    `guidance` is an energy of the prompt, -weight log p(prompt | x_t), that a teacher knows by itself: its gradient
    is what classifier-free guidance adds to the teacher's score, with draws and times of its own (Liu et al. 2025,
    Decoupled DMD, arXiv:2511.22677, sec. 3). A `Guided` teacher is the coupled form.

    Without `fidelity` energies alone are descended (ReFL, DRaFT at one step): for comparison. `anchor` adds the
    squared distance of the trained parameters to where they started.

    The conventional way is there to compare with: `teacher_sees_controls`, for a teacher that has
    control branches of its own, no energies, and the conditional form.

    With a `divergence` other than reverse KL the student descends D_f instead (Xu et al. 2025, f-distill,
    arXiv:2502.15681): every sample's gradient, of fidelity and energies alike, is multiplied by
    h(r) = f''(r) r^2 over its mean, with

        log r = log p_t(x_t) / q_t(x_t)  -  sum_k lambda_k energy_k  -  log Z,

    whose first part the critic learns. Without energies that is the gradient of E_t D_f(p_t || q_t).
    With them it is that of the joint D_f in the conditional form, at lambda = 1 and one almost clean
    noise level (tests/test_fdistill_closed_forms.py). An energy of the clean picture beside fidelity at many noise
    levels is, for an f other than reverse KL, the gradient of no D_f: a heuristic; and in the marginal
    form r leaves out q(c | x). With `ratio` "fidelity" r is that first part and weighs fidelity alone: the gradient of
    D_f(p_t || q_t) / E[h] + sum_k lambda_k energy_k, whose optimum is not the joint's, but for reverse KL. With
    `ratio` "learned" the critic learns all of log r itself, of pictures with their own conditions, p(x, c), against the
    student's with those asked of it, q(x, c): no lambda enters, so r is that of lambda = 1. Requests are then drawn
    from p(c | x) = N(h(x), jitter^2) in all losses: without noise a critic could part the two sides, and r vanish.
    Beside energies of another noise or weight than that it is a heuristic, too.
    `gan_weight` adds E[softplus(-critic)] of the noised sample, at levels of its own where `gan_timesteps` is given.
    """

    student: Student
    teacher: Denoiser  # blind to controls, unless teacher_sees_controls
    fake_score: Denoiser  # follows the student
    codec: Codec
    schedule: Schedule
    timesteps: UniformTimesteps
    matching: Fidelity
    energies: tuple[Energy, ...]
    weights: EnergyWeights
    latent_shape: tuple[int, int, int]  # C, h, w
    student_parameters: tuple[nn.Parameter, ...]
    fake_score_parameters: tuple[nn.Parameter, ...]
    form: Literal["marginal", "conditional"] = "marginal"
    fake_score_updates: int = 2
    energy_at: Literal["clean", "denoised"] = "clean"
    energy_timesteps: UniformTimesteps = UniformTimesteps(0.02, 0.2)
    teacher_sees_controls: bool = False
    divergence: Divergence | None = None  # None: reverse KL
    ratio: Literal["joint", "fidelity", "learned"] = "joint"  # that the divergence weighs by
    jitter: float = 0.0  # standard deviation of requests about what pictures show, where the ratio is learned
    critic: Critic | None = None  # blind to controls in the marginal form
    critic_parameters: tuple[nn.Parameter, ...] = ()  # none: the critic is not trained
    critic_updates: int = 1
    normaliser: RatioNormaliser | None = None
    gan_weight: float = 0.0
    gan_timesteps: UniformTimesteps | None = None  # None: where fidelity is looked at
    r1_weight: float = 0.0  # of the critic's approximate R1
    guidance: PromptGuidance | None = None
    anchor: Anchor | None = None
    fidelity: bool = True

    def __post_init__(self) -> None:
        if (self._is_weighted or self.gan_weight) and self.critic is None:
            raise ValueError("this divergence, or the GAN term, needs a critic")
        if self._is_weighted and self.matching.through_networks:
            raise ValueError("a score divergence is no f-divergence: leave out one of the two")

    @property
    def phases(self) -> tuple[Phase, ...]:
        fake, repeats = self.fake_score_parameters, self.fake_score_updates
        critic = Phase("critic", self.critic_loss, self.critic_parameters, self.critic_updates)
        return (
            *([Phase("fake_score", self.fake_score_loss, fake, repeats)] if self.fidelity else []),
            *([critic] if self.critic_parameters else []),
            Phase("student", self.student_loss, self.student_parameters),
        )

    def fake_score_loss(self, batch: Batch) -> Losses:
        """Denoising of the student's own pictures."""
        batch = self._asked(batch)
        with torch.no_grad():
            x0 = self._generate(batch)
        t = self.timesteps(batch.draws.uniform("fake_time"))
        x_t = self._diffuse(x0, "fake_noise", t, batch)
        prediction = self.fake_score(x_t, t, batch.prompt, self._fake_controls(batch))
        alpha, sigma = self.schedule.alpha(t), self.schedule.sigma(t)
        total = denoising_loss(prediction, x0, alpha, sigma).mean()
        return Losses(total, {"fake_score_loss": total.detach()})

    def critic_loss(self, batch: Batch) -> Losses:
        """Teacher's samples, or pictures, against the student's own, noised alike."""
        assert self.critic is not None, "phases has no critic phase without one"
        batch = self._asked(batch)
        seen = self._critic_controls(batch)
        with torch.no_grad():
            fake = self._generate(batch)
        is_joint = self.ratio == "learned"
        real, real_seen = joint_samples(batch, self.codec) if is_joint else real_samples(batch, self.codec, seen)
        only_gan = self.gan_timesteps if not self._is_weighted else None  # else it is asked at all levels
        t = (only_gan or self.timesteps)(batch.draws.uniform("critic_time"))
        real_t = self._diffuse(real, "critic_real_noise", t, batch)
        fake_t = self._diffuse(fake, "critic_fake_noise", t, batch)
        return teach(self.critic, (real_t, real_seen), (fake_t, seen), t, batch, self.r1_weight)

    def student_loss(self, batch: Batch) -> Losses:
        """A scalar whose gradient is the objective's; its value means nothing.

        The gradient g of all terms is taken at the student's output, with every network frozen;
        <x0, g> then carries it into the student in one backward pass.
        """
        batch = self._asked(batch)
        x0 = self._generate(batch)  # [B, C, h, w]
        gradients, energies = self._gradients(x0, batch, self.fidelity)
        logs = {f"{name}_energy": values.mean() for name, values in energies.items()}
        for name in energies:
            gradients[name] = self.weights[name] * gradients[name]
        if self._is_weighted or self.gan_weight:
            logs |= self._judge(gradients, energies, x0, batch)
        total = (x0 * sum(gradients.values())).flatten(1).sum(1).mean()
        if self.anchor:
            logs["anchor_loss"] = (held := self.anchor()).detach()
            total = total + held
        logs |= {f"{name}_norm": _norm(gradient) for name, gradient in gradients.items()}
        logs["x0_std"] = x0.detach().std()
        return Losses(total, logs)

    def gradient_norms(self, batch: Batch) -> dict[str, float]:
        """Mean per-sample norm at x0 of fidelity and of each energy at lambda = 1, before h(r)."""
        batch = self._asked(batch)
        with torch.no_grad():
            x0 = self._generate(batch)
        gradients, _ = self._gradients(x0, batch, fidelity=True)
        return {name: _norm(gradient).item() for name, gradient in gradients.items()}

    def _gradients(self, x0: Tensor, batch: Batch, fidelity: bool) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Term -> d(term)/d(x0) of each sample, energies unweighted; and energy -> its values [B]."""
        gradients = {"fidelity": self._fidelity_gradient(x0, batch)} if fidelity else {}
        energies = {}
        if self.guidance:
            gradients["guidance"] = self._guidance_gradient(self.guidance, x0, batch)
        if self.energies:
            leaf = x0.detach().requires_grad_()
            image = self.codec.decode(self._energy_latent(leaf, batch))  # [B, 3, H, W]
        for energy in self.energies:
            values = energy(image, batch)  # [B]
            last = energy is self.energies[-1]
            (gradient,) = torch.autograd.grad(values.sum(), leaf, retain_graph=not last)
            gradients[energy.name] = gradient
            energies[energy.name] = values.detach()
        return gradients, energies

    def _fidelity_gradient(self, x0: Tensor, batch: Batch) -> Tensor:
        with torch.set_grad_enabled(self.matching.through_networks):
            x0 = x0.detach().requires_grad_(self.matching.through_networks)
            x_t, t = self._noised(x0, batch)
            teacher_x0 = self.teacher(x_t, t, batch.prompt, batch.conditions if self.teacher_sees_controls else None)
            fake_x0 = self.fake_score(x_t, t, batch.prompt, self._fake_controls(batch))
            alpha, sigma = self.schedule.alpha(t), self.schedule.sigma(t)
            return self.matching.gradient(x0, teacher_x0, fake_x0, alpha, sigma)

    @torch.no_grad()
    def _guidance_gradient(self, guidance: PromptGuidance, x0: Tensor, batch: Batch) -> Tensor:
        x0 = x0.detach()
        t = guidance.timesteps(batch.draws.uniform("guidance_time"))
        x_t = self._diffuse(x0, "guidance_noise", t, batch)
        asked = self.teacher(x_t, t, batch.prompt)
        unasked = self.teacher(x_t, t, guidance.empty_prompt(len(x_t)))
        alpha, sigma = self.schedule.alpha(t), self.schedule.sigma(t)
        return guidance.weight * self.matching.gradient(x0, asked, unasked, alpha, sigma)

    def _judge(
        self, gradients: dict[str, Tensor], energies: dict[str, Tensor], x0: Tensor, batch: Batch
    ) -> dict[str, Tensor]:
        """What the critic says: multiplies the gradients by h(r), adds that of the GAN term, returns logs."""
        logs: dict[str, Tensor] = {}
        leaf, logits, t = self._look(x0, batch, self._noised if self._is_weighted else self._gan_noised)
        if self.divergence and self._is_weighted:
            composed = energies if self.ratio == "joint" else {}
            likelihoods = [-self.weights[name] * values for name, values in composed.items()]
            h, logs = sample_weights(self.divergence, self.normaliser, logits.detach(), likelihoods, t)
            for name in ["fidelity"] if self.ratio == "fidelity" else list(gradients):
                gradients[name] = expand(h.to(x0), x0) * gradients[name]
        if self.gan_weight:
            if self._is_weighted and self.gan_timesteps:
                leaf, logits, _ = self._look(x0, batch, self._gan_noised)
            (gradient,) = torch.autograd.grad(gan_loss(logits).sum(), leaf)
            gradients["gan"] = self.gan_weight * gradient
        return logs

    def _look(self, x0: Tensor, batch: Batch, noised: Noised) -> tuple[Tensor, Tensor, Tensor]:
        """x0 as a leaf, the critic's logits [B] of what `noised` makes of it, and at which times [B]."""
        assert self.critic is not None, "checked in __post_init__"
        with torch.set_grad_enabled(self.gan_weight != 0):
            leaf = x0.detach().requires_grad_(self.gan_weight != 0)
            x_t, t = noised(leaf, batch)
            return leaf, self.critic(x_t, t, batch.prompt, self._critic_controls(batch)), t

    def _gan_noised(self, x0: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        if self.gan_timesteps is None:
            return self._noised(x0, batch)
        t = self.gan_timesteps(batch.draws.uniform("gan_time"))
        return self._diffuse(x0, "gan_noise", t, batch), t

    @property
    def _is_weighted(self) -> bool:
        return self.divergence is not None and self.divergence.needs_ratio

    def _noised(self, x0: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """x_t and t, where fidelity is looked at; the same each time it is asked."""
        t = self.timesteps(batch.draws.uniform("fidelity_time"))
        return self._diffuse(x0, "fidelity_noise", t, batch), t

    def _energy_latent(self, x0: Tensor, batch: Batch) -> Tensor:
        """Where the energies look: the sample, or what the teacher makes of it, slightly noised.

        The second rewards only what survives noise and denoising, which is harder to fake, but is
        over-confident at large t: ControlNet++ too stays below 0.2 (Li et al. 2024,
        arXiv:2404.07987).
        """
        if self.energy_at == "clean":
            return x0
        t = self.energy_timesteps(batch.draws.uniform("energy_time"))
        return self.teacher(self._diffuse(x0, "energy_noise", t, batch), t, batch.prompt)

    def _generate(self, batch: Batch) -> Tensor:
        noise = batch.draws.normal("student_noise", batch.latent_shape or self.latent_shape)
        return self.student.generate(noise, batch.prompt, batch.conditions)

    def _diffuse(self, x0: Tensor, noise_name: str, t: Tensor, batch: Batch) -> Tensor:
        return diffuse(self.schedule, x0, batch.draws.normal(noise_name, tuple(x0.shape[1:])), t)

    def _asked(self, batch: Batch) -> Batch:
        """The batch with the requests that student, scores, critic and energies are given."""
        return jittered(batch, self.jitter) if self.ratio == "learned" else batch

    def _fake_controls(self, batch: Batch) -> Controls | None:
        return batch.conditions if self.form == "conditional" else None

    def _critic_controls(self, batch: Batch) -> Controls | None:
        return batch.conditions if self.ratio == "learned" else self._fake_controls(batch)


def _norm(gradient: Tensor) -> Tensor:
    """Mean over samples of the norm over all dimensions."""
    return gradient.flatten(1).norm(dim=1).mean()
