"""Rewards: one contract for all, each against what its own processor and network say, bad folders as sentences."""

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from reward_folders import (
    IMAGEREWARD,
    PX,
    WORDS,
    clip_processor,
    pictures,
    to_image,
    write_classifier,
    write_clip,
    write_imagereward,
)
from safetensors.torch import load_file, save_file
from torch.nn import functional
from transformers import (
    AutoImageProcessor,
    AutoModelForImageClassification,
    AutoTokenizer,
    CLIPModel,
    ConvNextImageProcessorPil,
    PoolFormerImageProcessorPil,
)

from jdmctl.errors import BadInputError, JdmError, MissingWeightsError
from jdmctl.rewards import REWARDS
from jdmctl.rewards.aesthetic import Aesthetic, mlp
from jdmctl.rewards.base import describe_rewards, load_reward, reward_names
from jdmctl.rewards.closed_form import Brightness, Colorfulness, Contrast, Warmth
from jdmctl.rewards.encoders import probe
from jdmctl.rewards.image_text import ImageTextEncoder
from jdmctl.rewards.imagereward import ImageReward, ImageRewardNetwork
from jdmctl.rewards.pixels import Preprocessing
from jdmctl.rewards.preference import Head, Preference


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    """Name -> folder, of everything that a reward is made of."""
    root = tmp_path_factory.mktemp("rewards")
    made = {
        "clip": write_clip(root / "clip"),
        "classifier": write_classifier(root / "classifier"),
        "imagereward": write_imagereward(root / "imagereward"),
    }
    torch.manual_seed(0)
    head = torch.nn.Linear(16, 1)
    made["head"] = root / "linear.safetensors"
    save_file(head.state_dict(), made["head"])
    made["preference"] = root / "preference"
    made["preference"].mkdir()
    from jdmctl.rewards.encoders import load_encoder

    encoder = load_encoder(str(made["clip"]))
    config = {"encoder": str(made["clip"])}
    Head(torch.randn(32), torch.tensor(0.3), probe(encoder), config).save(made["preference"])
    return {name: str(path) for name, path in made.items()}


def options(name, folders):
    if name in ("clip", "pickscore", "hps"):
        return {"folder": folders["clip"]}
    return {
        "imagereward": {"folder": folders["imagereward"]},
        "aesthetic": {"folder": folders["head"], "encoder": folders["clip"]},
        "classifier": {"folder": folders["classifier"], "label": "dog"},
        "preference": {"folder": folders["preference"]},
    }.get(name, {})


@pytest.fixture(params=sorted(REWARDS))
def reward(request, folders):
    return load_reward(request.param, **options(request.param, folders))


# The contract


def test_a_reward_is_a_number_a_picture_with_a_gradient(reward):
    image = to_image(pictures()).requires_grad_()
    values = reward(image, WORDS)
    assert values.shape == (2,) and values.dtype == torch.float32
    assert reward.name in REWARDS and reward.description
    (gradient,) = torch.autograd.grad(values.sum(), image)
    assert gradient.isfinite().all() and (gradient.flatten(1).norm(dim=1) > 0).all()


def test_the_gradient_is_that_of_finite_differences(reward):
    """(R(x + h v) - R(x - h v)) / 2 h against <grad R, v> in float32, along the gradient itself."""
    image = (0.2 + 0.6 * to_image(pictures())).requires_grad_()
    (gradient,) = torch.autograd.grad(reward(image, WORDS).sum(), image)
    direction = gradient / gradient.flatten(1).norm(dim=1)[:, None, None, None]
    step = 0.05
    with torch.no_grad():
        slope = (reward(image + step * direction, WORDS) - reward(image - step * direction, WORDS)) / (2 * step)
    torch.testing.assert_close(slope, (gradient * direction).flatten(1).sum(1), rtol=0.05, atol=1e-3)


def test_a_batch_is_its_pictures(reward):
    image = to_image(pictures(3))
    texts = [*WORDS, WORDS[0]]
    alone = torch.cat([reward(one[None], [text]) for one, text in zip(image, texts, strict=True)])
    torch.testing.assert_close(reward(image, texts), alone, atol=1e-4, rtol=1e-4)


