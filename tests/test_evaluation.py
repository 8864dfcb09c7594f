"""Evaluation: each measure against a number derived by hand, or against what it must order."""

import json
from dataclasses import replace

import numpy as np
import pytest
import scipy.linalg
import torch

from jdmctl.errors import BadInputError, JdmError
from jdmctl.evaluation import results
from jdmctl.evaluation.adherence import adherence, scores
from jdmctl.evaluation.bootstrap import Estimate, bootstrap, geometric_mean, mean, ratio
from jdmctl.evaluation.diversity import entropy, open_entropy, seed_distance
from jdmctl.evaluation.fidelity import features, frechet_distance, kernel_distance, tilted_weights
from jdmctl.evaluation.prompts import OPEN, stated_accuracy


def gaussian(n: int, dimension: int = 4, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, dimension, generator=generator, dtype=torch.float64)


def exact_gaussian(n: int, mean: torch.Tensor, covariance: torch.Tensor) -> torch.Tensor:
    """n samples whose empirical mean and unbiased covariance are exactly these."""
    samples = gaussian(n, len(mean))
    samples -= samples.mean(0)
    whitened = torch.linalg.qr(samples).Q * (n - 1) ** 0.5
    return whitened @ torch.linalg.cholesky(covariance).T + mean


# --- fidelity ---------------------------------------------------------------------------------


def test_frechet_distance_of_axis_aligned_gaussians():
    """With diagonal covariances it is |m_a - m_b|^2 + sum (s_a - s_b)^2, s the deviations.

    m_a - m_b = (3, 0, -4): 25. s_a = (1, 2, 3), s_b = (2, 2, 1): 1 + 0 + 4. In all 30.
    """
    a = exact_gaussian(50, torch.tensor([3.0, 1, -4]).double(), torch.diag(torch.tensor([1, 4, 9.0])).double())
    b = exact_gaussian(70, torch.tensor([0.0, 1, 0]).double(), torch.diag(torch.tensor([4, 4, 1.0])).double())
    assert frechet_distance(a, b) == pytest.approx(30, rel=1e-12)


@pytest.mark.parametrize("n", [300, 5])  # 5 < D: singular covariances
def test_frechet_distance_agrees_with_the_matrix_root(n):
    a, b = gaussian(n, 8, seed=1), gaussian(n, 8, seed=2) @ gaussian(8, 8, seed=3)
    covariance_a, covariance_b = np.cov(a.numpy().T), np.cov(b.numpy().T)
    jitter = 1e-13 * np.eye(8)
    root = scipy.linalg.sqrtm((covariance_a + jitter) @ (covariance_b + jitter)).real
    expected = (a.mean(0) - b.mean(0)).square().sum().item()
    expected += np.trace(covariance_a + covariance_b - 2 * root)
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-5)


def test_frechet_distance_of_a_set_to_itself_is_zero():
    a = gaussian(200, 16)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-10)


def modes(kept: int, n: int = 1200) -> torch.Tensor:
    """Three well separated clusters in 4 dimensions, of which the first `kept` are drawn from."""
    centers = 6 * torch.eye(4, dtype=torch.float64)[:3]
    return gaussian(n, seed=7) + centers[torch.arange(n) % kept]


@pytest.mark.parametrize("distance", [frechet_distance, kernel_distance])
def test_distances_rise_with_shift_scale_and_lost_modes(distance):
    reference = gaussian(1200, seed=1)
    shifted = [distance(gaussian(1200, seed=2) + shift, reference) for shift in (0, 0.3, 0.6, 1.2)]
    scaled = [distance(gaussian(1200, seed=2) * scale, reference) for scale in (1, 1.3, 1.7, 2.5)]
    dropped = [distance(modes(kept), modes(3)) for kept in (3, 2, 1)]
    for rising in (shifted, scaled, dropped):
        assert rising == sorted(rising)
        assert rising[1] > 2 * abs(rising[0])


def test_kernel_distance_by_the_double_sum():
    """KID's definition written out, on 3 and 4 samples."""
    a, b = gaussian(3, seed=1), gaussian(4, seed=2)

    def k(x, y):
        return (float(x @ y) / 4 + 1) ** 3

    within_a = sum(k(a[i], a[j]) for i in range(3) for j in range(3) if i != j) / 6
    within_b = sum(k(b[i], b[j]) for i in range(4) for j in range(4) if i != j) / 12
    between = sum(k(x, y) for x in a for y in b) / 12
    assert kernel_distance(a, b) == pytest.approx(within_a + within_b - 2 * between, rel=1e-12)


