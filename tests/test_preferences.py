"""From choices to a reward: what is wrong with the data, what the fit finds, and what it says of itself."""

import csv
import json
import math
import sys

import pytest
import torch
from PIL import Image
from reward_folders import WORDS, to_image, write_classifier, write_clip, write_vit

from jdmctl.cli import app as cli
from jdmctl.errors import BadInputError, JdmError
from jdmctl.feedback import bradley_terry
from jdmctl.feedback.check import check_pairs, wilson
from jdmctl.feedback.features import pair_features
from jdmctl.feedback.fit import fit_preferences, split_by_prompt
from jdmctl.feedback.pairs import Pair, read_pairs
from jdmctl.rewards.base import load_reward
from jdmctl.rewards.encoders import load_encoder
from jdmctl.rewards.preference import Preference


def write_rows(folder, rows, kind="jsonl"):
    file = folder / f"choices.{kind}"
    if kind == "jsonl":
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        with file.open("w", newline="") as stream:
            writer = csv.DictWriter(stream, rows[0].keys())
            writer.writeheader()
            writer.writerows(rows)
    return file


def row(prompt, image_a, image_b, preferred, **more):
    return {"prompt": prompt, "image_a": image_a, "image_b": image_b, "preferred": preferred, **more}


@pytest.fixture(scope="session")
def taste(tmp_path_factory):
    """60 prompts, 4 pairs each, of flat pictures; a person who likes red: P = sigmoid(8 (red_a - red_b))."""
    folder = tmp_path_factory.mktemp("taste")
    generator = torch.Generator().manual_seed(0)
    rows = []
    for number in range(240):
        colors = torch.rand(2, 3, generator=generator)
        names = [f"{number}-{side}.png" for side in "ab"]
        for name, color in zip(names, colors, strict=True):
            Image.new("RGB", (16, 16), tuple((color * 255).int().tolist())).save(folder / name)
        likely = torch.sigmoid(8 * (colors[0, 0] - colors[1, 0]))
        choice = "a" if torch.rand((), generator=generator) < likely else "b"
        rows.append(row(f"prompt {number % 60}", *names, choice))
    return write_rows(folder, rows)


class MeanColor(torch.nn.Module):
    """Mean red, green and blue: an encoder as a plain Python function."""

    def forward(self, image, texts):
        return image.mean((2, 3))


# Reading


@pytest.fixture
def two_pictures(tmp_path):
    for name in "xyz":
        Image.new("RGB", (8, 8)).save(tmp_path / f"{name}.png")
    return tmp_path


@pytest.mark.parametrize("kind", ["jsonl", "csv"])
def test_labels_of_all_kinds(two_pictures, kind):
    """0 and 1 are the number of the preferred picture."""
    given = ["a", "b", "tie", "A", 0, 1, 0.5, 1.0]
    file = write_rows(two_pictures, [row(f"p{i}", "x.png", "y.png", label) for i, label in enumerate(given)], kind)
    assert [pair.label for pair in read_pairs(file)] == [1, 0, 0.5, 1, 1, 0, 0.5, 0]


def test_all_problems_are_told_at_once(two_pictures):
    rows = [
        row("p", "x.png", "absent.png", "a"),
        row("p", "x.png", "y.png", "left"),
        row("p", "x.png", "./x.png", "a"),
        {"prompt": "p", "image_a": "x.png"},
        row(3, "x.png", "y.png", "a"),
        row("p", "x.png", "y.png", "a", split="trian"),
        row("same prompt", "x.png", "y.png", "a", split="train"),
        row("Same  Prompt", "x.png", "z.png", "a", split="test"),
    ]
    file = write_rows(two_pictures, rows)
    with file.open("a") as stream:
        stream.write("{oops\n")
    with pytest.raises(BadInputError) as caught:
        read_pairs(file)
    told = str(caught.value)
    assert "has 8 problems" in told
    for number, part in enumerate(["no file", "preferred is 'left'", "against itself", "no image_b, preferred",
                                   "must be strings", "split is 'trian'"], start=1):  # fmt: skip
        assert any(f"line {number}: " in line and part in line for line in told.splitlines()), part
    assert "line 9: not valid json" in told
    assert "line 8: the prompt 'same prompt' is held out, but line 7 trains on it" in told


