"""f-distill and f-JDM in the JDM step: the weights, the critic's phase, and which loss reaches which parameters."""

from dataclasses import replace

import pytest
import torch
from gaussian_world import GaussianEnergy, IdentityCodec
from tiny_sd import write_world
from torch import nn

from jdmctl.diffusion.schedule import RectifiedFlow, diffuse
from jdmctl.diffusion.timesteps import UniformTimesteps
from jdmctl.families.heads import RatioCritic
from jdmctl.families.stable_diffusion import StableDiffusion
from jdmctl.objectives.divergence import load_divergence
from jdmctl.objectives.matching import Matching
from jdmctl.objectives.ratio import RatioNormaliser
from jdmctl.objectives.score_divergence import ScoreDivergence
from jdmctl.training.draws import SampleDraws
from jdmctl.training.steps.jdm import JDMStep
from jdmctl.types import Batch, EnergyWeights


class Network(nn.Module):
    """A denoiser with one parameter."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(scale))

    def forward(self, x_t, t, prompt, controls=None):
        return self.scale * x_t

    def generate(self, noise, prompt, controls=None):
        return self.scale * noise


class SlopeCritic(nn.Module):
    """Logit: slope times the sum over x_t; remembers what it saw."""

    def __init__(self, slope: float = 0.3) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.tensor(slope))
        self.seen: list = []
        self.times: list = []

    def forward(self, x_t, t, prompt, controls=None):
        self.seen.append((x_t.detach(), controls))
        self.times.append(t)
        return self.slope * x_t.flatten(1).sum(1)


SIZE = 6


@pytest.fixture
def batch() -> Batch:
    conditions = {"request": torch.arange(SIZE).float().reshape(-1, 1, 1, 1).expand(-1, 1, 2, 2)}
    images = torch.arange(SIZE).float().reshape(-1, 1, 1, 1).expand(-1, 1, 2, 2)
    return Batch(None, conditions, SampleDraws(0, "test", range(SIZE)), images=images)


def make_step(**fields) -> JDMStep:
    student, teacher, fake_score = Network(0.7), Network(0.5), Network(0.6)
    defaults = dict(
        student=student,
        teacher=teacher,
        fake_score=fake_score,
        codec=IdentityCodec(),
        schedule=RectifiedFlow(),
        timesteps=UniformTimesteps(),
        matching=Matching(),
        energies=(GaussianEnergy(1.0),),
        weights=EnergyWeights({"request": 0.5}),
        latent_shape=(1, 2, 2),
        student_parameters=tuple(student.parameters()),
        fake_score_parameters=tuple(fake_score.parameters()),
    )
    return JDMStep(**defaults | fields)


@pytest.mark.parametrize("asks", [False, True])
def test_reverse_kl_is_the_step_without_a_divergence_bit_for_bit(batch, asks):
    """h = 1: it asks no critic, and if it did, the weights r^0 over their mean would be exactly 1."""
    plain = make_step()
    divergence = replace(load_divergence("alpha:0"), needs_ratio=asks)
    weighted = replace(plain, divergence=divergence, critic=SlopeCritic(), normaliser=RatioNormaliser())
    gradients = []
    for step in (plain, weighted):
        losses = step.student_loss(batch)
        gradients.append(torch.autograd.grad(losses.total, step.student_parameters[0])[0])
    assert torch.equal(*gradients)
    assert bool(weighted.critic.seen) == asks


def test_the_same_weight_multiplies_fidelity_and_energy(batch):
    """Per sample: g = h_i / mean(h) (fidelity + lambda energy), h of log r = critic - lambda energy, no normaliser."""
    critic = SlopeCritic()
    plain = make_step()
    weighted = replace(plain, divergence=load_divergence("forward-kl"), critic=critic)
    x0 = 0.7 * batch.draws.normal("student_noise", (1, 2, 2))
    terms, energies = plain._gradients(x0, batch, fidelity=True)
    x_t, _ = plain._noised(x0, batch)
    h = (0.3 * x_t.flatten(1).sum(1) - 0.5 * energies["request"]).exp()
    h = h / h.mean()
    total = h.reshape(-1, 1, 1, 1) * (terms["fidelity"] + 0.5 * terms["request"])
    expected = (batch.draws.normal("student_noise", (1, 2, 2)) * total).flatten(1).sum(1).mean()
    weighted.student_loss(batch).total.backward()
    torch.testing.assert_close(weighted.student.scale.grad, expected)


def test_gradients_reach_the_student_alone(batch):
    step = make_step(divergence=load_divergence("js"), critic=SlopeCritic(), gan_weight=0.1)
    step.student_loss(batch).total.backward()
    assert step.student.scale.grad is not None
    assert step.teacher.scale.grad is None and step.fake_score.scale.grad is None
    assert step.critic.slope.grad is None


@pytest.mark.parametrize("own", [None, UniformTimesteps(0.02, 0.3)])
def test_the_gan_term_is_softplus_of_minus_the_logit(batch, own):
    """d softplus(-D)/d x0 = -sigmoid(-D) slope alpha in every pixel, D = slope sum(x_t); times its weight 0.1."""
    plain = make_step(energies=())
    step = replace(plain, critic=SlopeCritic(), gan_weight=0.1, gan_timesteps=own)
    z = batch.draws.normal("student_noise", (1, 2, 2))
    x_t, t = plain._noised(0.7 * z, batch)
    if own:
        t = own(batch.draws.uniform("gan_time"))
        x_t = diffuse(plain.schedule, 0.7 * z, batch.draws.normal("gan_noise", (1, 2, 2)), t)
    slope = -torch.sigmoid(-0.3 * x_t.flatten(1).sum(1)) * 0.3 * (1 - t)
    expected = 0.1 * (z.flatten(1).sum(1) * slope).mean()
    found = [torch.autograd.grad(s.student_loss(batch).total, s.student.scale)[0] for s in (step, plain)]
    torch.testing.assert_close(found[0] - found[1], expected)


def test_the_critic_learns_the_noise_levels_that_it_is_asked_at(batch):
    """Those of the GAN term, if nothing else asks it; an f-divergence asks at all levels of fidelity."""
    low = UniformTimesteps(0.02, 0.03)
    for divergence, highest in ((None, 0.03), (load_divergence("js"), 0.98)):
        critic = SlopeCritic()
        step = make_step(divergence=divergence, critic=critic, gan_weight=0.1, gan_timesteps=low)
        step.critic_loss(batch)
        assert all((times.max() > 0.03) == (highest > 0.03) for times in critic.times)
        critic.times.clear()
        step.student_loss(batch)
        assert critic.times[-1].max() <= 0.03 and len(critic.times) == (2 if divergence else 1)


def test_the_critic_is_trained_between_fake_score_and_student(batch):
    critic = SlopeCritic()
    fields = dict(divergence=load_divergence("js"), critic=critic)
    trained = make_step(critic_parameters=tuple(critic.parameters()), critic_updates=2, **fields)
    assert [(p.name, p.repeats) for p in trained.phases] == [("fake_score", 2), ("critic", 2), ("student", 1)]
    assert [p.name for p in make_step(**fields).phases] == ["fake_score", "student"]
    losses = trained.critic_loss(batch)
    losses.total.backward()
    assert critic.slope.grad is not None
    assert trained.student.scale.grad is None and trained.teacher.scale.grad is None
    (real_t, _), (fake_t, _) = critic.seen
    real, fake = 0.3 * real_t.flatten(1).sum(1), 0.3 * fake_t.flatten(1).sum(1)
    expected = (1 + fake.exp()).log().mean() + (1 + (-real).exp()).log().mean()
    torch.testing.assert_close(losses.total.detach(), expected)


def test_r1_is_added_at_its_weight(batch):
    critic = SlopeCritic()
    plain = make_step(critic=critic, critic_parameters=tuple(critic.parameters()))
    losses = replace(plain, r1_weight=100.0).critic_loss(batch)
    torch.testing.assert_close(losses.total - plain.critic_loss(batch).total, 100 * losses.logs["critic_r1"])
    jitter = 0.01 * batch.draws.normal("critic_r1_noise", (1, 2, 2)).flatten(1).sum(1)
    torch.testing.assert_close(losses.logs["critic_r1"], (0.3 * jitter).square().mean(), rtol=1e-3, atol=1e-9)


@pytest.mark.parametrize("source", ["images", "latents"])
@pytest.mark.parametrize("form", ["marginal", "conditional"])
def test_what_the_critic_is_shown(batch, form, source):
    """Marginal: no controls. Conditional: negatives (picture, its c); positives (picture, an independent c).

    Pictures were made into the conditions, so they get their neighbours'; the teacher's latents are blind to them.
    """
    critic = SlopeCritic()
    if source == "latents":
        batch = replace(batch, images=None, latents=batch.images)
    step = make_step(critic=critic, critic_parameters=tuple(critic.parameters()), form=form)
    step.critic_loss(batch)
    (_, real_controls), (_, fake_controls) = critic.seen
    if form == "marginal":
        assert real_controls is None and fake_controls is None
        return
    assert fake_controls is batch.conditions
    first = real_controls["request"][:, 0, 0, 0].tolist()
    assert first == ([5, 0, 1, 2, 3, 4] if source == "images" else [0, 1, 2, 3, 4, 5])


def test_a_critic_of_the_joint_is_shown_pictures_with_their_own_conditions(batch):
    """Both sides see one request, drawn about what the picture shows; the student was given that request, too."""
    critic, asked = SlopeCritic(), []
    step = make_step(critic=critic, critic_parameters=tuple(critic.parameters()), ratio="learned", jitter=0.1)
    step.student.generate = lambda noise, prompt, controls: asked.append(controls["request"]) or noise
    step.critic_loss(batch)
    (_, real_controls), (_, fake_controls) = critic.seen
    request = batch.conditions["request"] + 0.1 * batch.draws.normal("request_noise request", (1, 2, 2))
    for seen in (real_controls["request"], fake_controls["request"], asked[0]):
        torch.testing.assert_close(seen, request)
    with pytest.raises(ValueError, match="pictures that conditions were made from"):
        step.critic_loss(replace(batch, images=None))


def test_a_learned_ratio_needs_no_likelihood(batch):
    """h of the critic's logit alone, times fidelity and energy alike: forward KL's is exp(logit)."""
    plain = make_step()
    weighted = replace(plain, divergence=load_divergence("forward-kl"), critic=SlopeCritic(), ratio="learned")
    x0 = 0.7 * batch.draws.normal("student_noise", (1, 2, 2))
    terms, _ = plain._gradients(x0, batch, fidelity=True)
    x_t, _ = plain._noised(x0, batch)
    h = (0.3 * x_t.flatten(1).sum(1)).exp()
    total = (h / h.mean()).reshape(-1, 1, 1, 1) * (terms["fidelity"] + 0.5 * terms["request"])
    expected = (batch.draws.normal("student_noise", (1, 2, 2)) * total).flatten(1).sum(1).mean()
    weighted.student_loss(batch).total.backward()
    torch.testing.assert_close(weighted.student.scale.grad, expected)


def test_what_cannot_work_is_refused(batch):
    with pytest.raises(ValueError, match="needs a critic"):
        make_step(divergence=load_divergence("js"))
    with pytest.raises(ValueError, match="needs a critic"):
        make_step(gan_weight=0.1)
    make_step(divergence=load_divergence("reverse-kl"))
    step = make_step(critic=SlopeCritic(), form="conditional")
    with pytest.raises(ValueError, match="real samples"):
        step.critic_loss(replace(batch, images=None))
    one = Batch(None, {"request": torch.zeros(1, 1, 2, 2)}, SampleDraws(0, "test", [0]), images=torch.zeros(1, 1, 2, 2))
    with pytest.raises(ValueError, match="two pictures"):
        step.critic_loss(one)


@pytest.mark.parametrize("kind", ["f-divergence", "score divergence"])
def test_real_networks_keep_their_gradients_apart(tmp_path, kind):
    """A UNet's student, a critic on the features of its LoRA fake score: each loss reaches its own parameters alone."""
    write_world(tmp_path)
    family = StableDiffusion.load(tmp_path / "teacher", tmp_path / "student")
    family.student.requires_grad_(True)
    fake_score = family.make_fake_score("lora", rank=2)
    critic = RatioCritic(fake_score, width=8)
    for head in critic.heads:
        nn.init.normal_(head.judge.weight)
    is_f = kind == "f-divergence"
    step = make_step(
        student=family.student,
        teacher=family.teacher,
        fake_score=fake_score,
        codec=family.codec,
        schedule=family.schedule,
        matching=Matching() if is_f else ScoreDivergence(),
        energies=(),
        latent_shape=family.latent_shape,
        student_parameters=family.student.trainable(),
        fake_score_parameters=fake_score.trainable(),
        divergence=load_divergence("js") if is_f else None,
        critic=critic,
        critic_parameters=tuple(critic.parameters()),
        normaliser=RatioNormaliser(),
        gan_weight=0.01,
    )
    draws = SampleDraws(0, "test", range(2))
    batch = Batch(family.encode_prompt(["a box", "a cone"]), {}, draws, images=torch.rand(2, 3, 64, 64))
    everything = [*family.student.parameters(), *family.teacher.parameters()]
    everything += [*fake_score.trainable(), *critic.parameters()]
    for phase in step.phases:
        phase.loss(batch).total.backward()
        reached = {id(p) for p in everything if p.grad is not None}
        assert reached == {id(p) for p in phase.parameters}, phase.name
        for parameter in everything:
            parameter.grad = None