def test_kernel_distance_is_unbiased_where_frechet_is_not():
    """Equal distributions, 20 samples each: over 400 draws KID's mean is within 3 standard errors
    of 0, and KID takes both signs; the Frechet distance is far above 0."""
    draws = [(gaussian(20, seed=2 * i + 1), gaussian(20, seed=2 * i + 2)) for i in range(400)]
    kid = torch.tensor([kernel_distance(a, b) for a, b in draws])
    frechet = torch.tensor([frechet_distance(a, b) for a, b in draws])
    assert abs(kid.mean()) < 3 * kid.std() / 400**0.5
    assert 0.2 < (kid < 0).double().mean() < 0.8
    assert frechet.min() > 0.05


def test_features_are_batched_in_order():
    images = torch.rand(10, 3, 4, 4)
    extracted = features(lambda part: part.mean((2, 3)), images, batch_size=3)
    assert extracted.dtype == torch.float64
    torch.testing.assert_close(extracted, images.mean((2, 3)).double())


# --- bootstrap --------------------------------------------------------------------------------


def test_interval_of_a_mean_covers_it_as_often_as_it_says():
    """200 sets of 40 exponential samples (mean 1): a 90% interval should hold 1 about 180 times.

    The binomial deviation is 4.2; skew costs a few per cent at n = 40, hence 160 to 195.
    """
    generator = torch.Generator().manual_seed(0)
    uniforms = torch.rand(200, 40, generator=generator, dtype=torch.float64)
    intervals = [mean(-row.log(), confidence=0.9, resamples=400) for row in uniforms]
    covered = sum(interval.low <= 1 <= interval.high for interval in intervals)
    assert 160 <= covered <= 195


def test_interval_of_a_mean_has_the_normal_width():
    """For n = 400 normal samples of deviation 1 a 95% interval is +-1.96 / 20 = 0.098 wide."""
    interval = mean(gaussian(400, 1)[:, 0])
    assert (interval.high - interval.low) / 2 == pytest.approx(0.098, rel=0.1)
    assert interval == mean(gaussian(400, 1)[:, 0])  # the same seed, the same interval
    assert interval != mean(gaussian(400, 1)[:, 0], seed=1)


def test_constant_sample_holds_its_value():
    interval = mean(torch.full((7,), 0.1))
    assert interval.low <= interval.value <= interval.high


def test_paired_ratio_cancels_what_is_common():
    """b is half of a throughout: the ratio is 2 in every resample, although a varies a lot."""
    a = gaussian(50, 1)[:, 0].exp()
    paired = ratio(a, a / 2)
    assert paired.value == pytest.approx(2)
    assert paired.high - paired.low < 1e-9
    assert mean(a).high - mean(a).low > 0.2


def test_geometric_mean_of_inverse_ratios_is_one():
    assert geometric_mean(torch.tensor([2.0, 0.5, 4.0, 0.25])).value == pytest.approx(1)
    with pytest.raises(ValueError, match="positive"):
        geometric_mean(torch.tensor([1.0, 0.0]))


def test_centered_interval_lies_around_a_biased_statistic():
    """Resampling pushes a Frechet distance up: uncentred, the interval lies almost all above it."""
    a, b = gaussian(60, 8, seed=1), gaussian(60, 8, seed=2)

    def statistic(chosen: torch.Tensor) -> float:
        return frechet_distance(a[chosen], b)

    plain = bootstrap(statistic, 60, resamples=100)
    centered = bootstrap(statistic, 60, resamples=100, centered=True)
    assert plain.value == centered.value
    assert plain.value - plain.low < 0.1 * (plain.high - plain.value)
    assert centered.value - centered.low > 0.5 * (centered.high - centered.value)


# --- adherence, prompts, diversity --------------------------------------------------------------


class Brightness:
    """A control for tests: the condition is a grey level."""

    headline = "error"

    def scores(self, image, condition):
        difference = (image - condition).mean((1, 2, 3))
        return {"error": difference.abs(), "bias": difference}


