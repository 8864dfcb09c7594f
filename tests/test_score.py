"""Scores of runs on held-out scenes: ideal for true pictures under an ideal judge, worse for damaged ones."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from PIL import Image

from jdmctl.comparison.marks import _mean_of
from jdmctl.comparison.means import mean_rows
from jdmctl.comparison.scenes import NO_CONTROL, ROUND_TRIP, Drawing, Scenes, estimate
from jdmctl.controls.base import load_control
from jdmctl.evaluation.fidelity import frechet_distance
from jdmctl.evaluation.manifold import recall_statistic
from jdmctl.tinyworld.judge import Judge
from jdmctl.tinyworld.source import captioned_folder, scenes


class IdealJudge(Judge):
    """Knows the truth of the scenes by their pixels; knows nothing of a picture that it has never seen."""

    def __init__(self, pictures):
        object.__setattr__(self, "classifier", None)
        images = pictures.image(slice(None))
        object.__setattr__(self, "labels", pictures.labels)
        object.__setattr__(self, "truth", dict(zip(map(self.key, images), pictures.truth, strict=True)))

    @staticmethod
    def key(image):
        return (image * 255).round().byte().numpy().tobytes()

    @property
    def attributes(self):
        columns = {}
        for column, label in enumerate(self.labels):
            columns.setdefault(label.split(": ")[0], []).append(column)
        return columns

    def shown(self, images):
        unknown = torch.zeros(len(self.labels), dtype=torch.bool)
        found = self.classes(torch.stack([self.truth.get(self.key(image), unknown) for image in images]))
        return {name: values.clamp(min=0) for name, values in found.items()}

    def features(self, images):
        return images.mean((2, 3)).double()


@pytest.fixture(scope="module")
def asked(tmp_path_factory):
    pictures = scenes("test", 40, tmp_path_factory.mktemp("scenes"))
    return Scenes.make("tiny", pictures, 40, {"canny": load_control("canny")}, IdealJudge(pictures), pictures, pictures)


def marks(asked, *images):
    return asked.marks([Drawing(each) for each in images])


def by_metric(rows):
    return {row.metric: row for row in rows}


def test_true_pictures_score_the_ideal_value(asked):
    """F1 1, every stated attribute shown, entropy that of the scenes, no distance to themselves."""
    found = by_metric(asked.rows("true pictures", 0, marks(asked, asked.true_images()), [0], "a command"))
    for metric in ("canny f1", "shape accuracy", "color accuracy", "floor accuracy", "open entropy"):
        assert found[metric].value == pytest.approx(1.0), metric
    assert found["frechet"].value == pytest.approx(0.0, abs=1e-9)
    assert found["nearest train"].value == pytest.approx(0.0, abs=1e-3)  # these scenes are its training scenes too
    assert found["canny f1"].n == 40


def test_damaged_pictures_score_worse(asked):
    blurred = torch.nn.functional.avg_pool2d(asked.true_images(), 5, stride=1, padding=2)
    found = by_metric(asked.rows("blurred", 1, marks(asked, blurred), [0], "a command"))
    assert found["canny f1"].value < 0.8
    assert found["color accuracy"].value < 0.5  # the judge knows none of them: always class 0
    assert found["open entropy"].value == pytest.approx(0.0)
    assert found["frechet"].value > 1e-5


def test_a_value_is_the_mean_over_seeds_and_its_interval_holds_each(asked):
    true = asked.true_images()
    blurred = torch.nn.functional.avg_pool2d(true, 5, stride=1, padding=2)
    each = [
        by_metric(asked.rows("one", 1, marks(asked, images), [0], ""))["canny f1"].value for images in (true, blurred)
    ]
    both = by_metric(asked.rows("both", 1, marks(asked, true, blurred), [0, 1], ""))["canny f1"]
    assert both.value == pytest.approx(sum(each) / 2)
    assert both.low <= min(each) and both.high >= max(each)
    assert both.seeds == [0, 1]


def test_unstated_attributes_do_not_count_as_wrong(asked):
    """With nothing stated there is no accuracy at all, and all variety is open."""
    silent = dataclasses.replace(asked.pictures, stated=torch.zeros_like(asked.pictures.stated))
    asked = dataclasses.replace(asked, pictures=silent)
    found = by_metric(asked.rows("t", 0, marks(asked, asked.true_images()), [0], ""))
    assert not [metric for metric in found if metric.endswith("accuracy")]
    assert found["open entropy"].value == found["open color entropy"].value == pytest.approx(1.0)


def test_comparisons_are_ideal_at_the_ceiling_and_nothing_at_the_floor(asked):
    """Half of the pictures true and half as without control: about half of the gap is closed, exactly per scene."""
    true = asked.true_images()
    blurred = torch.nn.functional.avg_pool2d(true, 5, stride=1, padding=2)
    baselines = {ROUND_TRIP: marks(asked, true), NO_CONTROL: marks(asked, blurred)}
    everything = torch.arange(asked.num)

    def compared(images):
        found = asked.compared(marks(asked, images), baselines)
        return {metric: each[0](everything) for metric, each in found.items()}

    at_ceiling, at_floor = compared(true), compared(blurred)
    assert at_ceiling["canny f1 gap closed"] == pytest.approx(1.0)
    assert at_ceiling[f"frechet / {NO_CONTROL}"] == pytest.approx(0.0, abs=1e-6)
    assert at_floor["canny f1 gap closed"] == pytest.approx(0.0)
    assert at_floor[f"canny f1 / {NO_CONTROL}"] == pytest.approx(1.0)
    f1 = marks(asked, true)["canny f1"][0](everything), marks(asked, blurred)["canny f1"][0](everything)
    half = compared(torch.cat([true[:20], blurred[20:]]))["canny f1 gap closed"]
    blurred_first = marks(asked, blurred)["canny f1"][0](everything[:20])
    assert half == pytest.approx((1 - blurred_first) * 20 / (f1[0] - f1[1]) / 40)


def test_captioned_pictures_have_one_prompt_accuracy_and_nothing_open(tmp_path):
    """Their labels are words, said or not: what is not said is not known, so no entropy can be taken of it."""
    rng = np.random.default_rng(0)
    rows = []
    for number in range(60):
        Image.fromarray(rng.integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(tmp_path / f"{number}.png")
        words = rng.choice(
            ["red", "blue", "cat", "dog", "face", "hand", "sun", "tree", "sea", "bird"], 3, replace=False
        )
        rows.append({"file_name": f"{number}.png", "text": " ".join(words)})
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    pictures = captioned_folder(tmp_path, "train", 32)
    asked = Scenes.make("folder", pictures, 40, {}, IdealJudge(pictures), pictures, pictures)
    found = by_metric(asked.rows("true pictures", 0, marks(asked, asked.true_images()), [0], ""))
    assert found["prompt accuracy"].value == pytest.approx(1.0)
    assert "open entropy" not in found
    shuffled = by_metric(asked.rows("others", 0, marks(asked, asked.true_images().flip(0)), [0], ""))
    assert shuffled["prompt accuracy"].value < 0.6


def test_the_mean_over_controls_is_that_of_the_ratios(asked):
    """Two controls whose errors are 2 and 8 times the baseline's: the geometric mean is 4; l1 is called consistency."""
    marks_of_two = [
        {"jdm": {f"{name} l1 / X": [lambda chosen, v=value: v], "frechet / X": [lambda chosen: 1.0]}}
        for name, value in (("canny", 2.0), ("lowres", 8.0))
    ]
    two = [asked, dataclasses.replace(asked, controls={"lowres": load_control("lowres")})]
    rows = by_metric(mean_rows(two, marks_of_two, {"jdm": [0]}, "a command"))
    assert rows["consistency / X"].value == pytest.approx(4.0)
    assert rows["frechet / X"].value == 1.0
    assert rows["frechet / X"].control == "mean of canny, lowres"


