"""Where a comparison draws and looks: all of it on one device, from which what was drawn comes back."""

import sys
from dataclasses import dataclass, field
from types import SimpleNamespace
from unittest.mock import MagicMock

import pytest
import torch
from torch import Tensor
from transformers import BatchFeature

from jdmctl.cli import app as cli
from jdmctl.cli import compare as compare_command
from jdmctl.comparison import contest, heldout, scoring
from jdmctl.comparison.device import at_once
from jdmctl.comparison.heldout import Asked
from jdmctl.comparison.scenes import Scenes
from jdmctl.comparison.searches import MorePasses, searches
from jdmctl.comparison.sheet import sheet
from jdmctl.errors import JdmError
from jdmctl.evaluation.extractors import PretrainedFeatures
from jdmctl.recipe_files import load_recipe
from jdmctl.tinyworld.source import scenes as rendered
from jdmctl.training.device import find_device


class Elsewhere(Tensor):
    """A tensor that says it is on a GPU: it meets none of the CPU's, but numbers and indices."""

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        given = [each for value in args for each in (value if isinstance(value, list | tuple) else [value])]
        strangers = [each for each in given if type(each) is Tensor and each.dim()]
        if strangers and function is not Tensor.__getitem__:
            raise RuntimeError(f"{function.__name__} of tensors on two devices")
        return super().__torch_function__(function, types, args, kwargs or {})


@pytest.fixture
def gpu(monkeypatch):
    """`cuda`, there as far as tensors are moved to it and back."""
    usual = Tensor.to

    def move(tensor, *args, **kwargs):
        asked = [value for value in (*args, *kwargs.values()) if isinstance(value, str)]
        if asked == ["cuda"]:
            return tensor.as_subclass(Elsewhere)
        return tensor.as_subclass(Tensor) if asked == ["cpu"] else usual(tensor, *args, **kwargs)

    monkeypatch.setattr(Tensor, "to", move)
    monkeypatch.setattr(Tensor, "cpu", lambda tensor: tensor.as_subclass(Tensor))
    monkeypatch.setattr("jdmctl.comparison.device.torch.cuda.device_count", lambda: 1)


@dataclass
class Weighted:
    """A control and a reward whose weight is where it was moved to."""

    name: str = "weighted"
    headline: str = "l1"
    higher_is_better: bool = False
    weight: Tensor = field(default_factory=lambda: torch.full((1, 3, 1, 1), 0.7))

    def to(self, device):
        self.weight = self.weight.to(device)
        return self

    def condition(self, image):
        return self.weight * image

    def scores(self, image, condition):
        return {"l1": (self.condition(image) - condition).abs().mean((1, 2, 3))}

    def __call__(self, image, texts):
        assert len(texts) == len(image)
        return (self.weight * image).mean((1, 2, 3))


class Judge:
    """On the CPU, as the world's own."""

    name = "means"

    def features(self, images):
        assert type(images) is Tensor
        return images.mean((2, 3)).double()

    def prompt_scores(self, images, texts):
        return None

    def shown(self, images):
        assert type(images) is Tensor
        return {}

    def classes(self, hot):
        return {}


def family(device: str):
    """Pictures are noise, in part what the conditions ask for."""
    weight = torch.full((1, 3, 1, 1), 0.1).to(device)

    def generate(noise, prompt, controls=None):
        return weight * (noise + prompt) + sum((controls or {}).values())

    return SimpleNamespace(
        latent_shape=(3, 64, 64),
        resolution_px=64,
        encode_prompt=lambda texts: torch.arange(float(len(texts))).view(-1, 1, 1, 1).to(device),
        student=SimpleNamespace(generate=generate),
        codec=SimpleNamespace(encode=lambda image: weight * image, decode=lambda latent: latent / weight / 10),
    )


def everything(pictures, device: str):
    control, reward, one = Weighted().to(device), Weighted(), family(device)
    asked = Scenes.make("world", pictures, 12, {"weighted": control}, Judge(), pictures, pictures, device)
    asked = asked.with_base(one).with_rewards({"reward warmth": reward})
    drawings = [asked.draw(one, 3), asked.round_trip(one)]
    alone = Scenes.make("world", pictures, 12, {}, Judge(), pictures, pictures, device)
    alone = alone.with_rewards({"reward warmth": Weighted()})
    found = searches(alone, one, load_recipe("tiny/align"), MorePasses((), (3,), (2,)))
    drawings += [drawing for _, _, drawing in found]
    picture = sheet(asked, {"x": drawings[0].images})
    return asked, drawings, asked.marks(drawings[:2]), picture


def test_all_is_drawn_and_looked_at_there_and_comes_back(gpu, tmp_path):
    """The same arithmetic, so the same pictures and numbers; the rows tell which device it was."""
    pictures = rendered("test", 20, tmp_path)
    here, there = (everything(pictures, device) for device in ("cpu", "cuda"))
    for one, other in zip(here[1], there[1], strict=True):
        for name, images in vars(one).items():
            returned = getattr(other, name)
            assert images is None if returned is None else type(returned) is Tensor and torch.equal(images, returned)
    which = torch.arange(12)
    values = [{name: [mark(which) for mark in marks] for name, marks in found[2].items()} for found in (here, there)]
    assert values[0] == values[1]
    assert {"weighted l1", "reward warmth", "frechet", "frechet to base"} <= values[1].keys()
    assert here[3].tobytes() == there[3].tobytes()
    (row,) = there[0].rows("x", 1, {"weighted l1": there[2]["weighted l1"]}, [3, 4], "")
    assert row.setup == there[0].setup == here[0].setup + "; on cuda"


