"""`jdmctl compare`: its cells, what it trains when, and its report; on random tiny models."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import browser
import pytest
import torch
from PIL import Image, ImageDraw

from jdmctl.cli import app as cli
from jdmctl.cli.compare import _arenas, _split, _usual
from jdmctl.comparison.cells import Entry, plan
from jdmctl.comparison.heldout import Asked
from jdmctl.comparison.history import History
from jdmctl.comparison.scoring import _draw, score
from jdmctl.comparison.searches import MorePasses
from jdmctl.comparison.training import complete
from jdmctl.errors import BadInputError
from jdmctl.evaluation.results import Row, setup, write
from jdmctl.recipe_files import to_yaml
from jdmctl.tinyworld import models
from jdmctl.tinyworld.source import captioned_folder
from jdmctl.tinyworld.world import SOURCE_FILE, samples

RECIPE = """
name: quick
model: {teacher: tiny, student: tiny}
controls: [{name: canny, init: dsm}]
objective: {guidance_scale: 1.5}
fake_score: {warmup_min_steps: 0, warmup_max_steps: 2, rank: 2}
training: {num_steps: 2, batch_size: 4, validate_every_steps: 1, preview_every_steps: 2, dsm_warmup_steps: 1}
data: {source: tiny, num_samples: 8, num_validation_samples: 3}
"""


@pytest.fixture
def recipe(tmp_path, monkeypatch) -> str:
    monkeypatch.chdir(tmp_path)
    Path("quick.yaml").write_text(RECIPE)
    return "quick.yaml"


def entries(*texts: str, **changes: list[str]) -> list[Entry]:
    return [Entry.parse(text, changes) for text in texts]


def test_first_seeds_come_first_and_dsm_before_those_that_use_it(recipe, tmp_path):
    cells = plan(recipe, [], entries("jdm:2", "dmd-control", "dsm", "nct:3"), tmp_path)
    names = ["jdm-0", "dsm-0", "nct-0", "dmd-control-0", "jdm-1", "nct-1", "nct-2"]
    assert [cell.name for cell in cells] == names
    assert not any(cell.is_done for cell in cells)
    recipes = {cell.name: cell.recipe for cell in cells}
    assert recipes["dmd-control-0"].controls[0].teacher_branch == str(tmp_path / "dsm-0" / "controlnet")
    assert recipes["nct-2"].seed == 2 and recipes["nct-2"].method == "nct"
    assert recipes["jdm-0"].training.dsm_warmup_steps == 1  # a part of its recipe
    assert recipes["nct-0"].training.dsm_warmup_steps == recipes["dsm-0"].training.dsm_warmup_steps == 0


def test_changes_for_all_and_for_one_method(recipe, tmp_path):
    asked = entries("jdm", "nct", nct=["training.num_steps=7"])
    steps = {cell.label: cell.recipe.training for cell in plan(recipe, ["training.batch_size=6"], asked, tmp_path)}
    assert steps["jdm"].num_steps == 2 and steps["nct"].num_steps == 7
    assert steps["jdm"].batch_size == steps["nct"].batch_size == 6


def test_a_given_controlnet_is_used(recipe, tmp_path):
    key = "controls.canny.teacher_branch"
    (cell,) = plan(recipe, [], entries("implicit", implicit=[f"{key}=given"]), tmp_path)
    assert cell.recipe.controls[0].teacher_branch == "given"
    Path(recipe).write_text(RECIPE.replace("init: dsm}", "init: dsm, teacher_branch: written}"))
    (cell,) = plan(recipe, [], entries("implicit"), tmp_path)
    assert cell.recipe.controls[0].teacher_branch == "written"


def test_variants_of_a_method_are_cells_of_their_own(recipe, tmp_path):
    asked = entries("jdm", "jdm@kl:2", **{"jdm@kl": ["objective.weight=kl"]})
    cells = {cell.name: cell.recipe for cell in plan(recipe, ["seed=5"], asked, tmp_path)}
    assert list(cells) == ["jdm-0", "jdm@kl-0", "jdm@kl-1"]
    assert [recipe.seed for recipe in cells.values()] == [5, 5, 6]
    assert [recipe.objective.weight for recipe in cells.values()] == ["normalized", "kl", "kl"]


def test_methods_that_train_a_branch_alone_take_of_a_recipe_what_is_theirs(recipe, tmp_path):
    """A student that is trained, a divergence, a critic's ratio and a GAN term are jdm's."""
    changes = [
        "student.trainable=full",
        "objective.divergence=js",
        "objective.ratio=learned",
        "objective.gan_weight=0.1",
    ]
    cells = plan(recipe, changes, entries("jdm", "dsm", "nct"), tmp_path)
    assert [cell.recipe.student.trainable for cell in cells] == ["full", "frozen", "frozen"]
    assert [cell.recipe.needs_critic for cell in cells] == [True, False, False]


def a_controlnet(folder: Path) -> Path:
    """As much of one as is looked at before it is loaded."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text("{}")
    return folder