def test_nothing_is_gained_beyond_white(reward):
    image = to_image(pictures())
    image[0, :, :20], image[1, :, 20:] = 1, 0
    beyond = image + torch.where(image == 1, 0.5, torch.where(image == 0, -0.5, 0.0))
    torch.testing.assert_close(reward(beyond, WORDS), reward(image, WORDS))


def test_captions_count_where_the_reward_says_so(reward):
    image = to_image(pictures())
    same = torch.equal(reward(image, WORDS), reward(image, WORDS[::-1]))
    assert same != reward.reads_text


def test_nothing_is_trained_but_the_student(reward):
    modules = [value for value in vars(reward).values() if isinstance(value, torch.nn.Module)]
    assert not any(parameter.requires_grad for module in modules for parameter in module.parameters())
    assert reward.to("cpu") is reward


# Against the network's own processor


def clip_reference(folder, found, texts):
    """transformers' processor on 8-bit pictures and CLIPModel.forward: cosines and exp(logit_scale)."""
    model, tokens = CLIPModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    inputs = tokens(texts, padding="max_length", max_length=16, truncation=True, return_tensors="pt")
    with torch.no_grad():
        output = model(pixel_values=clip_processor()(found, return_tensors="pt").pixel_values, **inputs)
    return (output.image_embeds * output.text_embeds).sum(1), model.logit_scale.exp()


@pytest.mark.parametrize("height, width", [(PX, PX), (40, 40), (50, 40), (37, 90)])
def test_clip_and_pickscore_are_those_of_transformers(folders, height, width):
    """Without resizing to the last digits; with it up to the processor's rounding to 8 bits."""
    found = pictures(height=height, width=width)
    cosine, scale = clip_reference(folders["clip"], found, WORDS)
    tolerance = 1e-5 if (height, width) == (PX, PX) else 2e-3
    for name, factor in (("clip", 100), ("pickscore", scale.item())):
        values = load_reward(name, folder=folders["clip"])(to_image(found), WORDS)
        torch.testing.assert_close(values / factor, cosine, atol=tolerance, rtol=0)


def test_hps_fits_the_longest_side_with_black_around(folders):
    """A picture of 24 x 48 px: 16 x 32 after resizing, black in 8 rows above and below."""
    image = to_image(pictures(height=24, width=48))
    small = functional.interpolate(image, (16, 32), mode="bicubic", antialias=True).clamp(0, 1)
    by_hand = functional.pad(small, (0, 0, 8, 8))
    encoder = ImageTextEncoder(folders["clip"])
    expected = 100 * encoder.similarity(by_hand, WORDS)
    torch.testing.assert_close(load_reward("hps", folder=folders["clip"])(image, WORDS), expected)


def test_the_classifier_is_that_of_transformers(folders):
    found = pictures(height=50, width=40)
    model = AutoModelForImageClassification.from_pretrained(folders["classifier"]).eval()
    processor = AutoImageProcessor.from_pretrained(folders["classifier"], backend="pil")
    with torch.no_grad():
        logits = model(processor(found, return_tensors="pt").pixel_values).logits
    values = load_reward("classifier", folder=folders["classifier"], label=1)(to_image(found), [])
    torch.testing.assert_close(values, logits.log_softmax(1)[:, 1], atol=2e-3, rtol=0)
    own = load_reward("classifier", folder=folders["classifier"], label="dog", independent=True)
    torch.testing.assert_close(own(to_image(found)), logits.sigmoid().log()[:, 1], atol=2e-3, rtol=0)


def test_a_classifier_without_preprocessor_sees_pictures_as_they_are(tmp_path):
    folder = write_classifier(tmp_path, preprocessor=False)
    image = to_image(pictures())
    model = AutoModelForImageClassification.from_pretrained(folder).eval()
    expected = model(image * 2 - 1).logits.log_softmax(1)[:, 2]
    torch.testing.assert_close(load_reward("classifier", folder=str(folder), label="ship")(image, []), expected)