def test_adherence_is_the_mean_of_the_scores():
    conditions = torch.full((130, 3, 2, 2), 0.5)
    offsets = torch.linspace(-0.5, 0.5, 130)
    images = conditions + offsets[:, None, None, None]
    each = scores(Brightness(), images, conditions, batch_size=50)
    torch.testing.assert_close(each["bias"], offsets)
    summary = adherence(Brightness(), images, conditions, resamples=50)
    assert summary["error"].value == pytest.approx(offsets.abs().mean().item(), rel=1e-5)
    assert summary["error"].n == 130


def test_accuracy_counts_stated_attributes_only():
    predicted = {"shape": torch.tensor([0, 1, 2, 2]), "floor": torch.tensor([0, 0, 0, 0])}
    stated = {"shape": torch.tensor([0, OPEN, 2, 1]), "floor": torch.tensor([OPEN] * 4)}
    correct = stated_accuracy(predicted, stated)
    assert set(correct) == {"shape"}  # no caption states a floor
    assert correct["shape"].tolist() == [1, 1, 0]


def test_entropy_of_equal_classes_is_the_logarithm_of_their_number():
    assert entropy(torch.tensor([3, 1, 0, 2] * 5)) == pytest.approx(np.log(4))
    assert entropy(torch.tensor([2, 2, 2])) == 0


def test_open_entropy_sees_only_what_is_left_open():
    """The stated half varies, the open half is always class 1: nothing is left to chance."""
    shown = {"color": torch.tensor([0, 1, 2, 1, 1, 1]), "shape": torch.tensor([0, 1, 0, 1, 0, 1])}
    stated = {"color": torch.tensor([0, 1, 2, OPEN, OPEN, OPEN]), "shape": torch.tensor([OPEN] * 6)}
    measured = open_entropy(shown, stated)
    assert measured == {"color": 0, "shape": pytest.approx(np.log(2))}


def test_seed_distance_by_hand():
    """Two seeds at distance 5 (3, 4, 5); three seeds at 0, 1, 2 on a line: (1 + 2 + 1) / 3."""
    two = torch.tensor([[[0.0, 0.0]], [[3.0, 4.0]]])
    assert seed_distance(two).tolist() == [5]
    three = torch.tensor([[[0.0], [7.0]], [[1.0], [7.0]], [[2.0], [7.0]]])
    assert seed_distance(three).tolist() == pytest.approx([4 / 3, 0])


# --- results ----------------------------------------------------------------------------------

ROW = results.Row(
    world="tiny",
    control="depth",
    method="jdm",
    passes=1,
    metric="depth error",
    value=0.011,
    low=0.01,
    high=0.0123,
    seeds=[0, 1, 2],
    n=500,
    command="jdmctl eval runs/depth",
)


def test_results_round_trip_and_merge(tmp_path):
    path = tmp_path / "docs" / "results" / "depth.json"
    assert results.read(path) == []
    other = replace(ROW, metric="frechet", value=5.0, low=4.0, high=6.0)
    results.write(path, [ROW, other])
    assert results.read(path) == [ROW, other]
    assert set(json.loads(path.read_text())[0]) == {
        *("world", "control", "method", "passes", "metric"),
        *("value", "low", "high", "seeds", "n", "command", "setup"),
    }
    better, new = replace(ROW, value=0.0105), replace(ROW, passes=50, method="controlnet")
    assert results.merge([ROW, other], [better, new]) == [better, other, new]


def test_numbers_of_different_setups_do_not_meet_in_one_file():
    """A new row of the same metric needs the same setup, whatever its method; another metric does not."""
    old = replace(ROW, setup="features a")
    with pytest.raises(BadInputError, match="features a.*features b"):
        results.merge([old], [replace(ROW, method="nct", setup="features b")])
    assert len(results.merge([old], [replace(ROW, metric="frechet", setup="features b")])) == 2
    assert results.merge([old], [replace(ROW, setup="features b")])[0].setup == "features b"  # replaced


def test_minutes_to_another_goal_replace_those_to_the_last():
    """A goal is in a metric's name: a rerun with another leaves no row of before; another method's, metric's stay."""
    old = replace(ROW, metric="minutes to canny f1 0.82")
    others = [
        replace(old, method="nct"), replace(old, metric="minutes to canny recall 0.82"), replace(old, metric="minutes")
    ]  # fmt: skip
    new = replace(old, metric="minutes to canny f1 0.83")
    assert results.merge([old, *others], [new]) == [new, *others]