def test_an_ordinary_controlnet_that_is_given_needs_no_training(recipe, tmp_path):
    mine = a_controlnet(tmp_path / "mine")
    asked = entries("dsm", "redistill", dsm=[f"controls.canny.teacher_branch={mine}"])
    given, other = plan(recipe, [], asked, tmp_path)
    assert given.is_given and given.is_done and given.branches() == {"canny": mine}
    assert not other.is_given
    assert other.recipe.controls[0].teacher_branch == str(mine)


def test_a_given_controlnet_may_be_on_the_hub_and_is_never_trained(recipe, tmp_path, monkeypatch):
    config = a_controlnet(tmp_path / "fetched") / "config.json"
    monkeypatch.setattr("jdmctl.families.folders.hf_hub_download", lambda *_, **__: str(config))
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: pytest.fail("it is trained"))
    asked = entries("dsm", "redistill", dsm=["controls.canny.teacher_branch=somebody/their-controlnet"])
    given, other = plan(recipe, [], asked, tmp_path)
    complete([given], float("inf"), "", print)
    assert given.is_done and given.state == "given"
    assert other.recipe.controls[0].teacher_branch == "somebody/their-controlnet"


@pytest.mark.parametrize("branch", ["./nowhere", "somebody/no-controlnet"])
def test_a_given_controlnet_that_is_not_there_is_refused_before_anything_is_trained(recipe, jdmctl_command, branch):
    words = ("--method", "dsm", "--set", f"dsm:controls.canny.teacher_branch={branch}", "--dry-run")
    code, _, err = jdmctl_command("compare", recipe, *words)
    assert code == 1 and f"no folder {Path(branch)}, and no such model can be had from the hub" in err


def test_how_long_a_given_controlnet_was_trained_nobody_knows(recipe, tmp_path, monkeypatch):
    """Plugged in or in many steps, it has no place over minutes of training; not the one at 0."""
    for drawing in ("_one_step", "_multistep"):
        monkeypatch.setattr(f"jdmctl.comparison.scoring.{drawing}", lambda *_: None)
    monkeypatch.setattr("jdmctl.comparison.scoring._untrained", lambda *_: [])
    asked = entries("dsm", "dsm@mine", **{"dsm@mine": [f"controls.canny.teacher_branch={a_controlnet(tmp_path)}"]})
    cells = plan(recipe, [], asked, tmp_path)
    (cells[0].folder / "controlnet").mkdir(parents=True)
    drawn = {one.method: one.minutes for one in _draw(None, cells, MorePasses([2], [], []))}
    assert drawn == {
        "ControlNet plugged in": 0, "ControlNet 2 steps": 0,
        "ControlNet plugged in@mine": None, "ControlNet@mine 2 steps": None,
    }  # fmt: skip


