"""What runs took, in words, tables and rows; from records as runs leave them, without any training."""

import json
import re
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from jdmctl.comparison import cost as counting
from jdmctl.comparison.cells import Cell, Entry, plan
from jdmctl.comparison.cost import Cost
from jdmctl.comparison.cost_tables import cost_tables
from jdmctl.comparison.estimate import estimate
from jdmctl.comparison.heldout import Asked
from jdmctl.comparison.report import Arena, report
from jdmctl.comparison.scenes import Scenes
from jdmctl.comparison.scoring import Drawn, Scored
from jdmctl.comparison.searches import MorePasses
from jdmctl.comparison.spent import cost_rows, goal, in_short, ordinary, shares, total_flops
from jdmctl.evaluation.results import Row, merge
from jdmctl.recipe_files import to_yaml

RECIPE = """
name: quick
model: {teacher: tiny, student: tiny}
controls: [{name: canny}]
training: {num_steps: 100, batch_size: 4}
data: {source: tiny}
"""
OF_DSM = Cost({"denoiser": (1, 1), "encoder": (1, 0)}, 10**9, {"denoiser": 10**9})
OF_OTHERS = Cost(
    {"student": (3, 1)}, 4 * 10**9, {"student": 3 * 10**9, "canny energy": 10**9 - 10**7, "all else": 10**7}
)
SCENES = SimpleNamespace(world="tiny", controls={"canny": None}, is_better_higher=True)


def trained(cell: Cell, minutes: float, score: float) -> None:
    """What a run leaves that took so long and was validated once, half way; and its counted cost."""
    for name in ["controlnet", cell.recipe.student_folder]:
        (cell.folder / name).mkdir(parents=True, exist_ok=True)
    (cell.folder / "recipe.yaml").write_text(to_yaml(cell.recipe))
    step = {"event": "step", "stage": "training", "seconds": 30 * minutes, "memory_bytes": 2 * 10**9}
    validation = {"event": "validation", "stage": "training", "step": 50, "adherence": {"canny f1": score}}
    records = [step | {"step": 50}, validation, step | {"step": 100}]
    (cell.folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, records)))
    cost = OF_DSM if cell.recipe.method == "dsm" else OF_OTHERS
    values = {"counted": counting.what_is_counted(cell), **asdict(cost)}
    cell.folder.with_name(f"{cell.name}.cost.json").write_text(json.dumps(values))


def cells_of(tmp_path, monkeypatch, *methods: str, **changes: list[str]) -> dict[str, Cell]:
    monkeypatch.chdir(tmp_path)
    Path("quick.yaml").write_text(RECIPE)
    cells = plan("quick.yaml", [], [Entry.parse(text, changes) for text in methods], tmp_path / "out")
    return {cell.name: cell for cell in cells}


@pytest.mark.parametrize("method", ["redistill", "dmd-control", "implicit"])
def test_a_controlnet_that_was_trained_beside_is_counted(tmp_path, monkeypatch, method):
    """100 updates of 4 GFLOP and, before, 100 of 1 for the ControlNet; 8 minutes after 3."""
    cells = cells_of(tmp_path, monkeypatch, "dsm", method)
    for name, minutes in (("dsm-0", 3), (f"{method}-0", 8)):
        trained(cells[name], minutes, 0.5)
    own = cells[f"{method}-0"]
    assert total_flops(own, OF_OTHERS) == 5e11
    assert own.history().seconds == 60 * 11
    assert ordinary(own) == "its teacher's is dsm-0's, counted"
    rows = {row.metric: row.value for row in cost_rows([own], {method: OF_OTHERS}, SCENES, "canny f1", "")}
    assert rows["training TFLOP"] == rows["main stage TFLOP"] == 0.5
    assert rows["training TFLOP of its ControlNet"] == pytest.approx(0.1)
    assert rows["training minutes"] == 11 and rows["training minutes of its ControlNet"] == 3


def test_a_controlnet_that_is_given_is_not(tmp_path, monkeypatch):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "config.json").write_text("{}")
    given = [f"controls.canny.teacher_branch={tmp_path / 'mine'}"]
    begins = ["controls.canny.init=tiny/controlnet_canny"]
    cells = cells_of(tmp_path, monkeypatch, "jdm", "redistill", "dsm", redistill=given, dsm=given, jdm=begins)
    trained(cells["redistill-0"], 8, 0.5)
    assert total_flops(cells["redistill-0"], OF_OTHERS) == 4e11
    assert ordinary(cells["redistill-0"]) == "its teacher's is given, not counted"
    assert ordinary(cells["dsm-0"]) == "given: its training is not counted"
    assert ordinary(cells["jdm-0"]) == "its branch begins at a given one, not counted"
    rows = {row.metric for row in cost_rows([cells["redistill-0"]], {"redistill": OF_OTHERS}, SCENES, "canny f1", "")}
    assert "training TFLOP" in rows and not any("its ControlNet" in metric for metric in rows)


