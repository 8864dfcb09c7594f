"""Options of controls and rewards: names and values are checked where a recipe is, before anything is made of them."""

from types import SimpleNamespace
from typing import Any

import pytest

from jdmctl.build_check import check_options
from jdmctl.build_plan import present_controls
from jdmctl.build_run import build_run
from jdmctl.controls import base
from jdmctl.controls.base import load_control
from jdmctl.errors import BadInputError, JdmError, MissingWeightsError, RecipeError
from jdmctl.recipe_files import load_recipe
from jdmctl.registry import Registry

REWARD = "rewards=[{name: clip, options: %s}]"


class Odd:
    """Takes what it does not say, and finds out itself."""

    def __init__(self, sides=3):
        self.sides = int(sides)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("controls.canny.options.tolrance_px=1", "no option 'tolrance_px'; did you mean 'tolerance_px'"),
        ("controls.canny.options.low=abc", "low of the control 'canny' must be a whole number, got 'abc'"),
        ("controls.canny.options.low=1.5", "must be a whole number, got 1.5; give a whole number, such as 100"),
        ("controls.canny.options.low=true", "must be a whole number, got True"),
        ("controls.canny.options.low=null", "must be a whole number, got None"),
        (REWARD % "{foldr: x}", "no option 'foldr'; did you mean 'folder'"),
        (REWARD % "{folder: 3}", "folder of the reward 'clip' must be text, got 3"),
    ],
)
def test_a_recipe_is_not_valid_with_options_that_nothing_takes(override, message):
    with pytest.raises(RecipeError, match="1 problem") as refused:
        load_recipe("tiny/canny", [override])
    assert message in str(refused.value)


def test_what_is_null_or_of_either_kind_passes():
    """depth's scorer is text or null, a classifier's label text or a whole number."""
    load_recipe("tiny/depth", ["controls.depth.options.scorer=null"])
    for given in ("folder: x, label: cat", "folder: x, label: 3"):
        load_recipe("tiny/canny", [f"rewards=[{{name: classifier, options: {{{given}}}}}]"])


def test_what_a_class_does_not_say_of_its_options_is_told_when_it_is_made():
    registry = Registry("control", "jdmctl.none", {"odd": f"{__name__}:Odd"})
    assert registry.make("odd", {"sides": "4"}).sides == 4
    with pytest.raises(JdmError, match="'odd' cannot be made with sides: 'x': invalid literal"):
        registry.make("odd", {"sides": "x"})


def test_values_are_checked_without_a_recipe_too():
    with pytest.raises(JdmError, match="must be a whole number"):
        load_control("canny", low="abc")


@pytest.mark.parametrize("section", ["rewards", "heldout_rewards"])
@pytest.mark.parametrize("label", ["", "mine"])
def test_the_hint_names_the_place_that_lacks_an_option(section, label):
    """Who follows it has a recipe that passes."""
    changes = ["rewards=[{name: warmth}]", f"{section}=[{{name: clip, label: '{label}'}}]", "student.trainable=full"]
    accelerator: Any = SimpleNamespace(device="cpu", num_processes=1)
    with pytest.raises(JdmError, match="'clip' needs the option folder") as refused:
        build_run(load_recipe("tiny/canny", changes), accelerator)
    place = refused.value.hint.rpartition("--set ")[2].removesuffix("=...")
    assert place == f"{section}.{label or 'clip'}.options.folder"
    check_options(load_recipe("tiny/canny", [*changes, f"{place}=x"]))


def test_a_control_that_says_little_of_itself_is_listed(monkeypatch):
    monkeypatch.setattr(base, "_REGISTRY", Registry("control", "jdmctl.none", {"odd": f"{__name__}:Odd"}))
    (row,) = base.describe_controls()
    assert (row["name"], row["description"], row["headline"]) == ("odd", "it does not say what it is", "")


def test_the_plan_leaves_out_only_what_is_not_there():
    missing = load_recipe("tiny/depth", ["controls.depth.options.network=./nowhere"])
    found, (note,) = present_controls(missing)
    assert not found and "depth is not counted" in note
    with pytest.raises(BadInputError, match="low is 300") as refused:
        present_controls(load_recipe("tiny/canny", ["controls.canny.options.low=300"]))
    assert not isinstance(refused.value, MissingWeightsError)
    with pytest.raises(JdmError, match="needs the option network"):
        present_controls(load_recipe("tiny/canny", ["controls=[{name: depth}]", "training.dsm_warmup_steps=0"]))
