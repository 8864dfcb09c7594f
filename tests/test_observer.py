"""What validation makes of a control's scores."""

import math
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch

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


def test_the_score_and_its_standard_error():
    """Headlines 0.1 and 0.3, lower is better: mean 0.2, of which a standard deviation of 0.1 over sqrt(2) is 0.3536; a
    second control that is 0.5 for both samples has no error, so the mean of both logarithms has half of the first's."""
    controls = {"depth": Scored("l1", False, (0.1, 0.3)), "canny": Scored("f1", True, (0.5, 0.5))}
    student = SimpleNamespace(generate=lambda noise, prompt, conditions: noise)
    codec = SimpleNamespace(decode=lambda x0: x0)
    batch = Batch(None, dict.fromkeys(controls), SampleDraws(0, "validation", range(2)), ("", ""))
    found = Validation(student, codec, (3, 2, 2), controls, [batch]).measure()
    assert found["score"] == pytest.approx((math.log(0.5) - math.log(0.2)) / 2)
    assert found["score_error"] == pytest.approx(0.1 / 0.2 / math.sqrt(2) / 2)