def test_a_cell_that_was_begun_goes_on(recipe, tmp_path, monkeypatch):
    """Without a checkpoint, too: its folder is there, so a run that says nothing of resuming would be refused."""
    asked = []

    def start(words, **_):
        asked.append(words)
        return SimpleNamespace(wait=lambda timeout=None: 0, terminate=lambda: None)

    monkeypatch.setattr(subprocess, "Popen", start)
    (cell,) = plan(recipe, [], entries("jdm"), tmp_path)
    complete([cell], float("inf"), "", print)
    cell.folder.mkdir()
    (cell.folder / "recipe.yaml").write_text(to_yaml(cell.recipe))
    complete([cell], float("inf"), "", print)
    assert asked[0][-2:] == ["--output", str(cell.folder)] and asked[1][-2:] == [str(cell.folder), "--resume"]


STAND_IN = """
import pathlib, signal, sys, time

def save(*_):
    time.sleep(0.5)
    pathlib.Path("saved").touch()
    sys.exit(130)

signal.signal(signal.SIGTERM, save)
pathlib.Path("trains").touch()
time.sleep(60)
"""


def test_a_training_ends_with_a_compare_that_is_terminated(recipe, tmp_path, monkeypatch):
    """Only compare gets the signal; it waits until the training has saved. Then SIGTERM is what it was."""

    def terminate():
        while not Path("trains").exists():
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGTERM)

    def usual(*_):
        raise AssertionError("nobody took the signal")

    monkeypatch.setattr("jdmctl.comparison.training._command", lambda *_: [sys.executable, "-c", STAND_IN])
    before = signal.signal(signal.SIGTERM, usual)
    try:
        threading.Thread(target=terminate, daemon=True).start()
        with pytest.raises(KeyboardInterrupt):
            complete(plan(recipe, [], entries("jdm"), tmp_path), float("inf"), "", print)
        assert Path("saved").exists() and signal.getsignal(signal.SIGTERM) is usual
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_training_ends_with_a_compare_that_is_killed():
    """The system then closes compare's end of the pipe."""
    code = "from jdmctl.cli import child; child.end_with_parent(); print(flush=True); import time; time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        assert process.poll() is None
        process.stdin.close()
        assert process.wait(30) == -signal.SIGTERM


def test_the_history_of_a_run_that_was_resumed(tmp_path):
    """Records that were written again count once; a stage's validations lie on the clock of the whole run."""

    def step(stage, number, seconds):
        return {"event": "step", "stage": stage, "step": number, "seconds": seconds, "memory_bytes": 7 * number}

    def validation(stage, number, score):
        drawn = {"adherence": {"canny f1": score}, "watched": {"kid": -score}}
        return {"event": "validation", "stage": stage, "step": number, **drawn}

    records = [
        step("warmup", 10, 4.0), validation("training", 0, 0.1), step("training", 10, 5.0),
        validation("training", 10, 0.5), step("training", 20, 6.0), step("training", 20, 8.0),
        validation("training", 20, 0.8),
    ]  # fmt: skip
    (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, records)))
    history = History.of(tmp_path)
    assert history.seconds == 4 + 5 + 8 and history.memory_bytes == 140
    assert history.updates == {"warmup": 10, "training": 20}
    assert history.curve == ((4.0, 0.1), (9.0, 0.5), (17.0, 0.8)) == history.curves["canny f1"]
    assert history.curves["kid"] == ((4.0, -0.1), (9.0, -0.5), (17.0, -0.8))
    later = history.after(100)
    assert later.seconds == 117 and later.curve[0] == (104.0, 0.1)
    assert history.seconds_to(0.4, higher_is_better=True) == 9
    assert history.seconds_to(0.4, higher_is_better=False) == 4
    assert history.seconds_to(0.9, higher_is_better=True) is None


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["jdm:x"], "METHOD:SEEDS"),
        (["jdm@a b"], "METHOD@VARIANT"),
        (["jmd"], "no method named"),
        (["implicit"], "needs an ordinary ControlNet"),
    ],
)
def test_what_cannot_be_planned_is_told(recipe, tmp_path, texts, message):
    with pytest.raises(BadInputError, match=message):
        plan(recipe, [], entries(*texts), tmp_path)