def test_imagereward_is_its_network_on_prepared_pictures(folders):
    found = pictures(height=PX, width=PX)
    pixels = clip_processor()(found, return_tensors="pt").pixel_values
    tokens = AutoTokenizer.from_pretrained(Path(folders["imagereward"], "tokenizer"))
    inputs = tokens(WORDS, padding="max_length", max_length=12, truncation=True, return_tensors="pt")
    reward = ImageReward(folders["imagereward"])
    expected = reward.network(pixels, inputs.input_ids, inputs.attention_mask)
    torch.testing.assert_close(reward(to_image(found), WORDS), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", ["linear", "mlp"])
def test_both_aesthetic_heads(folders, tmp_path, kind):
    head = torch.nn.Linear(16, 1) if kind == "linear" else mlp(16).eval()
    prefix = "" if kind == "linear" else "layers."
    save_file({prefix + name: value for name, value in head.state_dict().items()}, tmp_path / "head.safetensors")
    image = to_image(pictures(height=PX, width=PX))
    vector = ImageTextEncoder(folders["clip"]).image(image)
    reward = Aesthetic(str(tmp_path / "head.safetensors"), folders["clip"])
    torch.testing.assert_close(reward(image), head(vector).squeeze(1))


@pytest.mark.parametrize(
    "settings, size",
    [
        ({"size": 16, "do_center_crop": False}, (16, 16)),
        ({"size": 16, "crop_size": 12}, (12, 12)),
        ({"size": {"shortest_edge": 16}, "crop_size": {"height": 16, "width": 16}}, (16, 16)),
        ({"size": {"height": 8, "width": 24}}, (8, 24)),
        ({"do_resize": False, "size": {"height": 8, "width": 8}}, (20, 40)),
    ],
)
def test_sizes_as_old_and_new_files_write_them(settings, size):
    assert Preprocessing(settings)(torch.rand(1, 3, 20, 40)).shape[-2:] == size


@pytest.mark.parametrize("size", [{"height": 40, "width": 40}, {"height": 37, "width": 90}])
@pytest.mark.parametrize(
    "processor",
    [
        ConvNextImageProcessorPil(size={"shortest_edge": 28}, crop_pct=0.875),  # to 32, and cut
        ConvNextImageProcessorPil(size={"shortest_edge": 384}, resample=2),  # no cut from here on
        PoolFormerImageProcessorPil(size={"shortest_edge": 27}, crop_size={"height": 24, "width": 24}, crop_pct=0.9),
    ],
)
def test_crop_pct_is_that_of_transformers(processor, size):
    found = pictures(**size)
    expected = processor(found, return_tensors="pt").pixel_values
    values = Preprocessing(processor.to_dict())(to_image(found))
    torch.testing.assert_close(values, expected, atol=0.05, rtol=0)


def test_one_mean_may_stand_for_three():
    image = torch.rand(1, 3, 4, 4)
    torch.testing.assert_close(Preprocessing({"image_mean": 0.5, "image_std": 0.25})(image), (image - 0.5) / 0.25)
    assert torch.equal(Preprocessing({"image_mean": None, "do_normalize": False})(image), image)
    for wrong in ([0.5], None, "half", [0.5, 0.5, None]):
        with pytest.raises(BadInputError, match="has an image_mean that is not known"):
            Preprocessing({"image_mean": wrong})


def test_preprocessing_that_cannot_be_done():
    with pytest.raises(BadInputError, match="asks for resampling 0"):
        Preprocessing({"resample": 0})
    with pytest.raises(BadInputError, match="a size that is not known"):
        Preprocessing({"size": {"longest_edge": 3}})


# Closed forms


def test_closed_forms_of_flat_and_striped_pictures():
    """Luma of (1, 0.5, 0): 0.299 + 0.587 / 2 = 0.5925. Half black, half white: deviation 1/2.

    Red (1, 0, 0): rg = 1, yb = 1/2 everywhere, so colourfulness is 0.3 sqrt(1 + 1/4) = 0.3354.
    Half red, half green: rg = +1 and -1, mean 0, variance 1; yb = 1/2: 1 + 0.3 / 2 = 1.15.
    """
    flat = torch.tensor([1.0, 0.5, 0.0]).view(1, 3, 1, 1).expand(1, 3, 4, 4)
    assert Brightness()(flat).item() == pytest.approx(0.5925)
    assert Warmth()(flat).item() == pytest.approx(1.0)
    half = torch.zeros(1, 3, 4, 4)
    half[..., :2] = 1
    assert Contrast()(half).item() == pytest.approx(0.5, abs=1e-5)
    red = torch.zeros(1, 3, 4, 4)
    red[:, 0] = 1
    assert Colorfulness()(red).item() == pytest.approx(0.3 * 1.25**0.5, abs=1e-5)
    red[:, 0, :, 2:], red[:, 1, :, 2:] = 0, 1
    assert Colorfulness()(red).item() == pytest.approx(1.15, abs=1e-5)


@pytest.mark.parametrize("reward", [Colorfulness(), Contrast()])
def test_a_grey_picture_has_a_finite_gradient(reward):
    image = torch.full((1, 3, 4, 4), 0.5, requires_grad=True)
    value = reward(image)
    value.backward()
    assert value.item() == pytest.approx(0, abs=1e-6) and image.grad.isfinite().all()


# Folders that cannot be used


def write_headless(folder):
    """A classifier whose last layer was not saved: transformers alone would make one up."""
    write_classifier(folder)
    state = load_file(folder / "model.safetensors")
    kept = {name: value for name, value in state.items() if not name.startswith("classifier")}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def test_pickles_are_refused_with_the_way_out(tmp_path):
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "ImageReward.pt").write_bytes(b"")
    for make in (
        lambda: load_reward("clip", folder=str(tmp_path)),
        lambda: load_reward("imagereward", folder=str(tmp_path / "ImageReward.pt")),
        lambda: load_reward("aesthetic", encoder="x", folder=str(tmp_path / "ImageReward.pt")),
        lambda: load_reward("preference", folder=str(tmp_path)),
    ):
        with pytest.raises(MissingWeightsError, match="refused") as caught:
            make()
        assert "jdmctl reward convert" in caught.value.hint


