"""examples/fdistill: its runs are recipes, and rates are chosen on val."""

import sys
from pathlib import Path

import pytest

from jdmctl.evaluation.results import Row
from jdmctl.recipe_files import load_recipe


@pytest.fixture
def study(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "examples" / "fdistill"))
    import study

    yield study
    monkeypatch.delitem(sys.modules, "study")  # examples/taste has one too


def test_every_arm_is_a_recipe_that_differs_in_its_objective_and_rate_alone(study):
    def recipe_of(words):
        changes = [change for flag, change in zip(words, words[1:], strict=False) if flag == "--set"]
        return load_recipe(words[2], changes)

    recipes = [recipe_of(study.arm_words(Path("runs"), arm, rate, 0)) for arm in study.ARMS for rate in study.RATES]
    told = {(r.objective.model_dump_json(), r.training.learning_rate) for r in recipes}
    assert len(told) == len(recipes) == len(study.ARMS) * len(study.RATES)
    same = {r.model_copy(update={"objective": None, "training": None}).model_dump_json() for r in recipes}
    assert len(same) == 1 and recipes[0].model.student == "runs/regression/student"
    start = recipe_of(study.start_words(Path("runs")))
    assert start.makes_student and start.training.regression_steps and start.training.num_steps == 1


def test_the_best_rate_is_that_of_the_smallest_distance(study, monkeypatch):
    monkeypatch.setattr(study, "world_name", lambda: "tiny")

    def row(rate, value, world="tiny"):
        return Row(world, "", f"js, rate {rate:g}", 1, "frechet", value, value, value, [0], 600, "jdmctl")

    slow, fast = study.RATES
    assert study.best_rate("js", [row(slow, 7.0), row(fast, 6.0), row(slow, 1.0, "emoji")]) == fast
