"""`jdmctl eval`: what it measures, on sets whose values are known, and from the command."""

import json
import re
import shlex
import shutil
import sys
from pathlib import Path
from unittest.mock import MagicMock

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw, ImageFilter

from jdmctl.cli import app as cli
from jdmctl.cli.evaluate import keep
from jdmctl.comparison import contest, heldout
from jdmctl.comparison.heldout import captioned, names, partners
from jdmctl.comparison.scenes import Scenes
from jdmctl.controls.base import load_control
from jdmctl.errors import BadInputError, JdmError
from jdmctl.evaluation.appearance import mean_color, mean_distance, sharpness
from jdmctl.evaluation.manifold import among, recall_statistic
from jdmctl.evaluation.results import Row, read, setup, write
from jdmctl.families.stable_diffusion import StableDiffusion
from jdmctl.recipe_files import load_recipe, to_yaml
from jdmctl.sampling import save_picture
from jdmctl.tinyworld.source import scenes
from jdmctl.tinyworld.world import SHIPPED


def grid_of(n: int, shift: float = 0.0) -> torch.Tensor:
    """n x n points a unit apart."""
    axis = torch.arange(n, dtype=torch.float64)
    return torch.stack(torch.meshgrid(axis + shift, axis, indexing="ij"), -1).flatten(0, 1)


def precision_and_recall(drawn: torch.Tensor, true: torch.Tensor) -> tuple[float, float]:
    return among(drawn, true).double().mean().item(), recall_statistic(drawn, true)(torch.arange(len(drawn)))


def test_precision_and_recall_of_known_sets():
    """On a grid a unit apart the third neighbour is at most 2 away (at a corner: 1, 1, sqrt 2).

    Equal sets cover each other. Half of the modes: all drawn points lie among the true ones, and of the true ones only
    those within reach of the drawn. Far away: neither.
    """
    whole = grid_of(6)
    two_modes = torch.cat([whole, whole + 1000])
    assert precision_and_recall(whole, whole) == (1, 1)
    assert precision_and_recall(whole, two_modes) == (1, 0.5)
    assert precision_and_recall(two_modes, whole) == (0.5, 1)
    assert precision_and_recall(whole, whole + 1000) == (0, 0)
    for measure, sets in ((among, (whole, whole[:3])), (recall_statistic, (whole[:3], whole))):
        with pytest.raises(ValueError, match="3 points has no 3 neighbours"):
            measure(*sets)