def test_recipes_that_would_share_a_folder_are_refused(recipe, jdmctl_command):
    """The second of two files called canny would find the first's cells done, and be scored with their weights."""
    assert jdmctl_command("recipes", "copy", "tiny/canny", "canny.yaml")[0] == 0
    for words, folder in (((), "runs/compare-canny"), (("-o", "out"), "out/canny")):
        code, _, err = jdmctl_command("compare", "tiny/canny", "canny.yaml", *words, "--dry-run")
        assert code == 1 and f"tiny/canny and canny.yaml would both be trained in {folder}" in err
        assert "hint: copy one to a file of another name: jdmctl recipes copy canny.yaml NAME.yaml" in err
    arenas = _arenas(["tiny/canny", recipe], [], entries("jdm"), Path("out"))
    assert [str(cell.folder) for arena in arenas for cell in arena.cells] == ["out/canny/jdm-0", "out/quick/jdm-0"]


def test_a_split_of_the_world_is_refused_beside_own_pictures(recipe, jdmctl_command, tmp_path):
    code, _, err = jdmctl_command("compare", recipe, "--data", tmp_path, "--split", "val", "--dry-run")
    assert code == 1 and "--split is of the embedded world" in err


def test_a_change_of_a_method_that_there_is_not_is_not_taken_for_one_of_the_recipe(recipe, jdmctl_command):
    code, _, err = jdmctl_command("compare", recipe, "--set", "jmd:training.num_steps=3", "--dry-run")
    assert code == 1 and "no method named 'jmd', did you mean 'jdm'?" in err
    code, _, err = jdmctl_command("compare", recipe, "--set", "kl@small:training.num_steps=3", "--dry-run")
    assert code == 1 and "no method named 'kl'" in err
    assert _split(["name=a:b", "jdm@x.y:seed=3"]) == (["name=a:b"], {"jdm@x.y": ["seed=3"]})


def test_what_is_compared_if_nothing_is_said_depends_on_the_recipe(recipe):
    assert _usual([recipe]) == _usual(["tiny/align", recipe]) == ["jdm", "dsm"]
    assert _usual(["tiny/align"]) == ["jdm", "reward-only"]
    Path("alone.yaml").write_text(TASTE.replace("rewards: [{name: warmth}]\n", ""))
    assert _usual(["alone.yaml"]) == ["jdm"]


@pytest.mark.usefixtures("in_tiny_world")
def test_a_recipe_with_rewards_alone_can_be_compared_without_naming_methods(jdmctl_command):
    """Its plan is one line of JSON for each cell, with numbers as they are and null for what nobody knows."""
    Path("quick.yaml").write_text(TASTE)
    code, out, err = jdmctl_command("compare", "quick.yaml", "--dry-run", "--json")
    assert code == 0, err
    first, second = map(json.loads, out.splitlines())
    assert (first["cell"], second["cell"]) == ("jdm-0", "reward-only-0")
    assert first["event"] == "plan" and first["recipe"] == "quick.yaml" and first["state"] == "missing"
    assert first["updates"] == 2 and first["seconds_so_far"] == 0 and first["seconds_to_go"] is None
    assert first["flops_of_an_update"]["teacher"] > 0
    assert 2 * sum(first["flops_of_an_update"].values()) < first["flops"]  # with a warm-up of its fake score


