"""The loop: order of phases, stages, resuming, averages, calibration, and what stops it."""

import os
import signal
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from toy_training import TEACHER, ToyBatches, ToyStep, Watcher, stages, train

from jdmctl.errors import JdmError, MissingWeightsError, NonFiniteLossError, RunInterrupted
from jdmctl.training import interrupt
from jdmctl.training.adamw import AdamW
from jdmctl.training.calibration import Balance, calibrated_weights, is_level, rebalanced_weights
from jdmctl.training.checkpoint import Checkpoints
from jdmctl.training.ema import MovingAverage
from jdmctl.training.plan import Rate, Stage
from jdmctl.training.state import TrainingState
from jdmctl.types import EnergyWeights, Losses, Phase


class StopAt(Watcher):
    """Presses Ctrl-C when it is shown a certain step."""

    def __init__(self, step, stage, at):
        super().__init__(step)
        self.where = (stage, at)

    def log(self, record):
        super().log(record)
        if (record["stage"], record["step"]) == self.where and record["event"] == "step":
            os.kill(os.getpid(), signal.SIGINT)


def everything(step, state):
    moments = [s[key] for o in state.optimizers.values() for s in o.state.values() for key in sorted(s)]
    return [step.student, step.fake, *state.average.values, *moments]


def test_phases_run_in_order_and_as_often_as_they_say(tmp_path):
    step = ToyStep(fake_updates=3)
    train(tmp_path, step, stages(step, warmup_steps=0, num_steps=2))
    assert step.calls == ["fake_score"] * 3 + ["student"] + ["fake_score"] * 3 + ["student"]


def test_the_student_reaches_the_fixed_point(tmp_path):
    """fake = student and student = teacher + 0.1 fake, so student = teacher / 0.9; the noise of a batch of 64 leaves
    about learning rate x sign flips = 0.03 around it."""
    step = ToyStep()
    train(tmp_path, step, stages(step, num_steps=300), ToyBatches(64))
    assert torch.allclose(step.student, TEACHER / 0.9, atol=0.1)


def test_rates_rise_stay_and_fall():
    rise_and_stay, fall = Rate(10, warmup_steps=4), Rate(10, warmup_steps=2, falls=True)
    assert [rise_and_stay(step) for step in range(6)] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1, 1])
    assert [fall(step) for step in range(10)] == pytest.approx([1 / 3, 2 / 3, *(n / 8 for n in range(8, 0, -1))])


def test_a_stage_s_rate_is_that_of_its_updates(tmp_path):
    """AdamW's first step is the learning rate times the gradient's sign, whatever the gradient."""
    moved = []
    for rate in (1.0, 0.25):
        step = ToyStep()
        (stage,) = stages(step, warmup_steps=0, num_steps=1)
        train(tmp_path / str(rate), step, [replace(stage, rate=lambda step, rate=rate: rate)])
        moved.append(step.student.detach().abs())
    assert torch.allclose(moved[1], 0.25 * moved[0]) and (moved[0] > 0).all()


def test_pieces_change_memory_not_the_result(tmp_path):
    results = []
    for pieces in (1, 4):
        step = ToyStep()
        train(
            tmp_path / str(pieces),
            step,
            None,
            ToyBatches(8, pieces),
            gradient_accumulation_steps=pieces,
        )
        results.append(step.student.detach())
    assert torch.allclose(*results, atol=1e-6)


@pytest.mark.parametrize("stage, at", [("fake-score-warmup", 10), ("training", 10), ("training", 20)])
def test_a_resumed_run_is_bit_identical(tmp_path, stage, at):
    whole = ToyStep()
    state, _ = train(tmp_path / "whole", whole, stages(whole, 20, 30))
    cut = ToyStep()
    with pytest.raises(RunInterrupted) as caught:
        train(tmp_path / "cut", cut, stages(cut, 20, 30), watcher=StopAt(cut, stage, at))
    assert "--resume" in caught.value.hint and str(tmp_path / "cut") in caught.value.hint
    again = ToyStep()
    resumed, _ = train(tmp_path / "cut", again, stages(again, 20, 30), resume=True)
    for a, b in zip(everything(whole, state), everything(again, resumed), strict=True):
        assert torch.equal(a, b)
    assert resumed.updates == state.updates == {"fake_score": 20 + 60, "student": 30}