def test_bad_folders_are_sentences(folders, tmp_path):
    for nowhere in (str(tmp_path / "nowhere"), "./nowhere", "../no/where"):
        with pytest.raises(MissingWeightsError, match=f"no folder or file {nowhere}"):
            load_reward("clip", folder=nowhere)
    with pytest.raises(MissingWeightsError, match="cannot load an image-text network from no/where"):
        load_reward("clip", folder="no/where")  # may be a hub name
    with pytest.raises(MissingWeightsError, match="not an image-text network"):
        load_reward("clip", folder=folders["classifier"])
    with pytest.raises(MissingWeightsError, match="lacks 2 of the weights of an image classifier"):
        load_reward("classifier", folder=str(write_headless(tmp_path / "headless")), label="dog")
    (tmp_path / "empty").mkdir()
    with pytest.raises(MissingWeightsError, match="no .*safetensors file"):
        load_reward("classifier", folder=str(tmp_path / "empty"), label="dog")
    with pytest.raises(BadInputError, match="has no class 'fox'") as caught:
        load_reward("classifier", folder=folders["classifier"], label="fox")
    assert caught.value.hint == "it has 3: cat, dog, ship"
    with pytest.raises(BadInputError, match="is no ImageReward folder"):
        load_reward("imagereward", folder=folders["clip"])
    with pytest.raises(BadInputError, match="holds no preference reward"):
        load_reward("preference", folder=folders["clip"])
    for name in ("imagereward", "preference"):  # which the hub has not, under any name
        with pytest.raises(MissingWeightsError, match="^no folder nope$"):
            load_reward(name, folder="nope")
    with pytest.raises(BadInputError, match="no aesthetic head at"):
        load_reward("aesthetic", encoder=folders["clip"], folder=str(tmp_path / "absent.safetensors"))
    save_file({"a": torch.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(BadInputError, match="is no aesthetic head"):
        load_reward("aesthetic", encoder=folders["clip"], folder=str(tmp_path / "other.safetensors"))
    save_file(torch.nn.Linear(768, 1).state_dict(), tmp_path / "large.safetensors")
    with pytest.raises(BadInputError, match="takes 768 numbers, .* gives 16"):
        load_reward("aesthetic", encoder=folders["clip"], folder=str(tmp_path / "large.safetensors"))


@pytest.mark.parametrize("missing, sentence", [("preprocessor_config.json", "picture size"), ("token", "a tokenizer")])
def test_incomplete_clip_folders(tmp_path, missing, sentence):
    write_clip(tmp_path)
    for path in tmp_path.glob(f"{missing}*"):
        path.unlink()
    with pytest.raises(JdmError, match=sentence):
        load_reward("clip", folder=str(tmp_path))


def test_processor_from_another_folder(folders, tmp_path):
    CLIPModel.from_pretrained(folders["clip"]).save_pretrained(tmp_path)
    image = to_image(pictures())
    split = load_reward("pickscore", folder=str(tmp_path), processor=folders["clip"])
    assert torch.equal(split(image, WORDS), load_reward("pickscore", folder=folders["clip"])(image, WORDS))


def test_imagereward_with_weights_left_out(tmp_path):
    write_imagereward(tmp_path)
    state = ImageRewardNetwork(IMAGEREWARD).state_dict()
    del state["head.7.bias"]
    save_file({name: value.contiguous() for name, value in state.items()}, tmp_path / "model.safetensors")
    with pytest.raises(MissingWeightsError, match="1 weights are missing"):
        ImageReward(str(tmp_path))


def test_a_preference_knows_its_encoder(folders, tmp_path):
    other = write_clip(tmp_path / "other", seed=1)
    with pytest.raises(BadInputError, match="is not the one that"):
        Preference(folders["preference"], encoder=str(other))
    Head(torch.ones(3), torch.tensor(0.0), torch.ones(3)).save(tmp_path)
    with pytest.raises(BadInputError, match="does not say which encoder"):
        Preference(str(tmp_path))

    def encoder(image, texts):
        return image.mean((2, 3)) / image.mean((1, 2, 3))[:, None]

    Head(torch.tensor([1.0, 2.0, 3.0]), torch.tensor(-1.0), probe(encoder)).save(tmp_path)
    reward = Preference(str(tmp_path), encoder=encoder)
    assert reward(torch.full((1, 3, 4, 4), 0.5), ["x"]).item() == pytest.approx(5)


# Finding rewards


def test_listing_names_loads_nothing_heavy():
    code = (
        "import sys, jdmctl.rewards, jdmctl.rewards.base as base; base.reward_names();"
        "print([name for name in ('torch', 'numpy', 'transformers') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_unknown_names_and_options():
    with pytest.raises(JdmError, match="no reward is named 'pikscore'") as caught:
        load_reward("pikscore")
    assert caught.value.hint == "did you mean 'pickscore'?"
    with pytest.raises(JdmError, match="the reward 'clip' needs the option folder"):
        load_reward("clip")


def test_another_package_registers_a_reward(tmp_path, monkeypatch):
    code = "class Bare: ...\n\n\nclass Taste:\n    name = 'taste'\n    description = 'mine'\n"
    (tmp_path / "taste.py").write_text(code)
    info = tmp_path / "my_taste-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: my-taste\nVersion: 1.0\n")
    points = "taste = taste:Taste\nbroken = taste:Absent\nbare = taste:Bare\n"
    (info / "entry_points.txt").write_text(f"[jdmctl.rewards]\n{points}")
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    assert set(reward_names()) == {*REWARDS, "taste", "broken", "bare"}
    assert load_reward("taste").name == "taste"
    rows = {row["name"]: row for row in describe_rewards()}
    assert rows["taste"] == {"name": "taste", "options": "", "from": "my-taste", "description": "mine"}
    assert rows["pickscore"]["options"] == "folder, [processor]"
    assert "cannot be imported" in rows["broken"]["description"]
    assert rows["bare"]["description"] == "it does not say what it is"


def test_rewards_are_listed(monkeypatch, capsys):
    from jdmctl.cli import app as cli

    monkeypatch.setattr(sys, "argv", ["jdmctl", "rewards", "--json"])
    with pytest.raises(SystemExit):
        cli.main()
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {row["name"] for row in rows} >= REWARDS.keys()