@pytest.mark.parametrize(
    "changes, told",
    [
        ({"split": ["train"]}, r"split is \['train'\]"),
        ({"image_a": "x" * 400}, "no file"),
        ({"prompt": None}, "no prompt"),
        ({"image_a": "", "preferred": ""}, "no image_a, preferred"),
        ({"prompt": "party \ud83d"}, r"prompt 'party \\ud83d' is cut within a letter"),
    ],
)
def test_odd_values_are_sentences(two_pictures, changes, told):
    with pytest.raises(BadInputError, match=f"has 1 problem:\n  line 1: {told}"):
        read_pairs(write_rows(two_pictures, [row("p", "x.png", "y.png", "a") | changes]))


@pytest.mark.parametrize(
    "text, told",
    [
        ("prompt;image_a;image_b;preferred\na;x.png;y.png;a\n" * 9, "line 1: no column .*; found prompt;image_a"),
        ("prompt,image_a,image_b\na,x.png,y.png\n", "line 1: no column preferred; found prompt, image_a, image_b"),
        ("prompt,image_a,image_b,preferred\na cat, fat,x.png,y.png,a\n", "line 2: more columns .*: quote a text"),
        (
            'prompt,image_a,image_b,preferred\na,x.png,y.png,a\n"b,x.png,y.png,b\nc,x.png,y.png,a\n',
            "line 3: not valid csv",
        ),
        ('prompt,image_a,image_b,preferred\n"b,x.png,y.png,b\n' + "c,x.png,y.png,a\n" * 9000, "line 2: not valid csv"),
        ('prompt,image_a,image_b,preferred\n"two\nlines",x.png,y.png,c\n', "line 2: preferred is 'c'"),
    ],
)
def test_a_csv_that_was_written_wrong(two_pictures, text, told):
    """One sentence, with the line that the trouble begins on: not one for each row below a wrong first line."""
    file = two_pictures / "pairs.csv"
    file.write_text(text)
    with pytest.raises(BadInputError, match=f"has 1 problem:\n  {told}"):
        read_pairs(file)


def test_files_that_are_none(tmp_path):
    with pytest.raises(BadInputError, match="no file"):
        read_pairs(tmp_path / "absent.jsonl")
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(BadInputError, match="has no pairs"):
        read_pairs(tmp_path / "empty.jsonl")
    with pytest.raises(BadInputError, match="is no list of pairs"):
        read_pairs(tmp_path / "x.txt")


def test_repeated_contradictory_and_one_sided_choices_are_warned_of(two_pictures):
    """x over y, x over y with the sides turned, y over x: one repetition, one contradiction.

    20 more choices all for the left: its share of 22/23 is above a half beyond chance.
    """
    rows = [row("p", "x.png", "y.png", "a"), row("P", "y.png", "x.png", "b"), row("p", "x.png", "y.png", "b")]
    rows += [row(f"q{i}", "x.png", "z.png", "a") for i in range(20)]
    check = check_pairs(read_pairs(write_rows(two_pictures, rows)))
    assert check.num_pairs == 23 and check.num_prompts == 21 and check.num_ties == 0
    assert check.a_preferred.value == pytest.approx(21 / 23)
    same, other, side = check.warnings
    assert same.startswith("1 pairs come again with the same choice: lines 1 and 2")
    assert other.startswith("1 pairs come again with another choice: lines 1 and 3")
    assert side.startswith("picture a is preferred too often for chance")


def test_wilson():
    """8 of 10: (0.8 + 0.19208 +- 1.96 sqrt(0.016 + 0.009604)) / 1.38416 = 0.4902 and 0.9433."""
    estimate = wilson(8, 10)
    assert (estimate.low, estimate.high) == (pytest.approx(0.4902, abs=1e-4), pytest.approx(0.9433, abs=1e-4))
    assert wilson(0, 0).n == 0


# The model