def test_rows_of_another_setup_are_refused_before_anything_is_trained(recipe, jdmctl_command, monkeypatch):
    """A row that stays, of a method that is not scored now, and of another number of pictures, or another split."""
    monkeypatch.setattr("jdmctl.cli.compare.show", lambda *_: None)
    monkeypatch.setattr("jdmctl.cli.compare._run", lambda *_: pytest.fail("it is trained"))
    monkeypatch.setattr("jdmctl.comparison.heldout.samples", lambda split: range(500))
    row = Row("tiny", "canny", "nct", 1, "frechet", 6.0, 5.0, 7.0, [0], 100, "jdmctl eval runs/nct",
              setup("a judge", split="test"))  # fmt: skip
    write(Path("rows.json"), [row])
    code, _, err = jdmctl_command("compare", recipe, "--results", "rows.json")
    assert code == 1 and "frechet of nct in rows.json was measured with a judge" in err
    assert ", 500 pictures: they cannot stand in one table" in err and "(jdmctl eval runs/nct)" in err
    write(Path("rows.json"), [replace(row, n=500)])
    code, _, err = jdmctl_command("compare", recipe, "--results", "rows.json", "--split", "val")
    assert code == 1 and "a judge, split test; torch" in err and "with split val; torch" in err


def test_a_goal_is_of_one_recipe(recipe, jdmctl_command, monkeypatch):
    """Other recipes have other headlines; 0.82 of a distance would be no goal."""
    code, _, err = jdmctl_command("compare", recipe, "tiny/canny", "--goal", "0.82", "--dry-run")
    assert code == 1 and "--goal 0.82 is of one recipe's headline, and there are 2" in err
    code, _, err = jdmctl_command("compare", recipe, "--goal", "nan", "--dry-run")
    assert code == 1 and "--goal nan is no number" in err
    monkeypatch.setattr("jdmctl.cli.compare.show", lambda arenas, out: print([arena.goal for arena in arenas]))
    code, out, err = jdmctl_command("compare", recipe, "--goal", "0.82", "--dry-run")
    assert code == 0 and "[0.82]" in out, err


def test_a_method_that_is_named_twice_is_refused(recipe, jdmctl_command):
    code, _, err = jdmctl_command("compare", recipe, "--method", "jdm@a", "--method", "jdm@a:3", "--dry-run")
    assert code == 1 and "--method jdm@a is given twice" in err and "--method jdm@a:3, or call one of them jdm@" in err


class Strict(HTMLParser):
    """Fails on tags that are not closed in order; remembers what a browser would fetch."""

    def __init__(self):
        super().__init__()
        self.open, self.fetched, self.counts = [], [], {}

    def handle_starttag(self, tag, attributes):
        self.counts[tag] = self.counts.get(tag, 0) + 1
        self.fetched += [value for key, value in attributes if key in ("src", "href")]
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.counts[tag] = self.counts.get(tag, 0) + 1

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