def test_tensors_that_stay_behind_are_told(gpu):
    """The stand-in for a GPU is one: what is forgotten on the CPU fails there."""
    with pytest.raises(RuntimeError, match="two devices"):
        torch.ones(2).to("cuda") + torch.ones(2)


def test_batches_fit():
    assert [at_once(50, "cpu", size, size) for size in (64, 1024)] == [50, 50]
    assert [at_once(50, "cuda", size, size) for size in (64, 128, 512, 1024, 2048)] == [50, 32, 2, 1, 1]
    assert at_once(50, "cuda:1", 512, 256) == 4


def test_a_device_is_found_or_told(gpu):
    assert [find_device(name) for name in ("", "cpu", "cuda", "cuda:0")] == ["cuda", "cpu", "cuda", "cuda:0"]
    for name in ("cuda:1", "gpu", "cuda:", "cuda:-1", "cpu:0"):
        with pytest.raises(JdmError, match=f"device {name} is not there"):
            find_device(name)


def test_feature_networks_are_shown_pictures_there(gpu):
    def embed(pixel_values=None, input_ids=None):
        given = input_ids if pixel_values is None else pixel_values
        assert isinstance(given, Elsewhere)
        return given.float().flatten(1)[:, :4]

    network = object.__new__(PretrainedFeatures)
    config = SimpleNamespace(model_type="clip", text_config=SimpleNamespace(max_position_embeddings=4))
    network._network = SimpleNamespace(
        device="cuda", get_image_features=embed, get_text_features=embed, config=config
    )  # fmt: skip
    network._processor = lambda images, **_: BatchFeature({"pixel_values": torch.stack(images)})
    network._tokenizer = lambda texts, **_: BatchFeature({"input_ids": torch.ones(len(texts), 4)})
    images = torch.rand(2, 3, 2, 2)
    assert type(network.features(images)) is type(network.prompt_scores(images, ["a", "b"])) is Tensor


def recorded(monkeypatch, module, *names: str) -> list[tuple[str, str]]:
    """Which of a module's builders were given which device, once they are called."""
    built: list[tuple[str, str]] = []
    for name in names:

        def build(*arguments, name=name):
            built.append((name, arguments[-1]))
            return MagicMock(resolution_px=64)

        monkeypatch.setattr(module, name, build)
    return built


def opened(monkeypatch) -> list[str]:
    """On which device held-out pictures are looked at; the scenes they make are on it too."""
    devices: list[str] = []

    def of_world(split, num, device):
        devices.append(device)
        scenes = MagicMock(device=device, controls={}, num=num)
        scenes.with_base.return_value = scenes.with_rewards.return_value = scenes
        scenes.rows.return_value = []
        return SimpleNamespace(scenes=lambda controls: scenes)

    monkeypatch.setattr(heldout.HeldOut, "of_world", of_world)
    return devices


def test_runs_and_what_they_have_to_beat_are_built_there(monkeypatch):
    devices = opened(monkeypatch)
    monkeypatch.setattr(contest, "replace", lambda scenes, **_: scenes)
    built = recorded(monkeypatch, contest, "build_controls", "build_family", "build_trained")
    recipe = load_recipe("tiny/canny")
    entrant = contest.Entrant(recipe, ("a", "b"), (0, 1), ({}, {}), (recipe, recipe))
    contest.score_runs(entrant, Asked(device="cuda"), True, "", lambda text: None)
    assert {name for name, _ in built} == {"build_controls", "build_family", "build_trained"}
    assert {device for _, device in built} == set(devices) == {"cuda"}


def test_cells_are_built_there(monkeypatch):
    devices = opened(monkeypatch)
    built = recorded(monkeypatch, scoring, "build_controls", "build_family", "build_trained")
    plain = ["method=dsm", "controls.canny.init=student", "training.dsm_warmup_steps=0"]
    dsm = MagicMock(label="dsm", called="ControlNet plugged in", is_done=True, recipe=load_recipe("tiny/canny", plain))
    dsm.branches.return_value, dsm.history.return_value.seconds = {"canny": "folder"}, 60.0
    found = scoring.score([dsm], Asked(device="cuda"), MorePasses((2,)), "", lambda text: None)
    assert [one.method for one in found.drawn][3:] == ["ControlNet plugged in", "ControlNet 2 steps"]
    assert [name for name, _ in built].count("build_family") == 3
    assert {device for _, device in built} == set(devices) == {"cuda"}


@pytest.mark.parametrize(("words", "device"), [([], "cpu"), (["--device", "cuda"], "cuda")])
def test_the_option_reaches_what_is_asked(gpu, monkeypatch, tmp_path, words, device):
    """Of both commands; the command that a row tells names it."""
    (tmp_path / "model_index.json").write_text("{}")
    asked = []
    monkeypatch.setattr(contest, "score_pipeline", lambda folder, *given: asked.append((given[0], given[2])) or [])
    monkeypatch.setattr(compare_command, "_run", lambda *given: asked.append((given[3], given[2])))
    monkeypatch.setattr(compare_command, "show", lambda *given: None)
    for command in (["eval", str(tmp_path)], ["compare", "tiny/canny", "-o", str(tmp_path / "out")]):
        monkeypatch.setattr(sys, "argv", ["jdmctl", *command, *words])
        with pytest.raises(SystemExit) as left:
            cli.app()
        assert not left.value.code
    (scored, command), (compared, trained) = asked
    assert scored.device == compared.device == device
    assert command.endswith(" --device cuda") == bool(words) and trained == "".join(words[1:])