def test_the_fit_is_the_maximum_of_the_likelihood():
    """One feature, differences +1, of which 3 in 4 are preferred: without decay w = log 3.

    With a decay d the slope sigmoid(w) - 3/4 + d w is 0: at d = 0.1, w = 0.8044.
    """
    differences, labels = torch.ones(4, 1), torch.tensor([1.0, 1.0, 1.0, 0.0])
    assert bradley_terry.fit_weights(differences, labels, 0).item() == pytest.approx(math.log(3), abs=1e-5)
    weight = bradley_terry.fit_weights(differences, labels, 0.1).item()
    assert 1 / (1 + math.exp(-weight)) - 0.75 + 0.1 * weight == pytest.approx(0, abs=1e-6)


def test_units_and_sides_do_not_matter():
    generator = torch.Generator().manual_seed(0)
    differences = torch.randn(50, 3, generator=generator, dtype=torch.float64)
    labels = (torch.rand(50, generator=generator) < 0.5).double()
    weights = bradley_terry.fit_weights(differences, labels, 0.01)
    units = torch.tensor([1.0, 100.0, 0.01])
    torch.testing.assert_close(bradley_terry.fit_weights(differences * units, labels, 0.01) * units, weights)
    torch.testing.assert_close(bradley_terry.fit_weights(-differences, 1 - labels, 0.01), weights)


def test_a_tie_is_half_of_each():
    differences, labels = torch.tensor([[1.0], [2.0]]), torch.tensor([0.5, 1.0])
    halves = torch.tensor([[1.0], [1.0], [2.0], [2.0]]), torch.tensor([1.0, 0.0, 1.0, 1.0])
    one, other = (bradley_terry.fit_weights(*data, 0.1) for data in ((differences, labels), halves))
    torch.testing.assert_close(one, other)


def test_noise_is_given_a_strong_decay_and_signal_a_weak_one():
    generator = torch.Generator().manual_seed(0)
    differences = torch.randn(120, 40, generator=generator)
    groups = torch.arange(120) // 4
    coin = (torch.rand(120, generator=generator) < 0.5).double()
    signal = (differences[:, 0] > 0).double()
    assert bradley_terry.choose_weight_decay(differences, coin, groups)[0] >= 1
    assert bradley_terry.choose_weight_decay(differences, signal, groups)[0] <= 0.1


def test_accuracy_by_hand():
    """Right, wrong, a tie, indifference: (1 + 0 + 1/2) / 3; the intervals cover it."""
    logits, labels = torch.tensor([2.0, 1.0, 3.0, 0.0]), torch.tensor([1.0, 0.0, 0.5, 1.0])
    estimate = bradley_terry.accuracy(logits, labels, torch.tensor([0, 1, 2, 3]))
    assert estimate.value == pytest.approx(0.5) and estimate.n == 3
    assert estimate.low < 0.5 < estimate.high


def test_accuracy_resamples_prompts():
    """Ten copies of each of ten prompts' choices tell no more than one: the interval stays as wide."""
    labels = torch.tensor([1.0] * 6 + [0.0] * 4)
    once = bradley_terry.accuracy(torch.ones(10), labels, torch.arange(10))
    copies = bradley_terry.accuracy(torch.ones(100), labels.repeat(10), torch.arange(10).repeat(10))
    assert (once.low, once.high) == (copies.low, copies.high)