@pytest.fixture
def captioned_world(tiny_world, tmp_path, monkeypatch):
    """The random world, of 160 pictures of boxes, with a random classifier for a judge."""
    world, pictures = tmp_path / "boxes-world", tmp_path / "boxes"
    shutil.copytree(tiny_world, world)
    pictures.mkdir()
    rows = []
    for i in range(160):
        picture = Image.new("RGB", (64, 64), "white")
        ImageDraw.Draw(picture).rectangle([i % 20, i % 30, 30 + i % 13, 34 + i % 17], fill=("red", "blue")[i % 2])
        picture.save(pictures / f"{i}.png")
        rows.append({"file_name": f"{i}.png", "text": f"a {('red', 'blue')[i % 2]} box number {i}"})
    (pictures / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (world / SOURCE_FILE).write_text(json.dumps({"folder": str(pictures)}))
    torch.manual_seed(0)
    models.classifier(list(captioned_folder(pictures, "train").labels)).save_pretrained(world / "classifier")
    monkeypatch.setenv("JDMCTL_WORLD", str(world))
    monkeypatch.setenv("JDMCTL_CACHE", str(tmp_path / "cache"))
    samples.cache_clear()
    yield world
    samples.cache_clear()


def test_a_student_may_lie_anywhere_its_teacher_in_the_world(recipe, tmp_path, monkeypatch):
    class Reached(Exception):
        pass

    def reach(*_):
        raise Reached

    monkeypatch.setattr("jdmctl.comparison.scoring.build_family", reach)
    for role, outcome in (("student", Reached), ("teacher", BadInputError)):
        cells = plan(recipe, [f"model.{role}=mine"], entries("jdm"), tmp_path)
        with pytest.raises(outcome):
            score(cells, Asked(num=8), MorePasses(), "", print)


@pytest.fixture
def compare(captioned_world, recipe, monkeypatch, capfd):
    """Runs `jdmctl compare` on the recipe of the folder, and gives what it reports."""

    def run(*words: str) -> dict:
        monkeypatch.setattr(sys, "argv", ["jdmctl", "compare", recipe, *words, "--json", "-o", "out"])
        with pytest.raises(SystemExit) as left:
            cli.app()
        captured = capfd.readouterr()
        assert not left.value.code, captured.err
        return json.loads(captured.out.splitlines()[-1])

    return run


@pytest.mark.slow
def test_from_the_command_to_the_report(compare, recipe):
    """Without a budget the report says what is missing; then cells are trained once, and scores repeat exactly."""
    words = ["--method", "jdm", "--method", "dsm", "--teacher-steps", "2", "--num", "8"]
    words += ["--set", "dsm:objective.guidance_scale=1"]  # else 1.5, and two passes a step
    assert compare(*words, "--budget-minutes", "0")["missing"] == [f"{recipe} jdm-0", f"{recipe} dsm-0"]
    done = compare(*words)
    assert done["missing"] == []
    found = {(row["method"], row["metric"]): row for row in done["rows"]}
    methods = {method for method, _ in found}
    assert methods == {
        "reference pictures against themselves",
        "true pictures", "VAE round trip", "student without control", "jdm", "ControlNet plugged in",
        "ControlNet 2 steps",
    }  # fmt: skip
    assert found["true pictures", "canny f1"]["value"] == pytest.approx(1.0)
    assert found["ControlNet 2 steps", "frechet"]["passes"] == 2
    assert ("jdm", "canny f1 / ControlNet plugged in") in found

    assert done["costs"][recipe]["dsm"]["passes"]["denoiser"] == [1, 1]
    assert done["costs"][recipe]["jdm"]["flops"] > done["costs"][recipe]["dsm"]["flops"] > 0
    parts = done["costs"][recipe]["jdm"]["parts"]
    assert {"student", "teacher", "fake score", "decoder"} < set(parts)
    assert sum(parts.values()) == done["costs"][recipe]["jdm"]["flops"]
    assert found["jdm", "GFLOP of teacher an update"]["value"] == parts["teacher"] / 1e9
    assert found["ControlNet plugged in", "passes of denoiser an update"]["value"] == 1
    assert json.loads(Path("out/compare.json").read_text()) == done["rows"]

    html = Path("out/report.html").read_text()
    parser = Strict()
    parser.feed(html)
    assert not parser.open
    assert all(source.startswith("data:image/png;base64,") for source in parser.fetched)
    assert parser.counts["svg"] >= 6 and parser.counts["img"] == 1
    assert "No cell is missing" in html

    began = Path("out/jdm-0/recipe.yaml").stat().st_mtime_ns
    again = compare(*words)
    assert Path("out/jdm-0/recipe.yaml").stat().st_mtime_ns == began
    assert again["rows"] == done["rows"]


@pytest.mark.slow
def test_a_browser_draws_the_report(compare):
    program, seen = browser.program(), Path("seen.png").resolve()
    compare("--method", "jdm", "--num", "8")
    subprocess.run(
        [program, "--headless", "--no-sandbox", "--disable-gpu", f"--screenshot={seen}", "--window-size=1200,900",
         Path("out/report.html").resolve().as_uri()], check=True, capture_output=True, timeout=120,
    )  # fmt: skip
    assert len(Image.open(seen).convert("RGB").getcolors(10**6)) > 50


TASTE = """
name: quick
model: {teacher: tiny, student: tiny}
student: {trainable: full}
rewards: [{name: warmth}]
fake_score: {warmup_min_steps: 0, warmup_max_steps: 2, rank: 2}
training: {num_steps: 2, batch_size: 4, validate_every_steps: 2, preview_every_steps: 2}
data: {source: tiny, num_samples: 8, num_validation_samples: 8}
"""


def test_what_a_reward_is_pursued_with_instead_of_fidelity(recipe, tmp_path):
    Path(recipe).write_text(TASTE)
    asked = entries(
        "jdm", "reward-only", "reward-l2", "diff-instruct++",
        **{"reward-l2": ["student.l2_to_start=3"], "diff-instruct++": ["objective.guidance_scale=3"]},
    )  # fmt: skip
    common = ["objective.guidance=decoupled", "objective.guidance_scale=2"]
    cells = {cell.name: cell.recipe for cell in plan(recipe, common[1:], asked[:3], tmp_path)}
    assert [cell.objective.fidelity for cell in cells.values()] == [True, False, False]
    assert [cell.student.l2_to_start for cell in cells.values()] == [0, 0, 3]
    (plus,) = plan(recipe, common, asked[3:], tmp_path)
    assert plus.name == "diff-instruct++-0" and plus.recipe.name == "diff-instruct-" and plus.recipe.rewards
    assert (plus.recipe.objective.guidance, plus.recipe.objective.guidance_scale) == ("coupled", 3)
    cells[plus.name] = plus.recipe
    assert {cell.command for cell in cells.values()} == {"align"}


def test_what_gives_up_fidelity_gives_up_all_that_is_within_it(recipe, tmp_path):
    """A recipe with guidance beside fidelity, a critic's verdict and another divergence is compared with, too."""
    Path(recipe).write_text(TASTE)
    common = ["objective.guidance=decoupled", "objective.divergence=js", "objective.gan_weight=0.01"]
    for cell in plan(recipe, common, entries("reward-only", "reward-l2"), tmp_path):
        objective = cell.recipe.objective
        assert (objective.fidelity, objective.guidance, objective.gan_weight) == (False, "coupled", 0)
        assert objective.divergence == "reverse-kl" and not cell.recipe.needs_critic


def test_a_search_without_a_reward_is_refused_before_anything_is_trained(recipe, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["jdmctl", "compare", recipe, "--best-of", "4"])
    with pytest.raises(BadInputError, match="search for what a reward likes: quick.yaml has none"):
        cli.app()


@pytest.mark.slow
def test_ways_to_please_a_reward_stand_side_by_side(compare, recipe):
    """Trained with and without fidelity, and searched without training: each has its passes and the reward's row."""
    Path(recipe).write_text(TASTE)
    found = compare("--method", "jdm", "--method", "reward-only", "--best-of", "3", "--refine-steps", "2", "--num", "8")
    assert found["missing"] == []
    liked = {row["method"]: row for row in found["rows"] if row["metric"] == "reward warmth"}
    assert {method: row["passes"] for method, row in liked.items()} == {
        "true pictures": 0, "VAE round trip": 0, "student without control": 1, "best of 3": 3,
        "noise refined, 2 steps": 2, "jdm": 1, "reward-only": 1,
    }  # fmt: skip
    before = liked["student without control"]["value"]
    assert liked["best of 3"]["value"] > before and liked["noise refined, 2 steps"]["value"] >= before
    html = Path("out/report.html").read_text()
    for watched in ("reward warmth", "frechet", "kid", "diversity", "sharpness", "saturation", "accuracy"):
        assert f">{watched} (val)</text>" in html