@pytest.mark.parametrize("metric", ["frechet", "frechet / teacher", "kid to base", "precision", "recall"])
def test_distances_of_different_counts_do_not_meet_in_one_file(metric):
    """Of 98 and of 500 pictures they are not comparable, whatever the method or the control; of another world they are
    not compared."""
    old, new = (replace(ROW, metric=metric, n=n, setup="features a") for n in (98, 500))
    for other in (replace(new, method="nct"), replace(new, control="canny")):
        with pytest.raises(BadInputError, match=f"^{metric}.*features a, 98 pictures.*features a, 500 pictures"):
            results.merge([old], [other])
    assert results.merge([old], [new]) == [new]
    assert len(results.merge([old], [replace(new, world="other")])) == 2


def test_means_of_different_counts_meet():
    """Their expectation is the same for any number of pictures; ending like a distance's name does not matter."""
    for metric in ("depth l1", "canny precision", "canny recall", "images/s"):
        assert len(results.merge([replace(ROW, metric=metric, n=98)], [replace(ROW, metric=metric, method="nct")])) == 2


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"value": float("nan")}, "outside"),
        ({"value": 2.0}, "outside"),
        ({"value": "0.011"}, "value must be float"),
        ({"extra": 1}, "exactly the keys"),
    ],
)
def test_damaged_results_are_named(tmp_path, change, complaint):
    path = tmp_path / "depth.json"
    results.write(path, [ROW])
    entries = json.loads(path.read_text())
    path.write_text(json.dumps([entries[0], entries[0] | change]))
    with pytest.raises(BadInputError, match=f"row 2.*{complaint}"):
        results.read(path)


def test_rows_that_are_not_finite_are_not_written(tmp_path):
    with pytest.raises(BadInputError, match="outside"):
        results.write(tmp_path / "depth.json", [replace(ROW, high=float("nan"))])
    assert not (tmp_path / "depth.json").exists()


def test_table_fills_its_place_and_nothing_else():
    rows = [
        ROW,
        replace(ROW, metric="frechet", value=5, low=4, high=6),
        replace(ROW, method="none"),
    ]
    document = "# Results\n\n<!-- results: depth -->\nold\n<!-- end -->\n\ntail\n<!-- end -->\n"
    filled = results.fill(document, "depth", rows)
    expected = """# Results

<!-- results: depth -->
| world | control | method | passes | depth error | frechet |
| --- | --- | --- | ---: | ---: | ---: |
| tiny | depth | jdm | 1 | 0.011 [0.01, 0.0123] | 5 [4, 6] |
| tiny | depth | none | 1 | 0.011 [0.01, 0.0123] |  |
<!-- end -->

tail
<!-- end -->
"""
    assert filled == expected
    assert results.fill(filled, "depth", rows) == filled
    chosen = document.replace("depth -->", "depth | frechet -->")
    assert "| method | passes | frechet |\n" in results.fill(chosen, "depth", rows)
    assert "depth error" not in results.fill(chosen, "depth", rows)
    for control in ("canny", "mean of canny, depth"):
        more = [*rows, replace(ROW, control=control, metric="frechet", value=7, low=6, high=8)]
        of_it = document.replace("depth -->", f"depth | control {control} | frechet -->")
        table = "| method | passes | frechet |\n| --- | ---: | ---: |\n| jdm | 1 | 7 [6, 8] |\n<!-- end"
        assert table in results.fill(of_it, "depth", more)
    with pytest.raises(JdmError, match="canny"):
        results.fill(document, "canny", rows)


def test_a_table_may_be_of_several_files(tmp_path):
    """In the order of the mark, whichever file is new; of one control, some methods and metrics. What both files have
    is told once if it is the same, and refused if not, as are rows of another setup."""
    true, jdm = (replace(ROW, method=method, setup="features a") for method in ("true pictures", "jdm, milder"))
    again = replace(jdm, method="redistill", value=0.0105)
    same = replace(true, value=true.value + 1e-12)
    files = {"routes": [true, jdm, replace(true, control="canny")], "redistill": [same, again]}
    for name, rows in files.items():
        results.write(tmp_path / f"{name}.json", rows)

    def filled(name: str, narrowed: str = "| control depth ") -> list[str]:
        document = f"<!-- results: routes+redistill {narrowed}-->\n<!-- end -->"
        assert results.has_place(document, name)
        return [line.split(" | ")[0] for line in results.fill(document, name, files[name], tmp_path).split("\n")[3:-1]]

    assert filled("routes") == filled("redistill") == ["| true pictures", "| jdm, milder", "| redistill"]
    chosen = "| control depth | methods jdm, milder; redistill | depth error "
    assert filled("redistill", chosen) == ["| jdm, milder", "| redistill"]
    assert not results.has_place("<!-- results: routes+redistill -->", "distill")
    for worse, complaint in (
        (replace(true, value=0.0101), "true pictures is 0.011 .* in one file and 0.0101"),
        (replace(again, setup="features b"), "features a, that of redistill with features b"),
    ):
        files["redistill"] = [worse]
        with pytest.raises(BadInputError, match=complaint):
            filled("redistill")
    (tmp_path / "routes.json").unlink()
    with pytest.raises(JdmError, match="a table is of .*routes.json, which is not there"):
        filled("redistill")


