"""What validation makes of a control's scores."""

import math
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch

from jdmctl.build_quality import drawn_at_once
from jdmctl.training.draws import SampleDraws
from jdmctl.training.observer import Validation
from jdmctl.types import Batch


@dataclass
class Scored:
    headline: str
    higher_is_better: bool
    values: tuple[float, ...]

    def scores(self, image, condition):
        return {self.headline: torch.tensor(self.values)}


def measured(*controls: Scored) -> dict[str, float]:
    """What validation makes of these."""
    named = {f"control {number}": control for number, control in enumerate(controls)}
    student = SimpleNamespace(generate=lambda noise, prompt, conditions: noise)
    codec = SimpleNamespace(decode=lambda x0: x0)
    conditions = dict.fromkeys(named, torch.zeros(2, 3, 2, 2))
    batch = Batch(None, conditions, SampleDraws(0, "validation", range(2)), ("", ""))
    return Validation(student, codec, (3, 2, 2), named, [batch]).measure()


@pytest.mark.parametrize("higher_is_better", [True, False])
def test_a_headline_that_is_not_positive_chooses_weights_too(higher_is_better):
    """Log-likelihoods -9 and -7: mean -8, its standard error 1 / sqrt(2). From there over 0 to 0.5 it only rises."""
    sign = 1 if higher_is_better else -1
    means = (-8.0, -3.0, -0.01, 0.0, 0.001, 0.5)
    found = [measured(Scored("nll", higher_is_better, (mean - 1, mean + 1))) for mean in means]
    scores = [sign * one["score"] for one in found]
    assert scores == sorted(scores) and len(set(scores)) == len(scores)
    assert scores[1] - scores[0] == pytest.approx(5)
    assert found[0]["score_error"] == pytest.approx(1 / math.sqrt(2))


def test_a_mean_near_0_is_not_as_good_as_any():
    """A correlation of 0.001 +- 0.5 / sqrt(2) may be 0.35, and is no match for 0.9."""
    poor, good = (measured(Scored("correlation", True, (m - 0.5, m + 0.5))) for m in (0.001, 0.9))
    assert poor["score"] + poor["score_error"] == pytest.approx(math.log(0.001 + 0.5 / math.sqrt(2)))
    assert poor["score"] < good["score"] - poor["score_error"]


def test_the_score_and_its_standard_error():
    """Headlines 0.1 and 0.3, lower is better: mean 0.2, of which a standard deviation of 0.1 over sqrt(2) is 0.3536; a
    second control that is 0.5 for both samples has no error, so the mean of both logarithms has half of the first's."""
    controls = {"depth": Scored("l1", False, (0.1, 0.3)), "canny": Scored("f1", True, (0.5, 0.5))}
    student = SimpleNamespace(generate=lambda noise, prompt, conditions: noise)
    codec = SimpleNamespace(decode=lambda x0: x0)
    batch = Batch(
        None, dict.fromkeys(controls, torch.zeros(2, 3, 2, 2)), SampleDraws(0, "validation", range(2)), ("", "")
    )
    found = Validation(student, codec, (3, 2, 2), controls, [batch]).measure()
    assert found["score"] == pytest.approx((math.log(0.5) - math.log(0.2)) / 2)
    assert found["score_error"] == pytest.approx(0.1 / 0.2 / math.sqrt(2) / 2)


@pytest.mark.parametrize(("resolution_px", "number"), [(64, 32), (128, 32), (256, 8), (512, 2), (1024, 1), (1536, 1)])
def test_what_is_looked_at_at_once_shrinks_with_its_pixels(resolution_px, number):
    """2^19 pixels, 32 pictures and never none: 24 GiB are what a VAE held for 32 pictures of 512 px."""
    assert drawn_at_once(resolution_px) == number


@pytest.mark.parametrize("size", [1, 2, 5])
def test_a_preview_shows_as_many_whatever_a_batch_holds(size):
    """As one batch of all does: noise follows from the number of a sample."""

    class Plain(Scored):
        def condition(self, image):
            return image

    shape = (3, 8, 8)
    batches = [
        Batch(
            None, {"depth": torch.zeros(size, *shape)}, SampleDraws(0, "validation", range(at, at + size)), ("",) * size
        )
        for at in range(0, 10, size)
    ]
    student = SimpleNamespace(generate=lambda noise, prompt, conditions: noise + conditions["depth"])
    codec = SimpleNamespace(decode=lambda x0: x0)
    control = Plain("l1", False, (0.0,))
    sheets = [Validation(student, codec, shape, {"depth": control}, some).sheet() for some in (batches, whole(batches))]
    assert sheets[0].tobytes() == sheets[1].tobytes()


def whole(batches):
    """All samples in one batch."""
    number = sum(len(batch) for batch in batches)
    conditions = {"depth": torch.cat([batch.conditions["depth"] for batch in batches])}
    return [Batch(None, conditions, SampleDraws(0, "validation", range(number)), ("",) * number)]