def test_a_request_that_is_told_twice_is_one(monkeypatch):
    """Within two seconds of the first; what comes later acts as it would without the block."""
    acted, now = [], [100.0]
    monkeypatch.setattr(interrupt, "time", SimpleNamespace(monotonic=lambda: now[0]))
    before = signal.signal(signal.SIGTERM, lambda *_: acted.append(now[0]))
    try:
        with interrupt.StopRequest() as stop:
            assert not stop.received
            for now[0] in (100.0, 100.01, 101.9, 102.1):
                signal.raise_signal(signal.SIGTERM)
                assert stop.received
        assert acted == [102.1]
    finally:
        signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize("is_cut", [False, True])
def test_alarms_of_a_warm_up_halt_nothing(tmp_path, is_cut):
    """Two averaged stages, alarms from the warm-up's end on: the second stage's start is looked at with them, and
    halts at its first look after that. So does a run that was saved, halted, at that start."""
    step = ToyStep()
    two = [replace(stages(step, 0, 20)[0], name="warmup", prefix="warmup"), *stages(step, 0, 30)]

    class Alarmed(Watcher):
        def validate(self):
            return super().validate() | {"alarm": 2 if step.calls.count("student") >= 10 else 0}

    watcher = Alarmed(step)
    if is_cut:
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path, step, [two[0], replace(two[1], before_step=interrupted)], watcher=watcher)
        (file,) = tmp_path.glob("checkpoints/step-000000/state.json")
        file.write_text(file.read_text().replace('"halted": false', '"halted": true'))
    state, _ = train(tmp_path, step, two, watcher=watcher, resume=is_cut)
    looks = [(record["stage"], record["step"]) for record in watcher.records if record["event"] == "validation"]
    assert looks == [("warmup", 0), ("warmup", 10), ("warmup", 20), ("training", 0), ("training", 10)]
    assert state.halted and state.best["name"] == "step-000010"


def interrupted(step):
    raise KeyboardInterrupt


def test_resuming_a_finished_run_changes_nothing(tmp_path):
    step = ToyStep()
    train(tmp_path, step)
    again = ToyStep()
    train(tmp_path, again, resume=True)
    assert torch.equal(step.student, again.student) and not again.calls


def test_a_run_may_be_resumed_to_end_where_it_was_stopped(tmp_path):
    """Before its first validation, in 10 steps: the weights that it leaves are those, and they are looked at once."""
    step = ToyStep()
    with pytest.raises(RunInterrupted):
        train(tmp_path, step, watcher=StopAt(step, "training", 4), log_every_steps=2)
    for times in (1, 0):
        again = ToyStep()
        state, watcher = train(tmp_path, again, stages(again, num_steps=5), resume=True)
        assert state.best["name"] == "step-000005" and torch.equal(step.student, again.student) and not again.calls
        assert [record["step"] for record in watcher.records if record["event"] == "validation"] == [5] * times


def regressed(step: ToyStep) -> list[Stage]:
    """The student alone, by an optimiser of its own, before the fake score and it are trained as usual."""
    phase = Phase("regression", step.student_loss, (step.student,))
    alone = SimpleNamespace(phases=(phase,))
    return [Stage("regression", alone, 10, "regression", averaged=(step.student,)), *stages(step, 10, 20)]


def kept_moments(folder, name="step-000020") -> set[str]:
    """Of which phases a checkpoint holds moments."""
    tensors, _ = Checkpoints(folder / "checkpoints").load(folder / "checkpoints" / name)
    return {key.split(".")[0] for key in tensors["optimizer"]}


REGRESSION = {"regression": AdamW(0.05), "fake_score": AdamW(0.05), "student": AdamW(0.03)}


