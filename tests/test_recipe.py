"""Recipes: every shipped one is valid, every problem is told at once, and YAML's traps are closed."""

import copy
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from jdmctl.build_run import build_run
from jdmctl.cli.studio import model_of
from jdmctl.cli.training import plan
from jdmctl.errors import RecipeError
from jdmctl.families import identify as identifying
from jdmctl.families.students import students
from jdmctl.recipe import Recipe
from jdmctl.recipe_files import (
    differences,
    find_recipe,
    load_recipe,
    packaged_folder,
    packaged_recipes,
    parse_recipe,
    title,
    to_yaml,
)
from jdmctl.training.plan import Stage

SMALLEST = {
    "name": "x",
    "model": {"teacher": "a", "student": "b"},
    "controls": [{"name": "canny"}],
    "data": {"source": "tiny"},
}


def recipe_text(**changes) -> str:
    return yaml.safe_dump(SMALLEST | changes)


def problems_of(tmp_path, text: str, overrides=()) -> str:
    file = tmp_path / "bad.yaml"
    file.write_text(text)
    with pytest.raises(RecipeError) as caught:
        load_recipe(file, overrides)
    assert caught.value.hint
    return str(caught.value)


def test_every_packaged_recipe_is_valid_and_tells_what_it_is():
    recipes = packaged_recipes()
    assert {
        f"tiny/{n}"
        for n in "canny depth lowres softedge canny_prompts_only canny_depth align canny_align distill".split()
    } <= set(recipes)
    for name, path in recipes.items():
        recipe = load_recipe(name)
        assert recipe.name == name.replace("/", "-").replace("_", "-")
        assert title(path)
        assert f"jdmctl {recipe.command} {name}" in path.read_text()


def test_all_yaml_files_of_the_folder_are_found():
    assert len(packaged_recipes()) == sum(1 for _ in packaged_folder().rglob("*.yaml")) > 0


def test_defaults_fill_a_small_recipe_and_the_resolved_one_reads_back(tmp_path):
    recipe = parse_recipe(dict(SMALLEST))
    file = tmp_path / "resolved.yaml"
    file.write_text(to_yaml(recipe))
    assert load_recipe(file) == recipe
    assert recipe.fake_score.updates and recipe.training.num_steps


def test_all_problems_come_in_one_message(tmp_path):
    message = problems_of(
        tmp_path,
        """
name: x
model: {teacher: tiny, family: stable_difusion}
controls: [{name: cany, ratio: -1}]
objective: {divergance: kl, weight: normalised}
training: {num_steps: many, rank: 4, precision: no}
data: {source: tiny}
""",
    )
    assert "bad.yaml has 9 problems:" in message
    for line in (
        "model.student: required, not given",
        "model.family: no family named 'stable_difusion', did you mean 'stable_diffusion'?",
        "controls.0.name: no control named 'cany', did you mean 'canny'?",
        "controls.0.ratio: input should be greater than or equal to 0, got -1",
        "objective.divergance: unknown key",
        "objective.weight: must be normalized or kl, got 'normalised', did you mean 'normalized'?",
        "training.num_steps: input should be a valid integer, unable to parse string as an integer, got 'many'",
        "training.rank: unknown key, did you mean 'student.rank'?",
        "training.precision: must be fp32 or bf16, got 'no'",
    ):
        assert line in message


