import numpy as np
import pytest

from jdmctl.tinyworld import raytrace
from jdmctl.tinyworld.captions import VOCABULARY, caption
from jdmctl.tinyworld.scenes import (
    COLORS,
    FLOORS,
    MAX_OBJECTS,
    NEAREST_DEPTH,
    SHAPES,
    Scenes,
    render,
)


@pytest.fixture(scope="module")
def scenes() -> Scenes:
    return render(70, seed=7)


def _assert_same(a: Scenes, b: Scenes) -> None:
    for name, values in vars(a).items():
        np.testing.assert_array_equal(values, getattr(b, name), err_msg=name)


def test_result_does_not_depend_on_processes(scenes):
    _assert_same(scenes, render(70, seed=7, processes=2))


def test_seeds_give_different_scenes(scenes):
    other = render(10, seed=8)
    same = (scenes.image[:10, None] == other.image[None]).all((2, 3, 4))
    assert not same.any()


def test_shapes_and_ranges(scenes):
    assert scenes.image.shape == (70, 64, 64, 3) and scenes.image.dtype == np.uint8
    assert scenes.inverse_depth.dtype == np.float16 and scenes.segmentation.dtype == np.uint8
    assert 0 <= scenes.inverse_depth.min() and scenes.inverse_depth.max() <= 1
    np.testing.assert_array_equal(scenes.inverse_depth == 0, scenes.segmentation == 0)
    present = np.arange(MAX_OBJECTS) < scenes.num_objects[:, None]
    for name, classes in (("shape", SHAPES), ("color", COLORS), ("striped", "no")):
        np.testing.assert_array_equal(getattr(scenes, name) >= 0, present)
        assert set(getattr(scenes, name)[present]) == set(range(len(classes)))
    assert set(scenes.floor) == set(range(len(FLOORS))) and set(scenes.checkered) == {0, 1}


def test_main_object_is_the_most_visible(scenes):
    seen = np.stack([(scenes.segmentation == label).sum((1, 2)) for label in (2, 3, 4)], -1)
    assert (seen[:, 0] >= 1.4 * seen[:, 1:].max(-1)).all()
    assert (np.where(seen > 0, seen, 12) >= 12).all()
    np.testing.assert_array_equal((seen > 0).sum(-1), scenes.num_objects)


def test_sphere_depth_agrees_with_closed_form(scenes):
    # The nearest of a pixel's four rays sets its depth; the sphere's centre is a radius high.
    direction, slant = (field.astype(float) for field in raytrace.pixel_rays(128))
    alone = (scenes.num_objects == 1) & (scenes.shape[:, 0] == SHAPES.index("sphere"))
    assert alone.any()
    for index in np.flatnonzero(alone):
        center = scenes.position[index, 0].astype(float)
        offset = raytrace.CAMERA - center
        middle = -offset @ direction
        half_squared = center[1] ** 2 - offset @ offset + middle**2
        along = np.where(half_squared > 0, middle - np.sqrt(np.maximum(half_squared, 0)), np.inf)
        inverse = (NEAREST_DEPTH / (along * slant)).reshape(64, 2, 64, 2).max((1, 3))
        drawn = scenes.segmentation[index] == 2
        edge = (drawn != (inverse > 0)).sum()
        assert edge <= 0.02 * drawn.sum()
        both = drawn & (inverse > 0)
        np.testing.assert_allclose(scenes.inverse_depth[index][both], inverse[both], atol=0.01)


@pytest.mark.parametrize("kind", range(len(SHAPES)))
def test_solids_lie_inside_their_bounding_spheres_and_distances_never_overshoot(kind):
    points = np.random.default_rng(0).uniform(-1.5, 1.5, (2, 3, 20000)).astype(np.float32)
    distance = raytrace._DISTANCE[kind]
    a, b = distance(points[0]), distance(points[1])
    assert (np.abs(a - b) <= np.linalg.norm(points[0] - points[1], axis=0) + 1e-5).all()
    inside = points[0][:, a < 0]
    assert inside.size and (np.linalg.norm(inside, axis=0) <= raytrace.BOUND[kind]).all()


def test_save_and_load(scenes, tmp_path):
    few = scenes.select(slice(0, 5))
    few.save(tmp_path / "scenes.npz")
    _assert_same(few, Scenes.load(tmp_path / "scenes.npz"))
    assert len(few) == 5


def test_captions_use_the_vocabulary_and_state_what_is_true(scenes):
    rng = np.random.default_rng(0)
    for index in range(len(scenes)):
        said = caption(scenes, index, rng, drop=0.4)
        words = said.text.split()
        assert set(words) <= set(VOCABULARY) and len(words) <= 30
        assert "shape" in said.stated or "color" in said.stated
        truth = {name: getattr(scenes, name)[index, 0] for name in ("shape", "color", "striped")}
        truth |= {name: getattr(scenes, name)[index] for name in ("floor", "checkered")}
        assert all(truth[name] == value for name, value in said.stated.items())
        assert ("checkered" in words) == ("checkered" in said.stated)
        main_words = said.text.split(" on ")[0].split()[:4]
        if "shape" in said.stated:
            assert SHAPES[said.stated["shape"]] in main_words
        if "color" in said.stated:
            assert list(COLORS)[said.stated["color"]] in main_words


def test_full_captions_name_every_object_and_relations_hold(scenes):
    rng = np.random.default_rng(0)
    holds = {
        "in front of": lambda right, away: away < 0,
        "behind": lambda right, away: away > 0,
        "to the left of": lambda right, away: right < 0,
        "to the right of": lambda right, away: right > 0,
    }
    for index in range(len(scenes)):
        text = caption(scenes, index, rng, drop=0).text
        for other in range(int(scenes.num_objects[index])):
            name = f"{list(COLORS)[scenes.color[index, other]]} {SHAPES[scenes.shape[index, other]]}"
            assert name in text
        relations = text.rsplit(" on ", 1)[0].split(" and ")
        assert len(relations) == max(1, scenes.num_objects[index] - 1)
        for other in range(1, int(scenes.num_objects[index])):
            right, _, away = scenes.position[index, 0] - scenes.position[index, other]
            said = [words for words in holds if f"{words} a" in relations[other - 1]]
            assert len(said) == 1 and holds[said[0]](right, away)