def test_moments_go_with_the_last_stage_that_needs_them(tmp_path):
    """The regression's are there at its end and gone from the next stage's start on, on the device and in checkpoints;
    the fake score's stay from its warm-up."""
    step, seen = ToyStep(), []

    class Looks(Checkpoints):
        def save(self, name, tensors, state):
            path = super().save(name, tensors, state)
            seen.append((name, sorted(kept_moments(tmp_path, name))))
            return path

    state, _ = train(Looks(tmp_path / "checkpoints"), step, regressed(step), optimizers=REGRESSION)
    assert seen == [
        ("regression-000000", []),
        ("regression-000010", ["regression"]),
        ("fake-score-warmup-000000", []),
        ("fake-score-warmup-000010", ["fake_score"]),
        ("step-000000", ["fake_score"]),
        ("step-000010", ["fake_score", "student"]),
        ("step-000020", ["fake_score", "student"]),
    ]
    assert [name for name, optimizer in state.optimizers.items() if optimizer.state] == ["fake_score", "student"]


@pytest.mark.parametrize("is_older", [False, True])
@pytest.mark.parametrize(("stage", "at"), [("regression", 4), ("fake-score-warmup", 10), ("training", 4)])
def test_a_run_whose_moments_went_is_resumed_bit_identical(tmp_path, monkeypatch, stage, at, is_older):
    """From checkpoints of versions that kept them, too: what these hold for nothing is not kept any longer."""
    whole, cut, again = ToyStep(), ToyStep(), ToyStep()
    changes = {"optimizers": REGRESSION, "log_every_steps": 2}
    state, _ = train(tmp_path / "whole", whole, regressed(whole), **changes)
    with monkeypatch.context() as patched, pytest.raises(RunInterrupted):
        if is_older:
            patched.setattr(TrainingState, "forget", lambda self, names: None)
        train(tmp_path / "cut", cut, regressed(cut), watcher=StopAt(cut, stage, at), **changes)
    latest = Checkpoints(tmp_path / "cut" / "checkpoints").latest().name
    assert ("regression" in kept_moments(tmp_path / "cut", latest)) == (is_older or stage == "regression")
    resumed, _ = train(tmp_path / "cut", again, regressed(again), resume=True, **changes)
    for a, b in zip(everything(whole, state), everything(again, resumed), strict=True):
        assert torch.equal(a, b)
    assert kept_moments(tmp_path / "cut") == kept_moments(tmp_path / "whole") == {"fake_score", "student"}


def test_on_start_runs_once_however_often_the_run_is_resumed(tmp_path):
    started = []

    def parts(step):
        return stages(step, on_start=lambda: started.append(1))

    step = ToyStep()
    with pytest.raises(RunInterrupted):
        train(tmp_path, step, parts(step), watcher=StopAt(step, "training", 10))
    again = ToyStep()
    train(tmp_path, again, parts(again), resume=True)
    assert started == [1]


def test_a_checkpoint_of_other_shapes_is_refused(tmp_path):
    train(tmp_path, ToyStep())
    wide = ToyStep(student=nn.Parameter(torch.zeros(5)))
    for parts in (stages(wide), stages(wide, warmup_steps=0)):  # the checkpoint is of the second of two stages
        with pytest.raises(MissingWeightsError, match="other weights than this recipe trains"):
            train(tmp_path, wide, parts, resume=True)


def test_warm_up_ends_when_its_loss_is_level(tmp_path):
    """A constant target and no noise: the loss is level at the first look that sees two windows, step 40."""
    step = ToyStep()

    def constant(batch):
        total = 0 * step.fake.sum() + 1
        return Losses(total, {"fake_score_loss": total.detach()})

    step.fake_loss = constant
    warmup, main = stages(step, warmup_steps=100, num_steps=1)
    object.__setattr__(warmup, "until_level", True)
    state, watcher = train(tmp_path, step, [warmup, main])
    assert max(r["step"] for r in watcher.records if r["stage"] == "fake-score-warmup") == 40
    assert state.updates["fake_score"] == 40 + step.fake_updates


def test_a_loss_that_is_not_finite_names_the_step_and_the_last_good_checkpoint(tmp_path):
    step = ToyStep()
    honest = step.student_loss

    def breaks_at_13(batch):
        losses = honest(batch)
        factor = torch.nan if step.calls.count("student") >= 13 else 1
        return Losses(losses.total * factor, losses.logs)

    step.student_loss = breaks_at_13
    with pytest.raises(NonFiniteLossError, match="training step 13 .*student_update_norm.*step-000010"):
        train(tmp_path, step)
    assert Checkpoints(tmp_path / "checkpoints").latest().name == "step-000010"