CRITIC = {"objective": {"form": "conditional", "divergence": "js"}}
LEARNED = {"ratio": "learned", "divergence": "js"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"controls": []}, "controls: name at least one"),
        ({"controls": [{"name": "canny"}] * 2}, "the same control is named twice"),
        ({"training": {"batch_size": 10, "gradient_accumulation_steps": 3}}, "10 is not a multiple of"),
        (
            {**CRITIC, "training": {"batch_size": 6, "gradient_accumulation_steps": 6}},
            "set gradient_accumulation_steps to 3",
        ),
        ({**CRITIC, "training": {"batch_size": 1}}, "leaves it none: set training.batch_size to 2 or more"),
        ({"controls": [{"name": "canny", "init": "dsm"}]}, "init of canny is dsm, and the steps are 0: --set"),
        ({"training": {"dsm_warmup_steps": 5}}, "is student, and the steps are 5: --set training.dsm_warmup_steps=0"),
        ({"seed": 2**32}, "seed: input should be less than 4294967296"),
        ({"data": {"source": "images"}}, "data: source 'images' needs data.path"),
        ({"objective": {"ratio": "learned"}}, "for a divergence that needs a ratio"),
        (
            {"objective": LEARNED, "controls": [], "student": {"trainable": "lora"}},
            "with their conditions: name a control",
        ),
        ({"objective": LEARNED, "rewards": [{"name": "warmth"}]}, "no true samples of a reward"),
        ({"objective": LEARNED, "critic": {"positives": "teacher"}}, "critic.positives: pictures"),
        ({"name": "a/b"}, "name: string should match pattern"),
        ({"name": True}, "got true (put it in quotes if text is meant)"),
    ],
)
def test_what_does_not_fit_together(tmp_path, changes, message):
    assert message in problems_of(tmp_path, recipe_text(**changes))


def test_all_that_contradicts_itself_is_told_at_once(tmp_path):
    """Of an option that only follows from another, and of two cures for one fault, one is told."""
    changes = {
        "method": "dsm",
        "controls": [{"name": "canny", "init": "dsm"}] * 2,
        "training": {"lr_warmup_steps": 9, "num_steps": 9, "batch_size": 10, "gradient_accumulation_steps": 3},
        "memory": {"offload": True},
        "objective": {"divergence": "sim", "gan_weight": 0.1},
    }
    message = problems_of(tmp_path, recipe_text(**changes))
    assert message.splitlines()[0].endswith("bad.yaml has 7 problems:")
    for line in (
        "method: dsm matches no distributions: leave out divergence and gan_weight",
        "a score divergence (sim, sid) and gan_weight do not go together",
        "controls: the same control is named twice",
        "training.batch_size 10 is not a multiple of gradient_accumulation_steps 3",
        "training.lr_warmup_steps must be less than num_steps",
        "method: dsm trains the branch by it throughout: leave out init: dsm",
        "memory.offload needs memory.gradient_checkpointing: true",
    ):
        assert f"\n  {line}" in message
    assert "go together: init" not in message


def test_ranges_of_noise_levels_that_are_empty_are_refused(tmp_path):
    objective = {
        "min_time": 0.5,
        "max_time": 0.5,
        "guidance_min_time": 0.9,
        "guidance_max_time": 0.1,
        "gan_max_time": 0.7,
    }
    message = problems_of(tmp_path, recipe_text(objective=objective))
    assert "bad.yaml has 3 problems:" in message
    for line in (
        "objective: min_time 0.5 is not below max_time 0.5",
        "objective: guidance_min_time 0.9 is not below guidance_max_time 0.1",
        "objective: gan_max_time 0.7 is above max_time 0.5",
    ):
        assert line in message


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.learning_rate=.inf", "training.learning_rate: input should be a finite number, got inf"),
        ("controls.canny.ratio=.inf", "controls.0.ratio: input should be a finite number, got inf"),
        ("training.num_steps=true", "training.num_steps: must be a number, got true"),
        ("seed=false", "seed: must be a number, got false"),
        ("training.ema_decay=true", "training.ema_decay: must be a number, got true"),
        ("training.betas=[0.9, 1]", "training.betas.1: input should be less than 1, got 1"),
    ],
)
def test_what_is_no_number_to_train_with_is_refused(override, message):
    with pytest.raises(RecipeError) as refused:
        parse_recipe(copy.deepcopy(SMALLEST), [override])
    assert "1 problem:" in str(refused.value) and message in str(refused.value)


def test_a_longest_warm_up_that_is_shorter_than_the_shortest_is_what_counts():
    """Whoever sets it alone need not set the other, which is 60."""
    recipe = parse_recipe(copy.deepcopy(SMALLEST), ["fake_score.warmup_max_steps=5"])
    assert recipe.fake_score.warmup_min_steps > 5
    limits = {"num_steps": recipe.fake_score.warmup_max_steps, "min_steps": recipe.fake_score.warmup_min_steps}
    assert Stage("warm-up", None, prefix="w", until_level=True, **limits).is_over(5, [])