@pytest.mark.parametrize("number", [1, 2, 3, 5, 20])
def test_that_all_held_out_prompts_agree_is_no_certainty(number):
    """n of n right: Wilson's interval begins at n / (n + 1.96^2), however many choices each prompt has."""
    estimate = bradley_terry.accuracy(torch.ones(4 * number), torch.ones(4 * number), torch.arange(4 * number) // 4)
    assert (estimate.value, estimate.high, estimate.n) == (1, 1, number)
    assert estimate.low == pytest.approx(number / (number + 1.96**2))


def test_few_prompts_are_no_narrower_than_as_many_choices():
    """8 of 9: resamples alone would begin at 0.67, Wilson's interval at 0.57."""
    labels = torch.tensor([1.0] * 8 + [0.0])
    estimate = bradley_terry.accuracy(torch.ones(9), labels, torch.arange(9))
    assert estimate.low == wilson(8, 9).low and estimate.high >= wilson(8, 9).high


def test_reliability_by_hand():
    """Logits +-log 3 foretell 3/4 for the likelier one. It wins in 2 of 4, once against a tie: (2 + 1/2) / 4.

    The error is 3/4 - 5/8 = 1/8, whatever the side.
    """
    logits = torch.tensor([1, 1, -1, -1]) * math.log(3)
    error, rows = bradley_terry.reliability(logits, torch.tensor([1.0, 0.5, 0.0, 1.0]))
    assert error == pytest.approx(1 / 8)
    assert rows == [
        {"from": 0.7, "to": pytest.approx(0.8), "foretold": pytest.approx(0.75), "observed": 0.625, "pairs": 4}
    ]


def test_well_foretold_choices_have_no_calibration_error():
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(20000, generator=generator)
    labels = (torch.rand(20000, generator=generator) < logits.sigmoid()).double()
    assert bradley_terry.reliability(logits, labels)[0] < 0.01


# The whole way


def test_a_known_taste_is_learnt(taste, tmp_path):
    """Red counts 8, green and blue nothing. The best that anyone can foretell is E max(p, 1 - p) = 0.87."""
    report = fit_preferences(taste, MeanColor(), tmp_path / "reward", resolution_px=16)
    assert report.num_train + report.num_held_out == 240 and report.num_held_out == 48
    estimate = report.held_out_accuracy
    assert estimate.low > 0.6 and estimate.low <= 0.87 <= estimate.high and estimate.n == 12
    assert report.held_out_log_loss < 0.5 and report.calibration_error < 0.15
    reward = Preference(str(tmp_path / "reward"), encoder=MeanColor())
    red, green, blue = reward.head.weight.tolist()
    assert 5 < red < 12 and abs(green) < 2 and abs(blue) < 2
    image = torch.rand(2, 3, 8, 8, requires_grad=True)
    (gradient,) = torch.autograd.grad(reward(image, ["", ""]).sum(), image)
    torch.testing.assert_close(gradient.sum((2, 3)), reward.head.weight.expand(2, 3))
    config = json.loads((tmp_path / "reward" / "config.json").read_text())
    assert config["num_held_out"] == 48 and config["held_out_accuracy"]["value"] == estimate.value


def test_the_reward_is_log_odds_about_zero(taste, tmp_path):
    """Of two pictures the difference of rewards is the fit's logit; over the training pictures the mean is 0."""
    fit_preferences(taste, MeanColor(), tmp_path / "reward", resolution_px=16)
    reward = Preference(str(tmp_path / "reward"), encoder=MeanColor())
    pairs = read_pairs(taste)
    out = split_by_prompt(pairs, 0.2, 0)
    kept = [pair for pair, held in zip(pairs, out.tolist(), strict=True) if not held]
    found = [Image.open(image) for pair in kept for image in (pair.image_a, pair.image_b)]
    assert reward(to_image(found), [""] * len(found)).mean().item() == pytest.approx(0, abs=1e-4)


def test_places_and_layers_of_a_classifier_are_kept_with_the_reward(taste, tmp_path):
    """2 x 2 places of the first hidden state, [4 x 8]: their mean is that of one place; the folder says so itself."""
    folder = str(write_classifier(tmp_path / "classifier", preprocessor=False))
    encoder, whole = load_encoder(folder, grid=2, layer=0), load_encoder(folder, layer=0)
    image = torch.rand(3, 3, 32, 32)
    features = encoder(image, [""] * 3)
    assert features.shape == (3, 32)
    torch.testing.assert_close(features.unflatten(1, (8, 4)).mean(2), whole(image, [""] * 3))
    flipped = encoder(image.flip(3), [""] * 3)
    assert not torch.allclose(features, flipped, atol=1e-3)
    fit_preferences(taste, encoder, tmp_path / "reward", resolution_px=16)
    torch.testing.assert_close(
        Preference(str(tmp_path / "reward"))(image, [""] * 3),
        Preference(str(tmp_path / "reward"), encoder=encoder)(image, [""] * 3),
    )
    with pytest.raises(BadInputError, match="has no layer 9"):
        load_encoder(folder, layer=9)(image, [""] * 3)


def test_places_and_layers_that_an_encoder_has_not_are_refused(taste, tmp_path):
    """Tokens have no places on a grid; a CLIP-like encoder gives one vector. Before any features are computed."""
    tokens = str(write_vit(tmp_path / "vit", preprocessor=True))
    image = torch.rand(2, 3, 32, 32)
    assert load_encoder(tokens, layer=1)(image, [""] * 2).shape == (2, 16)
    with pytest.raises(BadInputError, match="keeps no places: layer -1 is a list of tokens") as refused:
        fit_preferences(taste, load_encoder(tokens, grid=2), tmp_path / "reward", progress=lambda *_: pytest.fail())
    assert "leave --grid out" in refused.value.hint
    words = str(write_clip(tmp_path / "clip"))
    for asked in ({"grid": 2}, {"layer": 0}):
        with pytest.raises(BadInputError, match="is a CLIP-like model, which gives one vector"):
            load_encoder(words, **asked)


def test_a_classifier_of_one_size_that_nothing_says(taste, tmp_path):
    folder = str(write_vit(tmp_path / "vit"))
    with pytest.raises(BadInputError, match="does not take pictures of 64 x 64 px: Input image size") as refused:
        fit_preferences(taste, load_encoder(folder), tmp_path / "reward", progress=lambda *_: pytest.fail())
    assert "preprocessor_config.json" in refused.value.hint
    with pytest.raises(BadInputError, match="does not take pictures of 40 x 24 px"):
        load_reward("classifier", folder=folder, label=0)(torch.rand(1, 3, 24, 40), [""])


def test_the_same_seed_gives_the_same_reward(taste, tmp_path):
    for name in ("one", "two"):
        fit_preferences(taste, MeanColor(), tmp_path / name, resolution_px=16, seed=3)
    assert (tmp_path / "one/model.safetensors").read_bytes() == (tmp_path / "two/model.safetensors").read_bytes()


def test_prompts_are_held_out_whole():
    pairs = [Pair(f"prompt {i % 7}" if i % 2 else f"PROMPT  {i % 7}", None, None, 1.0) for i in range(70)]
    out = split_by_prompt(pairs, 0.3, seed=1)
    sides = {(pair.prompt.lower().split()[1], held) for pair, held in zip(pairs, out.tolist(), strict=True)}
    assert len(sides) == 7 and sum(held for _, held in sides) == 2
    assert not torch.equal(out, split_by_prompt(pairs, 0.3, seed=2))


def test_a_stated_split_is_kept():
    pairs = [Pair(f"p{i}", None, None, 1.0, held_out=i == 3) for i in range(5)]
    assert split_by_prompt(pairs, 0.5, 0).tolist() == [False, False, False, True, False]


def test_taste_in_pictures_alone(two_pictures):
    """Without a prompt pairs are independent that no picture links: w against x and x against y are not."""
    for name in "wuv":
        Image.new("RGB", (8, 8)).save(two_pictures / f"{name}.png")
    couples = ("wx", "uv", "xy", "vu")
    for kind in ("jsonl", "csv"):
        file = write_rows(two_pictures, [row(" ", f"{a}.png", f"{b}.png", "a") for a, b in couples], kind)
        pairs = read_pairs(file)
        assert check_pairs(pairs).num_prompts == 2
        one, other, *rest = split_by_prompt(pairs, 0.5, seed=0).tolist()
        assert rest == [one, other] and one != other
        with pytest.raises(BadInputError, match="all 1 pairs have one set of pictures and no prompt"):
            split_by_prompt(pairs[:1], 0.5, 0)
    sides = [("wx", "train"), ("xy", "held_out"), ("uv", "train")]
    file = write_rows(two_pictures, [row("", f"{a}.png", f"{b}.png", "a", split=side) for (a, b), side in sides])
    with pytest.raises(BadInputError, match=r"line 2: what is compared with \S+w.png is held out, but line 1 trains"):
        read_pairs(file)


def test_a_taste_without_prompts_is_learnt(taste, tmp_path):
    rows = [json.loads(line) | {"prompt": ""} for line in taste.read_text().splitlines()[:60]]
    for one in rows:
        one |= {side: str(taste.parent / one[side]) for side in ("image_a", "image_b")}
    report = fit_preferences(write_rows(tmp_path, rows), MeanColor(), tmp_path / "reward", resolution_px=16)
    assert (report.data.num_prompts, report.held_out_accuracy.n) == (60, 12)
    assert report.held_out_accuracy.value > 0.6


def test_too_little_data(two_pictures):
    file = write_rows(two_pictures, [row("p", "x.png", "y.png", "a"), row("p", "x.png", "z.png", "a")])
    with pytest.raises(BadInputError, match="all 2 pairs have one prompt"):
        fit_preferences(file, MeanColor(), two_pictures / "out")
    file = write_rows(two_pictures, [row(f"p{i}", "x.png", "y.png", "a") for i in range(5)])
    with pytest.raises(BadInputError, match="4 decided pairs to train on, at least 10"):
        fit_preferences(file, MeanColor(), two_pictures / "out")


def test_pictures_that_cannot_be_read_are_told_at_once(two_pictures):
    (two_pictures / "x.png").write_bytes(b"no picture")
    (two_pictures / "y.png").write_bytes((two_pictures / "z.png").read_bytes()[:40])
    pairs = [Pair("p", two_pictures / f"{a}.png", two_pictures / f"{b}.png", 1.0) for a, b in ("xy", "xz", "yz")]
    with pytest.raises(BadInputError, match="2 pictures cannot be read"):
        pair_features(pairs, MeanColor(), 8)


def test_a_damaged_first_picture_is_a_sentence(two_pictures):
    """Its size is asked for where neither the encoder nor the user says one."""
    (two_pictures / "x.png").write_bytes(b"no picture")
    file = write_rows(two_pictures, [row(f"p{i}", "x.png", "y.png", "a") for i in range(20)])
    with pytest.raises(BadInputError, match="x.png is not a picture that can be read"):
        fit_preferences(file, MeanColor(), two_pictures / "out")


def test_each_picture_goes_through_the_encoder_once(two_pictures):
    seen = []

    def encoder(image, texts):
        seen.extend(texts)
        return image.mean((2, 3))

    pairs = [Pair("p", two_pictures / f"{a}.png", two_pictures / f"{b}.png", 1.0) for a, b in ("xy", "xz", "yz")]
    first, second = pair_features(pairs, encoder, 8)
    assert first.shape == second.shape == (3, 3) and len(seen) == 3


@pytest.mark.parametrize("write, width", [(write_clip, 32), (write_classifier, 16)])
def test_the_command_on_folders(taste, tmp_path, monkeypatch, capsys, write, width):
    """A CLIP-like folder gives twice its dimensions, a classifier the width of its last layer."""
    encoder = write(tmp_path / "encoder")
    command = ["reward", "fit", taste, "--encoder", encoder, "--output", tmp_path / "reward", "--json"]
    monkeypatch.setattr(sys, "argv", ["jdmctl", *map(str, command)])
    with pytest.raises(SystemExit) as left:
        cli.main()
    record = json.loads(capsys.readouterr().out)
    assert not left.value.code and record["num_held_out"] == 48
    reward = load_reward("preference", folder=str(tmp_path / "reward"))
    assert reward.head.weight.shape == (width,)
    assert reward(torch.rand(2, 3, 40, 40), WORDS).isfinite().all()


def test_the_command_tells_of_data_before_it_loads_a_network(tmp_path, monkeypatch):
    (tmp_path / "c.jsonl").write_text("{}\n")
    command = ["jdmctl", "reward", "fit", str(tmp_path / "c.jsonl"), "--encoder", "absent", "-o", str(tmp_path / "r")]
    monkeypatch.setattr(sys, "argv", command)
    monkeypatch.setenv("JDMCTL_DEBUG", "1")
    with pytest.raises(JdmError, match="has 1 problem"):
        cli.main()
