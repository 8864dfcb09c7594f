"""The world's other forms: miniatures are built by the command's own code, and a control is added to each."""

import json

import pytest
import torch

from jdmctl.build import resolve
from jdmctl.build_run import build_run
from jdmctl.errors import JdmError, MissingWeightsError
from jdmctl.families.names import family_class
from jdmctl.recipe_files import load_recipe
from jdmctl.tinyworld import world
from jdmctl.tinyworld.forms.make import build_form
from jdmctl.tinyworld.forms.models import FORMS, t5_tokenizer
from jdmctl.tinyworld.order import Order
from jdmctl.training.run import make_accelerator, train

CALL = {"sdxl": {}, "pixart": {"use_resolution_binning": False}, "sd3": {"max_sequence_length": 32}}
FEW = [
    "training.num_steps=2", "training.dsm_warmup_steps=2", "training.batch_size=2", "data.num_samples=12",
    "data.num_validation_samples=2", "fake_score.warmup_min_steps=1", "fake_score.warmup_max_steps=2",
]  # fmt: skip


@pytest.fixture
def few_scenes(tmp_path, monkeypatch):
    """The shipped world with few pictures; forms and everything else that is kept go to a folder of its own."""
    monkeypatch.delenv("JDMCTL_WORLD", raising=False)
    monkeypatch.setenv("JDMCTL_CACHE", str(tmp_path / "cache"))
    for split, number in {"train": 12_000, "reference": 40, "val": 8}.items():
        monkeypatch.setitem(world.NUM_PICTURES, split, number)
    world.samples.cache_clear()
    yield tmp_path
    world.samples.cache_clear()


@pytest.mark.slow
@pytest.mark.parametrize("name", world.FORM_NAMES)
def test_a_form_is_an_ordinary_pipeline_and_learns_a_control(name, few_scenes):
    folder, numbers = build_form(name, budget=0.001, say=lambda text: None)
    kind = family_class(FORMS[name].family)
    for role in ("teacher", "student"):
        pipeline = kind.pipeline_class.from_pretrained(folder / role)
        drawn = pipeline("a red cone", num_inference_steps=2, output_type="pt", **CALL[name]).images
        assert drawn.shape == (1, 3, 64, 64)
        assert torch.isfinite(drawn).all()
    assert set(numbers) == set(json.loads((folder / "report.json").read_text()))
    assert {"teacher frechet", "student color"} <= set(numbers)
    assert not list(folder.parent.glob("*-unfinished"))

    said = []
    assert build_form(name, budget=0.001, say=said.append) == (folder, numbers)
    assert not said

    recipe, accelerator = load_recipe(f"tiny/canny_{name}", FEW), make_accelerator("cpu", "bf16")
    run = few_scenes / "run"
    train(build_run(recipe, accelerator), run, accelerator, lambda record: None)
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    assert any("canny_norm" in line for line in lines)
    kind.load(resolve(recipe.model.teacher, ""), resolve(recipe.model.student, "")).add_control_branch(
        "canny", run / "controlnet"
    )
    assert world.world_name(recipe.model.teacher) == f"{world.world_name()} {name}"  # what rows of results call it


def test_a_form_is_not_answered_with_another_one(few_scenes):
    """One that was built before forms said what they were asked for is taken as it is."""
    folder = world.form_folder("sdxl")
    for role in ("teacher", "student"):
        (folder / role).mkdir(parents=True)
    (folder / "report.json").write_text('{"teacher frechet": 3.0}')
    assert build_form("sdxl", budget=0.5) == (folder, {"teacher frechet": 3.0})
    Order("", 0.5, 0).keep(folder)
    assert build_form("sdxl", budget=0.5) == (folder, {"teacher frechet": 3.0})
    with pytest.raises(JdmError, match="sdxl holds another build: budget 0.5, not 1.0; seed 0, not 3$"):
        build_form("sdxl", seed=3)


def test_a_form_that_is_not_built_says_how_to_build_it(few_scenes):
    with pytest.raises(MissingWeightsError, match="form sdxl is not built yet") as caught:
        resolve("tiny/forms/sdxl/teacher", "teacher")
    assert caught.value.hint == "build it: jdmctl world form sdxl"
    with pytest.raises(MissingWeightsError, match="no form dalle"):
        resolve("tiny/forms/dalle/teacher", "teacher")


def test_words_of_the_captions_are_single_tokens_of_the_t5(tmp_path):
    """Three words and the end; an unknown word in its six letters, behind the mark of a word's beginning."""
    t5_tokenizer(["a red cone"]).save_pretrained(tmp_path)
    from transformers import T5Tokenizer

    tokenizer = T5Tokenizer.from_pretrained(tmp_path)
    assert tokenizer.model_max_length == 32
    assert tokenizer.tokenize("a red cone") == ["▁a", "▁red", "▁cone"]
    assert len(tokenizer("a red cone").input_ids) == 4
    assert tokenizer.tokenize("violet") == ["▁", *"violet"]