def test_rows_of_cost(tmp_path, monkeypatch):
    """Two seeds of 4 and 6 minutes, validated half way at 0.8 and 0.7; the goal is 0.8 less 2 %, which one reached."""
    cells = cells_of(tmp_path, monkeypatch, "jdm:2", "dsm")
    for name, minutes, score in (("jdm-0", 4, 0.8), ("jdm-1", 6, 0.7), ("dsm-0", 2, 0.9)):
        trained(cells[name], minutes, score)
    listed = list(cells.values())
    assert goal(listed, higher_is_better=True) == pytest.approx(0.784)
    found = cost_rows(listed, {"jdm": OF_OTHERS, "dsm": OF_DSM}, SCENES, "canny f1", "jdmctl compare quick")
    rows = {(row.method, row.metric): row for row in found}
    minutes = rows["jdm", "training minutes"]
    assert (minutes.value, minutes.low, minutes.high, minutes.seeds, minutes.n) == (5, 4, 6, [0, 1], 2)
    assert rows["jdm", "GFLOP of canny energy an update"].value == 0.99
    assert rows["jdm", "passes of student an update"].value == 3
    assert rows["jdm", "backward passes of student an update"].value == 1
    assert rows["jdm", "peak memory GB"].value == 2
    assert rows["jdm", "GFLOP an update"].seeds == [0]
    assert rows["ControlNet plugged in", "minutes to canny f1 0.784"].value == 1
    assert ("jdm", "minutes to canny f1 0.784") not in rows
    given = cost_rows(listed, {"jdm": OF_OTHERS, "dsm": OF_DSM}, SCENES, "canny f1", "", 0.7)
    to_it = {row.method: row for row in given if row.metric == "minutes to canny f1 0.7"}
    assert (to_it["jdm"].value, to_it["jdm"].low, to_it["jdm"].high) == (2.5, 2, 3)
    assert "<th>minutes to canny f1 0.7</th>" in cost_tables(listed, {}, "canny f1", True, 0.7)
    assert {row.metric for row in in_short(found)} == {
        "GFLOP an update", "training TFLOP", "main stage TFLOP", "training minutes",
        "peak memory GB", "minutes to canny f1 0.784",
    }  # fmt: skip


def test_updates_are_those_that_were_made(tmp_path, monkeypatch):
    """100 of 4 GFLOP are planned, after at most 60 of 2; an alarm ended one seed at 40, after 20. A warm-up that has no
    updates, and the seed that is not trained yet, have as many as are planned."""
    cells = cells_of(tmp_path, monkeypatch, "jdm:3")
    first, second, third = cells.values()
    for cell in (first, second):
        trained(cell, 4, 0.8)
    step = {"event": "step", "seconds": 60.0}
    records = [step | {"stage": "fake-score-warmup", "step": n} for n in (10, 20)]
    records += [step | {"stage": "training", "step": n} for n in (20, 40)]
    (first.folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, records)))
    cost = replace(OF_OTHERS, warmups={"dsm-warmup": (10**9, 0), "fake-score-warmup": (2 * 10**9, 60)})
    assert [counting.main_flops(cell, cost) for cell in cells.values()] == [1.6e11, 4e11, 4e11]
    assert [counting.training_flops(cell, cost) for cell in cells.values()] == [2e11, 5.2e11, 5.2e11]
    found = cost_rows([first, second], {"jdm": cost}, SCENES, "canny f1", "")
    rows = {row.metric: row for row in found}
    assert rows["training TFLOP"].value == pytest.approx(0.36) and rows["training TFLOP"].seeds == [0, 1]
    assert rows["main stage TFLOP"].value == pytest.approx(0.28)
    monkeypatch.setattr("jdmctl.comparison.estimate.countable_cost", lambda cell: cost)
    left = estimate(list(cells.values()))[third.name].seconds_left
    assert left == pytest.approx(5.2e11 * (240 + 240) / 7.2e11)
    table = cost_tables([first, third], {"jdm": cost}, "canny f1", True)
    assert "<td>40</td>" in table and "<td>100</td>" in table