def test_estimate_prints_as_value_and_interval():
    assert str(Estimate(0.123456, 0.1, 0.2, 5)) == "0.1235 [0.1, 0.2]"


def test_a_row_that_could_not_stay_is_found_before_the_work(tmp_path):
    """By split, versions, device and number; not one that is replaced, or of another world; nor by a number nobody
    knows."""
    file, here = tmp_path / "rows.json", results.setup("a judge", split="test")
    row = results.Row("tiny", "canny", "jdm", 1, "frechet", 6.0, 5.0, 7.0, [0], 500, "jdmctl eval runs/canny", here)
    made = {("tiny", "canny", "nct"), ("tiny", "canny", "dsm")}
    now = results.setup("", split="test")
    for kept, n, ends in (
        (row, 100, now), (row, None, results.setup("", "cuda", "test")), (row, None, results.setup("", split="val")),
        (replace(row, setup="a judge; torch 1.0"), None, now),
        (replace(row, setup=results.setup("a judge")), None, now),
    ):  # fmt: skip
        results.write(file, [kept])
        with pytest.raises(BadInputError, match="frechet of jdm in .* cannot stand in one table"):
            results.require_same_setup(file, made, n, ends)
    other = replace(row, setup="", n=3)
    results.write(file, [row, replace(other, world="mine"), replace(other, method="nct")])
    results.require_same_setup(file, made, 500, now)
    results.require_same_setup(file, made, None, now)
    results.require_same_setup(None, made, 3, "")


def test_tilted_weights_reach_the_mean_and_are_exponential():
    """N(0, 1) tilted to mean 1 is N(1, 1): Frechet distance to samples of that is small, to the untilted about 1."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(20_000, 1, generator=generator, dtype=torch.float64)
    weights = tilted_weights(x[:, 0], 1.0)
    assert weights.sum().item() == pytest.approx(1) and (weights @ x)[0].item() == pytest.approx(1, abs=1e-9)
    slope = (weights[:50].log()[:, None] - weights[:50].log()) / (x[:50] - x[:50].T + torch.eye(50))
    assert slope[~torch.eye(50, dtype=torch.bool)].std().item() < 1e-9  # log w is linear in the score
    other = torch.randn(20_000, 1, generator=generator, dtype=torch.float64) + 1
    assert frechet_distance(other, x, weights) < 0.01
    assert frechet_distance(other, x) == pytest.approx(1, abs=0.05)
    assert tilted_weights(x[:, 0], -0.5) @ x[:, 0] == pytest.approx(-0.5)
    with pytest.raises(ValueError, match="not between"):
        tilted_weights(x[:, 0], 99.0)


def test_equal_weights_change_nothing():
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(50, 4, generator=generator) for _ in range(2))
    assert frechet_distance(a, b, torch.full((50,), 0.02, dtype=torch.float64)) == pytest.approx(frechet_distance(a, b))


def test_a_place_for_results_is_looked_at_before_the_work(tmp_path):
    """A recipe given by mistake, and a folder that cannot be made; nothing is written but the folder."""
    (tmp_path / "recipe.yaml").write_text("name: x")
    with pytest.raises(BadInputError, match="recipe.yaml is not valid json") as told:
        results.require_place(tmp_path / "recipe.yaml")
    assert told.value.hint.startswith("give another --results")
    with pytest.raises(JdmError, match="could not save"):
        results.require_place(tmp_path / "recipe.yaml" / "rows.json")
    results.require_place(tmp_path / "new" / "rows.json")
    results.require_place(None)
    assert list((tmp_path / "new").iterdir()) == []
