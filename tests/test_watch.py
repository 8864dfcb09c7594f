"""Alarms of a run with rewards: each rises for its own reason, and says what to do."""

import json

import pytest
from PIL import Image

from jdmctl.training.curve import draw_curve, read_curves
from jdmctl.training.watch import Watch

START = {"liked": 0.0, "held": 1.0, "frechet": 4.0, "diversity": 2.0, "sharpness": 1.0, "saturation": 0.4,
         "accuracy": 0.9}  # fmt: skip
SPREADS = {"liked": 0.5, "held": 0.2}


def watch(*changes: dict) -> tuple[Watch, list[dict]]:
    one = Watch(("liked",), ("held",))
    return one, [one.look({**START, **change}, SPREADS) for change in ({}, *changes)]


def test_a_reward_that_is_earned_raises_nothing():
    one, looks = watch({"liked": 1.0, "held": 1.1}, {"liked": 2.0, "held": 1.2, "frechet": 5.0})
    assert [look["alarm"] for look in looks] == [0, 0, 0] and one.advice() == ""
    assert [look["score"] for look in looks] == pytest.approx([0, 0.5, 1.0])  # held-out, in its spreads


@pytest.mark.parametrize(
    "change, word",
    [
        ({"liked": 2.0, "held": 0.9}, "held, which is not trained on, fell from 1 to 0.9"),
        ({"frechet": 6.1}, "distance to true pictures grew from 4 to 6.1"),
        ({"diversity": 1.3}, "grew alike"),
        ({"sharpness": 1.6}, "sharpness"),
        ({"sharpness": 0.6}, "sharpness"),
        ({"saturation": 0.7}, "saturation"),
        ({"accuracy": 0.75}, "shown less often: 0.75, was 0.90"),
    ],
)
def test_each_alarm(change, word):
    one, looks = watch(change)
    assert looks[-1]["alarm"] == 1
    assert word in one.advice() and "lower rewards.liked.ratio" in one.advice()


def test_grey_and_flat_pictures_may_stay_as_they_are():
    """Nothing is divided by 0, and of next to nothing twice as much is no alarm; what becomes visible is one."""
    one = Watch(("liked",), ())
    for saturation in (0.0, 0.0, 0.01):
        assert one.look({**START, "sharpness": 0.0, "saturation": saturation}, SPREADS)["alarm"] == 0
    assert one.look({**START, "sharpness": 0.0, "saturation": 0.1}, SPREADS)["alarm"] == 1


def test_a_held_out_reward_may_fall_with_the_trained_one_and_within_its_noise():
    for change in ({"liked": -1.0, "held": 0.5}, {"liked": 1.0, "held": 0.96}):
        assert watch(change)[1][-1]["alarm"] == 0


def test_alarms_are_counted_in_a_row_and_the_best_checkpoint_is_one_without():
    bad = {"liked": 9.0, "held": 0.5}
    _, looks = watch({"liked": 1.0, "held": 1.1}, bad, bad, {"liked": 1.0, "held": 1.1}, bad)
    assert [look["alarm"] for look in looks] == [0, 0, 1, 2, 0, 1]
    scores = [look["score"] for look in looks]
    assert max(scores) == scores[1] and scores[2] < scores[0]


def test_two_things_that_are_wrong_in_turn_are_not_one_that_stays_wrong():
    """The fourth look has both, of which one stays: twice in a row."""
    far, sharp = {"frechet": 9.0}, {"sharpness": 3.0}
    _, looks = watch(far, sharp, far, far | sharp)
    assert [look["alarm"] for look in looks] == [0, 1, 1, 1, 2]


@pytest.mark.parametrize("name", ["held", "frechet", "diversity", "sharpness", "saturation", "accuracy"])
def test_what_is_no_number_is_wrong(name):
    """As a student begins, too: else nothing that comes later could be compared with it, and nothing would be told."""
    one, looks = watch({name: float("nan")})
    assert looks[-1]["alarm"] == 1 and f"{name} is nan" in one.advice()
    assert Watch(("liked",), ("held",)).look({**START, name: float("nan")}, SPREADS)["alarm"] == 1


def test_without_a_held_out_reward_the_trained_one_scores_and_the_rest_still_watches():
    one = Watch(("liked",), ())
    one.look(START, SPREADS)
    assert one.look({**START, "liked": 1.0}, SPREADS)["score"] == pytest.approx(2.0)
    assert one.look({**START, "liked": 9.0, "frechet": 9.0}, SPREADS)["alarm"] == 1


def test_what_it_remembers_is_saved():
    one, _ = watch({"liked": 2.0, "held": 0.9})
    two = Watch(("liked",), ("held",))
    two.load_state_dict(one.state_dict())
    assert two.problems() == one.problems() and two.problems()
    assert two.look({**START, "liked": 2.0, "held": 0.9}, {})["alarm"] == 2


def test_curves_show_all_that_is_watched_and_where_it_was_wrong(tmp_path):
    """Two headlines and two that only watch: four panels of one height. A step that a resumed run looked at again
    stands as it was seen last, without its old alarm."""

    def look(step, liked, **more):
        drawn = {"adherence": {"liked": liked, "frechet": 4.0}, "watched": {"sharpness": 1.0, "saturation": 0.4}}
        return {"event": "validation", "stage": "training", "step": step, **drawn, **more}

    looks = [look(0, 0.0), look(10, 9.0, alarm=1), look(10, 1.0, alarm=0), look(20, 2.0, alarm=1)]
    metrics = tmp_path / "metrics.jsonl"
    metrics.write_text("\n".join(json.dumps(record) for record in looks))
    panels, alarms = read_curves(metrics)
    assert panels["liked"] == {0: 0.0, 10: 1.0, 20: 2.0} and alarms == [20]
    assert list(panels) == ["liked", "frechet", "sharpness", "saturation"]
    draw_curve(metrics, tmp_path / "alarmed.png")
    metrics.write_text(json.dumps(look(0, 0.0) | {"watched": {}}))
    draw_curve(metrics, tmp_path / "quiet.png")
    alarmed, quiet = (Image.open(tmp_path / f"{name}.png") for name in ("alarmed", "quiet"))
    assert alarmed.height == 2 * quiet.height
    red = [(255, 0, 0) in {color for _, color in image.getcolors(10**6)} for image in (alarmed, quiet)]
    assert red == [True, False]