@pytest.mark.parametrize("name", ["SID", " sim "])
def test_a_score_divergence_is_found_however_it_is_typed(name):
    recipe = parse_recipe(copy.deepcopy(SMALLEST) | {"objective": {"divergence": name}})
    assert recipe.objective.divergence == name.strip().lower()


def test_a_divergence_that_there_is_not_is_told_those_of_scores_too():
    with pytest.raises(RecipeError, match="there are reverse-kl.*, sim, sid"):
        parse_recipe(copy.deepcopy(SMALLEST), ["objective.divergence=wasserstein-1e9"])


def test_processes_that_leave_a_critic_one_picture_each_are_refused():
    """It would show each picture with its neighbour's condition."""
    accelerator = SimpleNamespace(device="cpu", num_processes=3)
    changes = ["training.batch_size=6", "training.gradient_accumulation_steps=2"]
    recipe = parse_recipe(SMALLEST | CRITIC, changes, "test")
    with pytest.raises(RecipeError, match="6 among 3 processes in 2 pieces each leaves it none"):
        build_run(recipe, accelerator)


def test_numbers_with_an_exponent_are_numbers(tmp_path):
    """Plain PyYAML reads 1e-5 as a string."""
    file = tmp_path / "x.yaml"
    file.write_text(recipe_text() + "training: {learning_rate: 1e-5, num_steps: 2e3}\n")
    training = load_recipe(file).training
    assert training.learning_rate == 1e-5
    assert training.num_steps == 2000


def test_no_and_times_are_text(tmp_path):
    """Plain PyYAML reads no as false and 1:30 as 90."""
    file = tmp_path / "x.yaml"
    for word in ("no", "yes", "off"):
        file.write_text(recipe_text().replace("name: x", f"name: {word}"))
        assert load_recipe(file).name == word
    file.write_text(recipe_text(data={}).replace("data: {}", "data: {source: images, path: 1:30}"))
    assert load_recipe(file).data.path == "1:30"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: a\nname: b\n", "line 2: key 'name' is given twice"),
        ("training: {seed: 1, seed: 2}", "line 1: key 'seed' is given twice"),
        ("name: [1, 2", "line 1: "),
        ("- a\n- b\n", "expected `key: value` lines, found ['a', 'b']"),
        ("", "expected `key: value` lines, found None"),
        ("1: a\n", "line 1: key 1 is not text"),
        ("name: x\nseed: !!int abc\n", "line 2: 'abc' is not what its tag !!int says"),
        ("seed: !!float x\n", "line 1: 'x' is not what its tag !!float says"),
        ("seed: !!int ''\n", "line 1: '' is not what its tag !!int says"),
        ("seed: !!bool maybe\n", "line 1: 'maybe' is not what its tag !!bool says"),
        ("name: !!timestamp x\n", "line 1: 'x' is not what its tag !!timestamp says"),
        ("name: !!python/object/apply:os.system ['true']\n", "could not determine a constructor"),
    ],
)
def test_yaml_that_is_no_recipe(tmp_path, text, message):
    assert message in problems_of(tmp_path, text)


@pytest.mark.parametrize(
    "text", ["08", "1e5", "12e03", "0e1", ".5e3", "1.", "+1", "no", "1:30", "null", "~", ".inf", "true", "2020-01-01"]
)
def test_text_that_looks_like_another_value_reads_back_as_text(tmp_path, text):
    """PyYAML writes 1e5 without quotes, since for its own loader that is text; here it is a number."""
    control = {"name": "depth", "options": {"network": text}, "init": text}
    recipe = parse_recipe(SMALLEST | {"data": {"source": "images", "path": text}, "controls": [control]})
    file = tmp_path / "resolved.yaml"
    file.write_text(to_yaml(recipe))
    assert load_recipe(file) == recipe and recipe.data.path == text