def test_the_best_and_the_last_checkpoint_are_kept(tmp_path):
    """The score falls once the student has passed an early best, here by a score that prefers step 10."""
    step = ToyStep()

    class PrefersTen(Watcher):
        def validate(self):
            count = step.calls.count("student")
            return {"score": -abs(count - 10.0)}

    state, _ = train(tmp_path, step, stages(step, 0, 30), watcher=PrefersTen(step))
    assert sorted(os.listdir(tmp_path / "checkpoints")) == ["step-000010", "step-000030"]
    assert (state.best["name"], state.best["score"]) == ("step-000010", 0.0)


def test_the_latest_of_those_as_good_as_the_best_is_chosen(tmp_path):
    """Scores 0, -0.8, -1.6, errors of 1: step 20 is as good as step 10; step 30 is not, though as good as step 20."""
    step = ToyStep()

    class Falls(Watcher):
        def validate(self):
            return {"score": -0.08 * (step.calls.count("student") - 10), "score_error": 1.0}

    state, _ = train(tmp_path, step, stages(step, 0, 30), watcher=Falls(step))
    assert (state.best["name"], state.best["peak"]) == ("step-000020", 0.0)
    assert sorted(os.listdir(tmp_path / "checkpoints")) == ["step-000020", "step-000030"]


def test_a_score_that_is_no_number_is_never_the_best(tmp_path):
    """Unless there is no other: something must be left."""
    scores = {10: float("nan"), 20: -2.0, 30: float("nan")}
    step = ToyStep()

    class Breaks(Watcher):
        def validate(self):
            return {"score": scores.get(step.calls.count("student"), 0.0)}

    state, _ = train(tmp_path / "some", step, stages(step, 0, 30), watcher=Breaks(step))
    assert state.best["name"] == "step-000020"
    scores[20] = float("nan")
    step = ToyStep()
    state, _ = train(tmp_path / "none", step, stages(step, 0, 30), watcher=Breaks(step))
    assert state.best["name"] == "step-000010"


def test_validation_and_previews_see_the_average(tmp_path):
    step = ToyStep()
    seen = []

    class Looks(Watcher):
        def preview(self, name):
            super().preview(name)
            seen.append(step.student.detach().clone())

    state, watcher = train(tmp_path, step, stages(step, 0, 20), watcher=Looks(step))
    assert watcher.previews == ["step-000000", "step-000010", "step-000020"]
    assert torch.equal(seen[-1], state.average.values[0])
    assert not torch.equal(seen[-1], step.student)


def test_a_stage_hands_on_its_average(tmp_path):
    """A first stage that averages starts the second from its average; the fake score is left as it was trained."""
    step = ToyStep()
    first, second = (stages(step, 0, n)[0] for n in (20, 1))
    start = []
    object.__setattr__(second, "on_start", lambda: start.append(step.student.detach().clone()))
    alone = ToyStep()
    state, _ = train(tmp_path / "alone", alone, stages(alone, 0, 20))
    train(tmp_path / "two", step, [first, second])
    assert torch.equal(start[0], state.average.values[0])


def test_records_tell_speed_and_time_left(tmp_path):
    step = ToyStep()
    _, watcher = train(tmp_path, step)
    record = [r for r in watcher.records if r["event"] == "step" and r["stage"] == "training"][0]
    assert record["step"] == 10 and record["num_steps"] == 20
    assert record["samples_per_second"] > 0 and record["seconds_left"] > 0
    assert {"student_loss", "fake_score_loss", "student_update_norm"} <= record.keys()