def test_recall_of_chosen_points_is_that_of_their_set():
    """Points of which none is chosen twice; one that is four times its own neighbour reaches no other."""
    drawn, true = torch.randn(2, 30, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    chosen = torch.randperm(30, generator=torch.Generator().manual_seed(1))[:20]
    assert recall_statistic(drawn, true)(chosen) == recall_statistic(drawn[chosen], true)(torch.arange(20)) > 0
    assert recall_statistic(drawn, true)(torch.tensor([7, 7, 7, 7])) == 0


def test_sharpness_falls_with_blur_and_colour_is_measured():
    """White has L* = 100 and no colour; sRGB red is L*a*b* (53.24, 80.09, 67.20)."""
    rng = np.random.default_rng(0)
    noise = torch.from_numpy(rng.random((2, 3, 32, 32), dtype=np.float32))
    blurred = torch.nn.functional.avg_pool2d(noise, 3, stride=1, padding=1)
    assert (sharpness(blurred) < 0.2 * sharpness(noise)).all()
    torch.testing.assert_close(mean_color(torch.ones(1, 3, 4, 4))[0], torch.tensor([100.0, 0, 0]), atol=0.05, rtol=0)
    red = torch.tensor([1.0, 0, 0]).view(1, 3, 1, 1).expand(1, 3, 4, 4)
    torch.testing.assert_close(mean_color(red)[0], torch.tensor([53.24, 80.09, 67.20]), atol=0.1, rtol=0)


def test_mean_distance_of_a_triangle():
    """Sides 3, 4 and 5 of a right triangle: 4."""
    assert mean_distance(torch.tensor([[0.0, 0], [3, 0], [0, 4]])) == pytest.approx(4)


@pytest.fixture(scope="module")
def boxes(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("boxes")
    rows = []
    for i in range(24):
        picture = Image.new("RGB", (64, 64), "white")
        ImageDraw.Draw(picture).rectangle([i, i // 2, 30 + i, 34 + i // 3], fill=("red", "blue", "green")[i % 3])
        picture.save(folder / f"{i:02d}.png")
        rows.append({"file_name": f"{i:02d}.png", "text": f"a {('red', 'blue', 'green')[i % 3]} box"})
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


@pytest.fixture
def evaluate(monkeypatch, capsys):
    def run(*words, fails: bool = False):
        monkeypatch.setattr(sys, "argv", ["jdmctl", "eval", *map(str, words), "--json"])
        with pytest.raises(SystemExit) as left:
            cli.main() if fails else cli.app()
        captured = capsys.readouterr()
        if fails:
            assert left.value.code and "Traceback" not in captured.err
            return captured.err
        assert not left.value.code, captured.err
        rows = json.loads(captured.out.splitlines()[-1])["rows"]
        return {row["metric"]: row for row in rows if row["method"] not in ("true pictures", "VAE round trip")}, rows

    return run


def test_pictures_against_themselves_are_ideal_and_twice_the_same(evaluate, clip, boxes):
    words = (boxes, "--data", boxes, "--reference", boxes, "--features", clip, "--control", "canny")
    found, rows = evaluate(*words)
    assert found["canny f1"]["value"] == 1 and found["canny l1"]["value"] == 0
    assert found["frechet"]["value"] == pytest.approx(0, abs=1e-9)
    assert found["precision"]["value"] == found["recall"]["value"] == 1
    assert found["sharpness"]["value"] == pytest.approx(1)
    assert found["color shift"]["value"] == pytest.approx(0, abs=1e-6)
    assert "clip" in found["frechet"]["setup"] and "64 x 64 px" in found["frechet"]["setup"]
    assert evaluate(*words)[1] == evaluate(*words, "--device", "cpu")[1] == rows


def test_data_of_another_layout_gives_the_same_numbers(evaluate, clip, boxes, tmp_path):
    """The same pictures and captions as a folder with metadata.jsonl, and as kohya keeps them: a .txt beside each."""
    captions = {row["file_name"]: row["text"] for row in map(json.loads, (boxes / "metadata.jsonl").open())}
    for name, text in captions.items():
        shutil.copy(boxes / name, tmp_path / name)
        (tmp_path / name).with_suffix(".txt").write_text(text)
    options = ("--features", clip, "--control", "canny", "--reference", boxes)
    as_folder, _ = evaluate(boxes, "--data", boxes, *options)
    as_kohya, _ = evaluate(boxes, "--data", tmp_path, *options)
    values = [{name: row["value"] for name, row in found.items()} for found in (as_folder, as_kohya)]
    assert values[0] == values[1] and values[0]["canny f1"] == 1


def test_blurred_pictures_are_worse(evaluate, clip, boxes, tmp_path):
    """Made by another program: no captions, just files in the same order."""
    for file in boxes.glob("*.png"):
        Image.open(file).filter(ImageFilter.GaussianBlur(3)).save(tmp_path / file.name)
    options = ("--data", boxes, "--reference", boxes, "--features", clip, "--control", "canny")
    found, _ = evaluate(tmp_path, *options)
    assert found["canny f1"]["value"] < 0.95 and found["sharpness"]["value"] < 0.5
    assert found["frechet"]["value"] > 1e-4
    as_set, _ = evaluate(tmp_path, "--reference", boxes, "--features", clip)
    assert as_set["frechet"]["value"] == pytest.approx(found["frechet"]["value"])
    assert "canny f1" not in as_set


def test_conditions_and_the_grid_of_drawn_pictures_are_none_themselves(tmp_path):
    """Told by what `jdmctl sample` writes into them; a user's own pictures of such names count."""
    black = Image.new("RGB", (16, 16))
    save_picture(black, tmp_path / "a" / "000-seed0.png", {"prompt": "a box", "controls": {}})
    save_picture(black, tmp_path / "a" / "grid.png", {"pictures": []})
    save_picture(black, tmp_path / "a" / "conditions" / "canny-0.png", {"control": "canny", "sha256": "0"})
    (tmp_path / "b" / "conditions").mkdir(parents=True)
    for name in ("grid.png", "conditions/0.png"):
        black.save(tmp_path / "b" / name)
    assert [len(captioned(tmp_path / name)) for name in "ab"] == [1, 2]


def test_hidden_copies_are_not_scored(tmp_path):
    for name in ("0.png", ".ipynb_checkpoints/0-checkpoint.png", "._0.png"):
        save_picture(Image.new("RGB", (16, 16)), tmp_path / name, {"prompt": "a box"})
    assert names(tmp_path) == ["0.png"]


def test_a_student_and_a_run_on_pictures_of_ones_own(evaluate, in_tiny_world, tiny_folders, clip, boxes, monkeypatch):
    options = ("--data", boxes, "--features", clip, "--num", 12)
    alone, _ = evaluate(tiny_folders[1], *options)
    assert {"frechet", "kid", "recall", "prompt score", "seed distance"} <= alone.keys()
    assert alone["frechet"]["n"] == 12 and alone["frechet"]["method"] == "student" and "nearest train" not in alone

    train = ["add-control", "--student", "tiny", "--teacher", "tiny", "--control", "lowres", "--data", str(boxes)]
    sets = ["training.num_steps=2", "training.batch_size=4", "fake_score.warmup_min_steps=0", "seed=3",
            "fake_score.warmup_max_steps=1", "fake_score.rank=2",
            "student.trainable=lora", "student.rank=2"]  # fmt: skip
    monkeypatch.setattr(sys, "argv", ["jdmctl", *train, "-o", "run", *(w for s in sets for w in ("--set", s))])
    with pytest.raises(SystemExit):
        cli.app()
    _, rows = evaluate("run", *options, "--data", boxes, "--pictures", "answers.png")
    found = {row["metric"]: row for row in rows if row["method"] == "jdm"}
    assert found["lowres psnr"]["seeds"] == [3]
    assert found["drift"]["value"] > 0  # its backbone was adapted
    assert {"lowres psnr gap closed", "lowres l1 / student without control"} <= found.keys()
    without = next(r for r in rows if r["method"] == "student without control" and r["metric"] == "drift")
    assert without["value"] == 0
    assert Image.open("answers.png").size[0] > 300


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere"], "no folder nowhere"),
        (["{boxes}"], "nothing to compare"),
        (["{boxes}", "--reference", "{boxes}", "--control", "canny"], "were to be obeyed"),
        (["{boxes}", "{boxes}", "--data", "{boxes}"], "only runs are scored together"),
        (["{boxes}", "--data", "{boxes}", "--features", "nowhere"], "no feature network"),
        (
            ["{boxes}", "--data", "{photos}", "--reference", "{boxes}", "--features", "{clip}"],
            "24 pictures to answer 12",
        ),
        (["{boxes}", "--data", "{boxes}", "--control", "depth"], "hint: add --option depth.KEY=VALUE"),
        (["{boxes}", "--data", "{boxes}", "--option", "canny.low=3"], "there is no such --control"),
        (["{boxes}", "--data", "{boxes}", "--no-baselines"], "--no-baselines is for runs"),
        (["{boxes}", "--data", "{boxes}", "--pictures", "a.png"], "--pictures is for runs"),
        (["{boxes}", "--data", "{boxes}", "--split", "val"], "--split is of the embedded world"),
        (["{boxes}", "--data", "{boxes}", "--results", "."], ". is a folder"),
        (["{student}", "--reference", "{boxes}"], "--reference: without --data"),
        (["{student}", "--features", "{clip}"], "--features: without --data"),
        (["{boxes}", "--data", "{boxes}", "--device", "cuda:99"], "device cuda:99 is not there"),
    ],
)
def test_what_cannot_be_scored_is_told(evaluate, clip, boxes, photos, tiny_folders, words, message):
    places = {"boxes": boxes, "clip": clip, "photos": photos, "student": tiny_folders[1]}
    assert message in evaluate(*(word.format(**places) for word in words), fails=True)


def test_a_sheet_that_cannot_be_saved_is_told_before_anything_is_drawn(evaluate, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "does not say what kind of picture" in evaluate(finished("a"), "--pictures", "answers", fails=True)
    Path("file").touch()
    assert "could not save" in evaluate("a", "--pictures", "file/answers.png", fails=True)


def test_rows_that_could_not_stay_are_found_before_anything_is_drawn(evaluate, tmp_path, monkeypatch):
    """One of another run is; that of the same label is replaced, and no reason to stop."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(heldout, "samples", lambda split: range(500))
    monkeypatch.setattr(contest, "_open", lambda *_: pytest.fail("it is drawn"))
    row = Row("tiny", "canny", "nct", 1, "frechet", 6.0, 5.0, 7.0, [0], 100, "a command", setup("a judge"))
    write(Path("rows.json"), [row])
    assert "cannot stand in one table" in evaluate(finished("a"), "--results", "rows.json", fails=True)
    with pytest.raises(pytest.fail.Exception, match="it is drawn"):
        evaluate("a", "--results", "rows.json", "--label", "nct")


def test_pictures_are_partners_by_name_or_else_in_the_order_of_their_numbers(tmp_path):
    assert partners(["b.png", "a.png"], ["a.png", "b.png"]) == [1, 0]
    assert partners(["b.png", "a.png"], ["a.jpg", "b.jpg"]) == [1, 0]
    assert partners(["b.png", "c.png"], ["a.png", "b.png"]) == [0, 1]
    for name in ("10", "9", "1"):
        Image.new("RGB", (16, 16)).save(tmp_path / f"{name}.png")
    assert names(tmp_path) == ["1.png", "9.png", "10.png"]


def test_a_folder_may_answer_all_of_the_data_or_every_other_picture_of_it(evaluate, clip, boxes, tmp_path, monkeypatch):
    """Without --reference; the command of a row gives it again, whatever is in the folder's name."""
    every, half = tmp_path / "all of them", tmp_path / "half"
    shutil.copytree(boxes, every)
    half.mkdir()
    for number in range(24):
        (every / f"{number:02d}.png").rename(every / f"{number}.png")
        if number % 2 == 0:
            shutil.copy(boxes / f"{number:02d}.png", half)
    lines = [json.loads(line) for line in (every / "metadata.jsonl").read_text().splitlines()]
    shown = [{**line, "file_name": f"{i}.png"} for i, line in enumerate(lines)]
    (every / "metadata.jsonl").write_text("\n".join(map(json.dumps, shown)))
    options = ("--features", clip, "--control", "canny")
    found, rows = evaluate(every, "--data", boxes, *options)
    assert found["canny f1"]["value"] == 1 and found["canny f1"]["n"] == 24
    as_half, _ = evaluate(half, "--data", boxes, *options)
    assert found["frechet"] == as_half["frechet"] | {name: found["frechet"][name] for name in ("method", "command")}
    assert found["frechet"]["n"] == 12 and "nearest train" not in found
    assert found["frechet"]["method"] == "all of them" and {row["control"] for row in rows} == {"canny"}
    assert shlex.split(rows[0]["command"])[2] == str(every)
    monkeypatch.chdir(half)
    assert evaluate(".", "--data", boxes, *options, "--label", "mine")[0]["canny f1"]["method"] == "mine"
    assert evaluate(".", "--data", boxes, *options)[0]["canny f1"]["method"] == "half"


def test_all_pictures_of_a_set_count_beside_a_smaller_reference(evaluate, clip, boxes, photos):
    found, _ = evaluate(boxes, "--reference", photos, "--features", clip)
    assert found["frechet"]["n"] == found["recall"]["n"] == 24


def test_depth_of_finished_pictures(evaluate, in_tiny_world, clip, boxes):
    options = ("--option", "depth.network=tiny/depth", "--option", "depth.normalise=per_image")
    found, _ = evaluate(boxes, "--data", boxes, "--features", clip, "--control", "depth", *options)
    assert found["depth l1"]["value"] == 0 and "split" not in found["frechet"]["setup"]
    other, _ = evaluate(boxes, "--data", boxes, "--features", clip, "--control", "depth", *options,
                        "--option", "depth.scorer=tiny/depth_heldout")  # fmt: skip
    assert found["frechet"]["setup"] == other["frechet"]["setup"]
    by = [re.search(r" px, depth scored by ([0-9a-f]{8}); ", one["depth l1"]["setup"])[1] for one in (found, other)]
    assert by[0] != by[1]
    assert all(word in shlex.split(found["depth l1"]["command"]) for word in options)


def test_rows_go_where_the_results_are(tmp_path, monkeypatch):
    """Into a file of the folder that one is in, and into documents that ask for them and not for a longer name."""
    monkeypatch.chdir(tmp_path)
    row = Row("tiny", "canny", "jdm", 1, "canny f1", 0.5, 0.4, 0.6, [0], 16, "a command")
    Path("README.md").write_text(
        "<!-- results: nearer -->\n<!-- end -->\n<!-- results: far | canny f1 -->\n<!-- end -->"
    )
    keep([row], Path("near.json"))
    assert "| jdm |" not in Path("README.md").read_text()
    keep([row], Path("far.json"))
    assert "| jdm |" in Path("README.md").read_text() and read(Path("near.json")) == read(Path("far.json")) == [row]


def test_a_teacher_draws_in_one_step_too_and_damaged_weights_are_told(in_tiny_world, tiny_folders, boxes):
    family = StableDiffusion.load(*tiny_folders)
    family.add_control_branch("canny", denoiser=family.teacher)
    pictures, judge = captioned(boxes, family.resolution_px), MagicMock()
    asked = Scenes.make("boxes", pictures, 2, {"canny": load_control("canny")}, judge, pictures, None)
    assert asked.draw(family, 0, 1).images.shape == (2, 3, family.resolution_px, family.resolution_px)
    with torch.no_grad():
        next(family.student.parameters()).fill_(torch.nan)
    with pytest.raises(JdmError, match="what the student draws for seed 3 is not finite"):
        asked.draw(family, 3, controlled=False)


def finished(name: str, *changes: str) -> Path:
    """A run of tiny/canny with changes, as far as `eval` looks before it draws."""
    recipe = load_recipe("tiny/canny", changes)
    for folder in (*recipe.branch_folders.values(), recipe.student_folder):
        Path(name, folder).mkdir(parents=True, exist_ok=True)
    Path(name, "recipe.yaml").write_text(to_yaml(recipe))
    return Path(name)


def test_runs_that_are_scored_together_are_of_one_recipe(tmp_path, monkeypatch):
    """Only seed and name may differ; else a mean over seeds would be one over recipes, all drawn by the first's."""
    monkeypatch.chdir(tmp_path)
    first, again, third = finished("a"), finished("b", "seed=1", "name=second"), finished("c", "seed=1")
    other = finished("d", "seed=3", "student.trainable=lora", "training.num_steps=7")
    assert contest.Entrant.of([first, again], compose=False).seeds == (0, 1)
    with pytest.raises(BadInputError, match="b and c have the same seed, 1"):
        contest.Entrant.of([first, again, third], compose=False)
    with pytest.raises(BadInputError, match="a and a have the same seed, 0"):
        contest.Entrant.of([first, first], compose=False)
    told = 'a and d are no runs of one recipe: student.trainable: "frozen" and "lora"; training.num_steps: 200 and 7$'
    with pytest.raises(BadInputError, match=told):
        contest.Entrant.of([first, other], compose=False)


def test_runs_that_are_composed_are_on_one_student(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    canny, depth = finished("a"), finished("b", "controls=[{name: depth}]", "seed=5", "training.dsm_warmup_steps=0")
    assert contest.Entrant.of([canny, depth], compose=True).seeds == (0,)
    more = [finished(f"{name}5", "seed=5", *changes) for name, changes in (("a", ()), ("b", ["training.num_steps=7"]))]
    with pytest.raises(
        BadInputError, match=r"not every seed has all controls: of seed 0 canny; of seed 5 depth\+canny"
    ):
        contest.Entrant.of([canny, depth, more[0]], compose=True)
    with pytest.raises(BadInputError, match="the control canny and the seed 0"):
        contest.Entrant.of([canny, canny], compose=True)
    with pytest.raises(BadInputError, match="no runs of one recipe: training.num_steps"):
        contest.Entrant.of([canny, depth, more[1]], compose=True)
    seconds = finished("d", "controls=[{name: depth}]", "training.dsm_warmup_steps=0")
    both = contest.Entrant.of([canny, more[0], seconds, depth], compose=True)
    assert both.seeds == (0, 5) and both.method == "jdm composed"
    assert [{name: folder.parent.name for name, folder in own.items()} for own in both.branches] == [
        {"canny": "a", "depth": "d"}, {"canny": "a5", "depth": "b"},
    ]  # fmt: skip
    mine = finished("c", "controls=[{name: depth}]", "training.dsm_warmup_steps=0", "model.student=mine")
    with pytest.raises(BadInputError, match='no runs on one student: model.student: "tiny" and "mine"$'):
        contest.Entrant.of([canny, mine], compose=True)


@pytest.mark.parametrize(
    "model", [{"student": "tiny"}, {"student": "mine"}, {"student": "mine", "teacher": "other"}], ids=str
)
def test_any_student_of_the_world_s_teacher_stands_beside_its_controlnets(tmp_path, monkeypatch, model):
    """They are the teacher's, so they fit every student of it, and no other teacher's."""
    (tmp_path / "controlnet_canny").mkdir()
    scenes, builder = MagicMock(controls={"canny": None}), MagicMock()
    for name, stand_in in {
        "world_folder": lambda: tmp_path,
        "world_report": lambda: {"controlnet_canny guidance": 1.5},
        "build_base": builder,
        "build_trained": builder,
    }.items():
        monkeypatch.setattr(contest, name, stand_in)
    recipe = load_recipe("tiny/canny", [f"model.{key}={value}" for key, value in model.items()])
    entrant = contest.Entrant(recipe, (), (0,), (), (recipe,))
    methods = [name for name, _, _ in contest._baselines(scenes, entrant, print)]
    assert methods[:3] == ["true pictures", "VAE round trip", "student without control"]
    beside = [] if "teacher" in model else ["ControlNet plugged in", "ControlNet 25 steps"]
    assert methods[3:] == beside


def test_the_world_s_own_generators(in_tiny_world, tiny_world, monkeypatch, capsys):
    """Two noises of each; a student that is its teacher's own weights is one more row, and both are shares of it."""
    world = Path(shutil.copytree(tiny_world, "world"))
    shutil.copytree(SHIPPED / "classifier", world / "classifier")
    (world / "report.json").write_text(json.dumps({"teacher guidance": 1.5}))
    monkeypatch.setenv("JDMCTL_WORLD", str(world))
    monkeypatch.setattr(heldout, "samples", lambda split: scenes(split, 24, Path("scenes")))
    monkeypatch.setattr(contest, "TEACHER_STEPS", 2)
    words = ["--num", "8", "--seeds", "2", "--student", "tiny/student", "--student", "world/teacher", "--json"]
    monkeypatch.setattr(sys, "argv", ["jdmctl", "world", "report", *words])
    with pytest.raises(SystemExit) as left:
        cli.app()
    assert not left.value.code
    rows = json.loads(capsys.readouterr().out)["rows"]
    found = {(row["method"], row["metric"]): row for row in rows}
    for student in ("student", "world/teacher"):
        mean = found[student, "frechet"]["value"] / found["teacher", "frechet"]["value"]
        assert found[student, "frechet / teacher"]["value"] == pytest.approx(mean, rel=0.1)
        assert found[student, "frechet"]["seeds"] == [0, 1] and found[student, "frechet"]["passes"] == 1
    assert found["teacher", "frechet"]["passes"] == 4
    assert found["student", "frechet"]["value"] != found["world/teacher", "frechet"]["value"]
    ideal = {row["metric"]: row["value"] for row in rows if row["method"] == "reference pictures against themselves"}
    assert list(ideal) == ["frechet", "kid", "precision", "recall"]
    assert (ideal["frechet"], ideal["precision"], ideal["recall"]) == (0, 1, 1) and ideal["kid"] < 0
    assert " px, split test; torch" in found["student", "frechet"]["setup"]
    assert "--student world/teacher" in found["student", "frechet"]["command"]