def test_a_number_without_end_reads_back(tmp_path):
    recipe = parse_recipe(dict(SMALLEST), ["training.max_grad_norm=inf"])
    file = tmp_path / "resolved.yaml"
    file.write_text(to_yaml(recipe))
    assert load_recipe(file) == recipe and recipe.training.max_grad_norm == float("inf")


def test_what_differs_between_recipes_is_named_as_set_names_it():
    changes = ["training.num_steps=7", "controls.canny.ratio=2", "student.trainable=lora", "objective.weight=kl"]
    one, other = parse_recipe(dict(SMALLEST)), parse_recipe(copy.deepcopy(SMALLEST), changes)
    assert differences(one, one) == []
    assert differences(one, other) == [
        'student.trainable: "frozen" and "lora"', "controls.canny.ratio: 1.0 and 2.0",
        'objective.weight: "normalized" and "kl"', "training.num_steps: 1000 and 7",
    ]  # fmt: skip
    assert "controls.depth.ratio: null and 1.0" in differences(
        one, parse_recipe(SMALLEST | {"controls": [{"name": "canny"}, {"name": "depth"}]})
    )


def test_a_binary_file_is_no_recipe(tmp_path):
    file = tmp_path / "x.yaml"
    file.write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(RecipeError, match="cannot be read"):
        load_recipe(file)


def test_an_unknown_name_gets_a_suggestion():
    with pytest.raises(RecipeError, match="no recipe named tiny/cany.* did you mean 'tiny/canny'") as caught:
        find_recipe("tiny/cany")
    assert "recipes ls" in caught.value.hint
    with pytest.raises(RecipeError) as caught:  # which is near to none
        find_recipe("nope.yaml")
    assert "did you mean" not in str(caught.value)


@pytest.mark.parametrize(
    ("command", "changes", "hint"),
    [
        ("add-control", {"controls": [{"name": "canny"}]}, "--teacher, --student, --control and --data"),
        ("align", {"rewards": [{"name": "warmth"}]}, "--teacher, --student, --reward and --data"),
        ("distill", {"model.student": "b"}, "--teacher and --data"),
    ],
)
def test_what_options_lack_is_asked_for_as_options(command, changes, hint):
    with pytest.raises(RecipeError, match="required, not given") as caught:
        plan("", changes, [], None, False, command=command)
    assert hint in caught.value.hint


def test_a_mistake_points_to_a_recipe_of_its_own_command():
    for name in ("tiny/align", "tiny/distill", "tiny/canny"):
        with pytest.raises(RecipeError) as caught:
            load_recipe(name, ["seed=x"])
        assert f"recipes show {name} --resolved" in caught.value.hint


def test_overrides():
    recipe = parse_recipe(
        {**SMALLEST, "controls": [{"name": "canny"}, {"name": "depth"}]},
        ["training.num_steps=20", "controls.depth.ratio=2.5", "controls.0.options={low: 50}", "seed=3"],
    )
    assert recipe.training.num_steps == 20
    assert [control.ratio for control in recipe.controls] == [1.0, 2.5]
    assert recipe.controls[0].options == {"low": 50}
    assert recipe.seed == 3


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.num_steps", "--set training.num_steps: expected key=value"),
        ("training.num_stps=1", "training.num_stps: unknown key, did you mean 'num_steps'?"),
        ("controls.depth.ratio=1", "controls.depth.ratio cannot be set: there is no controls.depth"),
        ("name.x=1", "name.x cannot be set: name is a single value, 'x'"),
        ("data.source.a.b=3", "data.source is a single value, 'tiny'"),
        ("controls.canny=3", "controls.canny cannot be set: controls is a list (canny)"),
        ("seed={a: 1", "--set seed={a: 1"),
    ],
)
def test_overrides_that_lead_nowhere(tmp_path, override, message):
    assert message in problems_of(tmp_path, recipe_text(), [override])


def test_a_run_folder_is_a_recipe(tmp_path):
    (tmp_path / "recipe.yaml").write_text(to_yaml(parse_recipe(dict(SMALLEST))))
    assert load_recipe(tmp_path).name == "x"


