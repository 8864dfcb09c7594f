"""examples/benchmarks on the random world: two layouts side by side, and what is beside them."""

import sys
from pathlib import Path

import pytest

from jdmctl.evaluation.results import read


@pytest.mark.slow
def test_rows_of_both_layouts(in_tiny_world, monkeypatch):
    """LoRA on the teacher's weights against a copy of its own: that backbone is held once more."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "examples" / "benchmarks"))
    import measure

    words = ["measure.py", "tiny/canny", "--steps", "5", "--results", "docs/results/benchmarks.json"]
    for change in (
        "training.batch_size=2",
        "fake_score.trainable=lora",
        "fake_score.rank=2",
        "training.precision=fp32",
    ):
        words += ["--set", change]
    monkeypatch.setattr(sys, "argv", words)
    measure.main()
    rows = {
        (row.method.endswith("three copies"), row.metric): row.value
        for row in read(Path("docs/results/benchmarks.json"))
    }
    assert rows[False, "images/s"] > 0 and rows[True, "images/s"] > 0
    held, planned = rows[False, "weights and optimizer GiB"], rows[False, "planned weights and optimizer GiB"]
    assert held == pytest.approx(planned, rel=0.1)
    assert rows[False, "peak GiB"] == pytest.approx(rows[False, "planned peak GiB"], rel=0.15)
    assert rows[True, "weights and optimizer GiB"] > held
    for layout in (False, True):
        shares = {metric: value for (plain, metric), value in rows.items() if plain == layout and metric[0] == "%"}
        assert sum(shares.values()) == pytest.approx(100)
        assert {"% student", "% teacher", "% fake score", "% decoder", "% backward passes"} <= shares.keys()
        assert all(0 <= value < 100 for value in shares.values())