def test_the_mean_of_one_control_is_its_own_row(asked):
    """Also in its interval: repeated scenes push a Frechet distance, and so a ratio, away from its value."""
    features = torch.randn(40, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    ratio = [lambda chosen: frechet_distance(features[chosen], features + 0.3)]
    spread = {"jdm": {"frechet / X": ratio}}
    (own,) = asked.rows("jdm", 1, spread["jdm"], [0], "a command")
    (mean,) = mean_rows([asked], [spread], {"jdm": [0]}, "a command")
    assert (mean.low, mean.value, mean.high) == pytest.approx((own.low, own.value, own.high))
    assert own.low < own.value < own.high


def test_recall_s_interval_is_as_wide_as_drawings_vary():
    """Of 40 sets of 60 pictures beside one reference: 95 % intervals hold the mean about 38 times.

    The binomial deviation is 1.4. Over the reference pictures alone they held it 30 times.
    """
    generator = torch.Generator().manual_seed(0)

    def drawn(n):
        return torch.randn(n, 8, generator=generator, dtype=torch.float64)

    reference = drawn(300)
    found = [estimate("recall", [recall_statistic(0.9 * drawn(60), reference)], 60) for _ in range(40)]
    mean = sum(value for value, _, _ in found) / 40
    assert sum(low <= mean <= high <= 1 for _, low, high in found) >= 35


def test_an_attribute_that_few_captions_state_is_told(asked):
    """3 of 16 scenes state it; one resample in 28 holds none of them, of which there is no mean."""
    values = torch.full((16,), torch.nan, dtype=torch.float64)
    values[:3] = torch.tensor([1.0, 0, 1])
    asked = dataclasses.replace(asked, num=16)
    (row,) = asked.rows("jdm", 1, {"striped accuracy": [_mean_of(values)]}, [0], "a command")
    assert row.value == pytest.approx(2 / 3) and (row.low, row.high) == (0, 1)
    assert not asked.rows("jdm", 1, {"striped accuracy": [_mean_of(values * torch.nan)]}, [0], "a command")


def test_nothing_between_floor_and_ceiling_has_no_share(asked):
    true = marks(asked, asked.true_images())
    compared = asked.compared(true, {ROUND_TRIP: true, NO_CONTROL: true})
    assert "canny f1 gap closed" not in by_metric(asked.rows("jdm", 1, compared, [0], "a command"))