def test_recipes_are_found_inside_an_installed_package(tmp_path, monkeypatch):
    """A wheel has them in jdmctl/recipes, a checkout beside jdmctl."""
    package = tmp_path / "site-packages" / "jdmctl"
    shutil.copytree(packaged_folder(), package / "recipes")
    monkeypatch.setattr("jdmctl.recipe_files.files", lambda name: package)
    assert packaged_folder() == package / "recipes"
    assert "tiny/canny" in packaged_recipes()


def test_recipes_are_frozen():
    recipe = parse_recipe(dict(SMALLEST))
    with pytest.raises(ValueError, match="frozen"):
        recipe.seed = 1
    assert isinstance(recipe, Recipe)


LIGHTNING = "ByteDance/SDXL-Lightning/sdxl_lightning_1step_unet_x0.safetensors"
HYPER = "ByteDance/Hyper-SD/Hyper-SDXL-1step-Unet.safetensors"


@pytest.mark.parametrize(
    ("source", "student", "overrides", "time", "timestep", "prediction"),
    [
        ("", LIGHTNING, (), 1.0, None, "sample"),
        ("", HYPER, (), 1.0, 800, "epsilon"),
        ("", HYPER, ("model.student_time=0.5",), 0.5, None, "epsilon"),
        ("sdxl_dmd2/canny", LIGHTNING, (), 1.0, None, "sample"),
        ("sdxl_dmd2/canny", "mine.safetensors", (), 1.0, 399, None),
    ],
)
def test_a_known_student_that_options_name_is_called_as_it_wants(
    source, student, overrides, time, timestep, prediction
):
    """Also in place of another one's call in a recipe; --set counts for more, and an unknown one's is the recipe's."""
    changes = {"model.teacher": "stabilityai/stable-diffusion-xl-base-1.0", "model.student": student}
    if not source:
        changes |= {"controls": [{"name": "canny"}], "data.source": "prompts", "data.path": "prompts.txt"}
    model = plan(source, changes, overrides, None, False)[0].model
    assert model.family == "sdxl"
    assert (model.student_time, model.student_timestep, model.student_prediction) == (time, timestep, prediction)


def test_names_of_the_world_are_resolved_before_models_are_looked_up(in_tiny_world, tiny_world, monkeypatch):
    """tiny/student_lora is nothing on the hub, and a form's family is that of its folder."""
    looked: list[str] = []

    def identify(source):
        looked.append(str(source))
        return find_family(source)

    find_family = identifying.identify
    monkeypatch.setattr(identifying, "identify", identify)
    world = Path(shutil.copytree(tiny_world, "world"))
    monkeypatch.setenv("JDMCTL_WORLD", str(world.resolve()))
    teacher = world / "forms" / "sdxl" / "teacher"
    teacher.mkdir(parents=True)
    (teacher / "model_index.json").write_text('{"_class_name": "StableDiffusionXLPipeline"}')
    changes = {
        "model.teacher": "tiny/forms/sdxl/teacher", "model.student": "tiny/student_lora",
        "controls": [{"name": "canny"}], "data.source": "tiny",
    }  # fmt: skip
    model = plan("", changes, (), None, False)[0].model
    assert (model.family, model.student) == ("sdxl", "tiny/student_lora")
    assert model_of("tiny/student").family == "stable_diffusion"
    assert len(looked) == 4 and all(source.startswith(str(world.resolve())) for source in looked)


def test_a_known_student_is_called_at_the_time_that_is_said(monkeypatch):
    """As the command in a picture says it: 399 of 999, where the known timestep is 399."""
    monkeypatch.setattr(identifying, "known_student", lambda _: students()["dmd2-sdxl-1step"])
    monkeypatch.setattr(identifying, "family_of", lambda _: "sdxl")
    assert model_of("unet.safetensors", "teacher").student_timestep == 399
    model = model_of("unet.safetensors", "teacher", student_time=0.4)
    assert (model.student_time, model.student_timestep, model.student_prediction) == (0.4, None, "epsilon")