def test_an_update_network_by_network(tmp_path, monkeypatch):
    """Operations with passes forward + backward; what makes no pass has operations alone; a hundredth is not told."""
    assert shares(OF_OTHERS) == "student 3, canny energy 0.99"
    cells = cells_of(tmp_path, monkeypatch, "jdm", "dsm")
    trained(cells["jdm-0"], 4, 0.8)
    html = cost_tables(list(cells.values()), {"jdm": OF_OTHERS, "dsm": OF_DSM}, "canny f1", True)
    head = "<th>method</th><th>student</th><th>canny energy</th><th>all else</th><th>denoiser</th><th>encoder</th>"
    assert head in html
    assert "<td>jdm</td><td>3 (3 + 1)</td><td>0.99</td><td>0.01</td><td></td><td></td>" in html
    assert "<td>ControlNet plugged in</td><td></td><td></td><td></td><td>1 (1 + 1)</td><td>0 (1 + 0)</td>" in html
    assert "minutes to canny f1 0.784" in html and "<td>0.4</td>" in html  # TFLOP: 100 updates of 4 GFLOP


def test_a_report_has_one_name_for_a_run_and_that_of_the_headline(tmp_path, monkeypatch):
    """A control's headline need not be its first score; a method has one colour, a run the name of its rows."""
    monkeypatch.setattr("jdmctl.comparison.page._pictures", lambda *_: "")
    cells = cells_of(tmp_path, monkeypatch, "jdm", "dsm")
    for cell, score in zip(cells.values(), (0.8, 0.7), strict=True):
        trained(cell, 4, score)
    control: Any = SimpleNamespace(headline="f1", higher_is_better=True)
    pictures: Any = SimpleNamespace(images=torch.zeros(8, 3, 4, 4))
    judge: Any = SimpleNamespace(name="a judge")
    scenes = Scenes("tiny", pictures, 8, {"canny": control}, {}, judge, torch.zeros(8, 2), None)
    drawn = [Drawn(cell.called, 1, (0,), (), 4.0) for cell in cells.values()]
    rows = [
        Row("tiny", "canny", one.method, 1, metric, 0.5, 0.4, 0.6, [0], 8, "")
        for one in drawn
        for metric in ("canny precision", "canny f1", "frechet")
    ]
    monkeypatch.setattr("jdmctl.comparison.report.score", lambda *_: Scored(scenes, drawn, rows, {}))
    arena = Arena("quick", tmp_path, tuple(cells.values()))
    other = report(replace(arena, goal=0.75), Asked(), MorePasses(), "", print)
    assert "minutes to canny f1 0.75" in {row.metric for row in other.spent}
    assert "minutes to canny f1 0.75" in other.file.read_text()
    made = report(arena, Asked(), MorePasses(), "", print)
    assert "minutes to canny f1 0.784" in {row.metric for row in made.spent}
    html = made.file.read_text()
    assert "minutes to canny f1 0.784" in html and "canny f1 (val)" in html and "canny precision (val)" not in html
    assert "<td>ControlNet plugged in (dsm-0)</td><td>done</td>" in html and ">dsm" not in html
    assert len(set(re.findall(r'fill="(#\w+)">ControlNet plugged in', html))) == 1


def test_reference_pictures_against_themselves():
    """4 corners of a square of side 2: k(x, x) = (2 / 2 + 1)^3 = 8, of the others 1, 1 and 0, whose mean is 2 / 3; so
    KID is -2 (8 - 2 / 3) / 4. They meet no other row's number of pictures."""
    corners = torch.tensor([[1.0, 1], [1, -1], [-1, 1], [-1, -1]], dtype=torch.float64)
    judge: Any = SimpleNamespace(name="a judge")
    pictures: Any = SimpleNamespace(images=torch.zeros(8, 3, 4, 4))
    ideal = Scenes("tiny", pictures, 8, {}, {}, judge, corners, None).ideal("jdmctl world report")
    assert {row.metric: row.value for row in ideal} == {
        "frechet": 0, "kid": pytest.approx(-2 * (8 - 2 / 3) / 4), "precision": 1, "recall": 1,
    }  # fmt: skip
    assert all(row.low == row.value == row.high and row.n == 4 for row in ideal)
    others = [replace(row, method="true pictures", n=8) for row in ideal]
    assert merge(ideal, others) == merge(others, ideal)[4:] + others == ideal + others


def test_without_any_validation_there_is_no_goal(tmp_path, monkeypatch):
    cells = list(cells_of(tmp_path, monkeypatch, "jdm").values())
    assert goal(cells, higher_is_better=False) is None
    assert "minutes to canny f1 <" in cost_tables(cells, {}, "canny f1", False)