def test_moving_average():
    """Decay at updates 0 and 1 is min(0.99, 1/10) and min(0.99, 2/11): from 0, with the parameter at 1,
    the mean is 0.9 and then 0.9 + (9/11) 0.1."""
    parameter = nn.Parameter(torch.zeros(1))
    average = MovingAverage([parameter], 0.99)
    parameter.data.fill_(1)
    average.update()
    assert average.values[0].item() == pytest.approx(0.9)
    average.update()
    assert average.values[0].item() == pytest.approx(0.9 + 0.1 * 9 / 11)
    with average.applied():
        assert parameter.item() == pytest.approx(0.9 + 0.1 * 9 / 11)
    assert parameter.item() == 1


def test_an_average_elsewhere_fetches_weights_through_one_buffer():
    """Each as it lies, channels last too; the second in the memory of the first."""
    large = nn.Parameter(torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last))
    small = nn.Parameter(torch.randn(5))
    average = MovingAverage([small, large], 0.99, "cpu")
    first = average._fetched(large)
    assert torch.equal(first, large) and first.stride() == large.stride()
    second = average._fetched(small)
    assert torch.equal(second, small) and second.data_ptr() == first.data_ptr() != small.data_ptr()


def test_is_level():
    """Falling by 10% a window is not level, by 1% is; fewer than two windows never are."""
    assert not is_level([1.0] * 39)
    assert not is_level([1.0] * 20 + [0.9] * 20)
    assert is_level([1.0] * 20 + [0.99] * 20)


def test_calibrated_weights():
    """lambda |grad E| / |grad fidelity| is the ratio asked for: 0.5 * 32 / 0.004 = 4000."""
    norms = {"fidelity": 32.0, "canny": 0.004, "depth": 8.0}
    assert calibrated_weights(norms, {"canny": 0.5, "depth": 0}) == {"canny": 4000.0, "depth": 0.0}


def test_a_gradient_that_vanishes_cannot_be_calibrated():
    with pytest.raises(JdmError, match="canny has no gradient") as refused:
        calibrated_weights({"fidelity": 1.0, "canny": 0.0}, {"canny": 1.0})
    assert "threshold be reached" in refused.value.hint
    with pytest.raises(JdmError, match="its norm is nan") as refused:
        calibrated_weights({"fidelity": 1.0, "canny": float("nan")}, {"canny": 1.0})
    assert "ordinary pictures" in refused.value.hint


def balance(norms, **ratios) -> Balance:
    weights = EnergyWeights(dict.fromkeys(ratios, 0.0))
    return Balance(weights, ratios, dict.fromkeys(ratios, 0), lambda step: norms, is_continuous=True)


def test_another_ratio_moves_a_resumed_run_s_weight():
    before = balance({"fidelity": 2.0, "warmth": 0.5}, warmth=1.0)
    before.calibrate()
    after = balance({}, warmth=0.25)
    after.load_state_dict(before.state_dict())
    assert before.lambdas == {"warmth": 4.0} and after.lambdas == {"warmth": 1.0}
    former = balance({}, warmth=0.25)
    former.load_state_dict({"lambdas": {"warmth": 4.0}})  # as kept before ratios were
    assert former.lambdas == {"warmth": 4.0}
    with pytest.raises(JdmError, match="calibrated for warmth, and is to go on with contrast"):
        balance({}, contrast=1.0).load_state_dict(before.state_dict())
    without = balance({"fidelity": 1.0, "warmth": 1.0}, warmth=0.0)
    without.calibrate()
    with pytest.raises(JdmError, match="of no weight was warmth"):
        balance({}, warmth=1.0).load_state_dict(without.state_dict())


def test_a_reward_whose_threshold_all_pictures_reach_keeps_its_weight():
    """It has no gradient then; the other's lambda moves a fifth of the way from 1 to 32."""
    norms = {"fidelity": 1.0, "warmth": 1.0, "contrast": 1.0}
    both = balance(norms, warmth=1.0, contrast=1.0)
    both.calibrate()
    norms |= {"warmth": 0.0, "contrast": 1 / 32}
    both.before_step(10)
    assert both.lambdas == {"warmth": 1.0, "contrast": pytest.approx(2.0)}


def test_rebalancing_is_a_geometric_step():
    """A fifth of the way from 1 to 32 in logarithms is 2."""
    assert rebalanced_weights({"canny": 1.0}, {"canny": 32.0}, 0.2)["canny"] == pytest.approx(2.0)
