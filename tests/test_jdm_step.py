"""The JDM step: who is called with what, where gradients go, and the numbers it logs."""

import pytest
import torch
from gaussian_world import (
    GaussianEnergy,
    GaussianStudent,
    IdentityCodec,
    World,
    stable_diffusion_schedule,
)
from torch import nn

from jdmctl.diffusion.schedule import RectifiedFlow
from jdmctl.diffusion.timesteps import UniformTimesteps
from jdmctl.objectives.matching import Matching
from jdmctl.training.draws import SampleDraws
from jdmctl.training.steps.jdm import JDMStep
from jdmctl.types import Batch, EnergyWeights

HALF = UniformTimesteps(0.5, 0.5)  # with RectifiedFlow: alpha = sigma, so the kl weight is 1
BATCH_SIZE = 6


class Network(nn.Module):
    """A denoiser and student with one parameter, which remembers the controls it was given."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(scale))
        self.seen: list = []

    def forward(self, x_t, t, prompt, controls=None):
        self.seen.append(controls)
        return self.scale * x_t

    def generate(self, noise, prompt, controls=None):
        self.seen.append(controls)
        return self.scale * noise


@pytest.fixture
def networks() -> dict[str, Network]:
    return {"student": Network(0.7), "teacher": Network(0.5), "fake_score": Network(0.6)}


@pytest.fixture
def batch() -> Batch:
    conditions = {"request": torch.ones(BATCH_SIZE, 1, 2, 2)}
    return Batch(None, conditions, SampleDraws(0, "test", range(BATCH_SIZE)))


def make_step(networks: dict[str, Network], **fields) -> JDMStep:
    defaults = dict(
        codec=IdentityCodec(),
        schedule=RectifiedFlow(),
        timesteps=UniformTimesteps(),
        matching=Matching(),
        energies=(GaussianEnergy(tau_squared=1.0),),
        weights=EnergyWeights({"request": 1.0}),
        latent_shape=(1, 2, 2),
        student_parameters=tuple(networks["student"].parameters()),
        fake_score_parameters=tuple(networks["fake_score"].parameters()),
    )
    return JDMStep(**networks, **defaults | fields)


@pytest.mark.parametrize("energy_at", ["clean", "denoised"])
def test_student_loss_reaches_the_student_alone(networks, batch, energy_at):
    make_step(networks, energy_at=energy_at).student_loss(batch).total.backward()
    assert networks["student"].scale.grad is not None
    assert networks["teacher"].scale.grad is None
    assert networks["fake_score"].scale.grad is None


def test_fake_score_loss_reaches_the_fake_score_alone(networks, batch):
    make_step(networks).fake_score_loss(batch).total.backward()
    assert networks["fake_score"].scale.grad is not None
    assert networks["student"].scale.grad is None
    assert networks["teacher"].scale.grad is None


@pytest.mark.parametrize("form", ["marginal", "conditional"])
def test_controls_go_to_the_student_and_in_the_conditional_form_to_the_fake_score(networks, batch, form):
    step = make_step(networks, form=form, energy_at="denoised")
    step.student_loss(batch)
    step.fake_score_loss(batch)
    assert networks["student"].seen == [batch.conditions] * 2
    assert networks["fake_score"].seen == [batch.conditions if form == "conditional" else None] * 2
    assert networks["teacher"].seen == [None] * 2  # fidelity and denoised energy


def test_passes_are_the_fewest_that_the_method_needs(networks, batch):
    """One call each of student, teacher and fake score; without energies nothing is decoded."""
    step = make_step(networks, energies=(), codec=None)
    step.student_loss(batch)
    assert [len(network.seen) for network in networks.values()] == [1, 1, 1]


def test_phases_train_the_fake_score_first_and_more_often(networks):
    step = make_step(networks, fake_score_updates=3)
    fake_score, student = step.phases
    assert (fake_score.name, fake_score.repeats) == ("fake_score", 3)
    assert (student.name, student.repeats) == ("student", 1)
    assert fake_score.parameters == (networks["fake_score"].scale,)
    assert student.parameters == (networks["student"].scale,)
    assert (fake_score.loss, student.loss) == (step.fake_score_loss, step.student_loss)


class Constant(nn.Module):
    """A denoiser that always answers the same."""

    def __init__(self, *values: float) -> None:
        super().__init__()
        self.x0 = torch.tensor(values).reshape(1, 1, 2, 2)

    def forward(self, x_t, t, prompt, controls=None):
        return self.x0.expand_as(x_t)


class Slope:
    """An energy whose gradient is `slope` in every pixel."""

    def __init__(self, name: str, slope: float) -> None:
        self.name, self.slope = name, slope

    def __call__(self, image, batch):
        return self.slope * image.flatten(1).sum(1)


@pytest.fixture
def by_hand(networks) -> JDMStep:
    """fake - teacher = (3, 0, 4, 0) at weight 1; slopes 1, -2; lambdas 5, 0.25."""
    teacher, fake_score = Constant(1.0, 1.0, 1.0, 1.0), Constant(4.0, 1.0, 5.0, 1.0)
    return make_step(
        networks | {"teacher": teacher, "fake_score": fake_score},
        timesteps=HALF,
        matching=Matching("kl"),
        energies=(Slope("up", 1.0), Slope("down", -2.0)),
        weights=EnergyWeights({"up": 5.0, "down": 0.25}),
    )


def test_gradient_norms_are_unweighted(by_hand, batch):
    """|(3, 0, 4, 0)| = 5, |(1, 1, 1, 1)| = 2, |(-2, -2, -2, -2)| = 4, whatever the lambdas."""
    norms = by_hand.gradient_norms(batch)
    assert norms == pytest.approx({"fidelity": 5.0, "up": 2.0, "down": 4.0})


def test_student_loss_weighs_and_adds_the_terms(by_hand, batch):
    """g = (3, 0, 4, 0) + 5 (1, 1, 1, 1) + 0.25 (-2, -2, -2, -2) = (7.5, 4.5, 8.5, 4.5) per sample.

    x0 = scale z, so d(loss)/d(scale) is the batch mean of <z, g>. The logged norms are those of
    the weighted terms, 5, 5 * 2 and 0.25 * 4; the logged energies are not weighted.
    """
    losses = by_hand.student_loss(batch)
    losses.total.backward()
    z = batch.draws.normal("student_noise", (1, 2, 2)).flatten(1)
    expected = (z @ torch.tensor([7.5, 4.5, 8.5, 4.5])).mean()
    torch.testing.assert_close(by_hand.student.scale.grad, expected)

    logs = {name: value.item() for name, value in losses.logs.items()}
    pixels = 0.7 * z
    assert logs == pytest.approx(
        {
            "fidelity_norm": 5.0,
            "up_norm": 10.0,
            "down_norm": 1.0,
            "up_energy": pixels.sum(1).mean().item(),
            "down_energy": -2 * pixels.sum(1).mean().item(),
            "x0_std": pixels.std().item(),
        },
        rel=1e-5,
    )


def test_fake_score_loss_is_the_denoising_loss_of_the_students_pictures(networks, batch):
    """At alpha = sigma = 1/2 the snr is 1; a constant answer of 1 errs by 0.7 z - 1."""
    networks |= {"fake_score": Constant(1.0, 1.0, 1.0, 1.0)}
    losses = make_step(networks, timesteps=HALF).fake_score_loss(batch)
    z = batch.draws.normal("student_noise", (1, 2, 2))
    torch.testing.assert_close(losses.total, (0.7 * z - 1).square().mean())
    assert losses.logs["fake_score_loss"] == losses.total


def test_the_best_fake_score_is_the_exact_one():
    """Over linear answers r x_t the fake score's loss is least at the exact denoiser's r.

    The student draws x = 0.7 z, V = 0.49; at t = 1/2, x_t = (x + noise) / 2 and
    r = alpha V / (alpha^2 V + sigma^2) = 2 V / (V + 1).
    """
    world = World(RectifiedFlow(), HALF, num_times=1)
    student = GaussianStudent(gain=0.0, spread=0.7)
    r = torch.tensor(2 * 0.49 / 1.49, dtype=torch.float64, requires_grad=True)
    step = world.step(student, "marginal", 1.0, fake_score=lambda x_t, t, prompt, c=None: r * x_t)
    step.fake_score_loss(world.batch()).total.backward()
    assert r.grad.item() == pytest.approx(0, abs=1e-12)


def test_an_exact_fake_score_of_a_perfect_student_exerts_no_force():
    """x = z is the teacher itself: the fidelity gradient vanishes sample by sample."""
    world = World(stable_diffusion_schedule())
    student = GaussianStudent(gain=0.0, spread=1.0)
    for form in ("marginal", "conditional"):
        norms = world.step(student, form, 1.0).gradient_norms(world.batch())
        assert norms["fidelity"] == pytest.approx(0, abs=1e-12)
        assert norms["request"] > 1
