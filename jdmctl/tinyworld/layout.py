"""What a tiny-world scene holds: one to three striped or plain solids on a floor, drawn at random.

World axes: x to the right, y up (floor at 0), z away from the camera.
Below, N is scenes and K is MAX_OBJECTS; slot 0 holds the main, larger solid.
"""

from dataclasses import dataclass, fields

import numpy as np

SHAPES = ("sphere", "cube", "cylinder", "cone", "torus")
COLORS = {
    "red": (0.90, 0.10, 0.10), "green": (0.10, 0.68, 0.15), "blue": (0.12, 0.25, 0.95),
    "yellow": (0.98, 0.88, 0.08), "purple": (0.58, 0.16, 0.80), "orange": (1.00, 0.48, 0.04),
    "white": (0.96, 0.96, 0.96), "teal": (0.05, 0.70, 0.70),
}  # fmt: skip
FLOORS = {
    "grey": (0.52, 0.52, 0.52), "tan": (0.80, 0.69, 0.50), "pink": (0.92, 0.64, 0.72),
    "navy": (0.16, 0.19, 0.38), "olive": (0.42, 0.44, 0.20),
}  # fmt: skip
MAX_OBJECTS = 3

TORUS_RING, TORUS_TUBE, CONE_BASE = 0.74, 0.26, 0.9
# Of the unit-sized solids, in the order of SHAPES (a torus lies with its axis along y).
HALF_HEIGHT = np.array([1.0, 0.78, 0.9, 1.0, TORUS_TUBE])
FOOTPRINT = np.array([1.0, 1.11, 0.75, CONE_BASE, 1.0])
BOUND = np.array([1.0, 1.36, 1.18, 1.35, 1.0])  # radius of a sphere about each

_COUNT_ODDS = (0.4, 0.4, 0.2)
_STRIPED_ODDS, _CHECKERED_ODDS = 0.2, 0.35
_PROPOSALS = 24  # places drawn for a scene at once, to take the first that fits


@dataclass(frozen=True)
class Layout:
    """The geometry and the look of N scenes, before rendering."""

    num_objects: np.ndarray  # [N]
    shape: np.ndarray  # [N, K], as the next two; absent objects have radius 0
    color: np.ndarray
    striped: np.ndarray
    radius: np.ndarray  # float32 [N, K], the size of one unit
    center: np.ndarray  # float32 [N, K, 3]
    to_object: np.ndarray  # float32 [N, K, 3, 3], rotation from world to object axes
    floor: np.ndarray  # [N]
    checkered: np.ndarray  # [N]
    checker_pose: np.ndarray  # float32 [N, 3]: angle, offset along x, offset along z
    light: np.ndarray  # float32 [N, 3], unit vector towards the light


def sample_contents(rng: np.random.Generator, n: int) -> dict[str, np.ndarray]:
    each = (n, MAX_OBJECTS)
    num_objects = 1 + rng.choice(MAX_OBJECTS, n, p=_COUNT_ODDS)
    present = np.arange(MAX_OBJECTS) < num_objects[:, None]
    return {
        "num_objects": num_objects,
        "shape": np.where(present, rng.integers(0, len(SHAPES), each), -1),
        "color": np.where(present, rng.integers(0, len(COLORS), each), -1),
        "striped": np.where(present, rng.random(each) < _STRIPED_ODDS, -1),
        "floor": rng.integers(0, len(FLOORS), n),
        "checkered": (rng.random(n) < _CHECKERED_ODDS).astype(np.int64),
    }


def sample_layout(rng: np.random.Generator, contents: dict[str, np.ndarray]) -> tuple[Layout, np.ndarray]:
    """Place the solids: the layout, and bool [N] whether they stand apart and in view."""
    shape = contents["shape"]
    n = len(shape)
    each = (n, MAX_OBJECTS)
    radius = rng.uniform(0.25, 0.42, each)
    radius[:, 0] = rng.uniform(0.55, 0.8, n)
    radius[shape < 0] = 0
    upright = (shape == SHAPES.index("torus")) & (rng.random(each) < 0.5)
    # An upright torus faces the camera, more or less, for its hole to be seen.
    yaw = np.where(upright, rng.uniform(-0.6, 0.6, each), rng.uniform(-np.pi, np.pi, each))

    reach = FOOTPRINT[shape] * radius
    places = _propose_places(rng, reach)
    fits = _fit(places, reach)
    best = fits.argmax(1)
    place = np.take_along_axis(places, best[:, None, None, None], 1)[:, 0]
    lift = radius * np.where(upright, 1.0, HALF_HEIGHT[shape])
    center = np.stack([place[..., 0], lift, place[..., 1]], -1)

    azimuth, height = rng.uniform(-1.7, 1.7, n), rng.uniform(0.7, 1.25, n)
    light = (np.cos(height) * np.sin(azimuth), np.sin(height), -np.cos(height) * np.cos(azimuth))
    layout = Layout(
        radius=radius.astype(np.float32),
        center=center.astype(np.float32),
        to_object=_rotation(yaw, upright),
        checker_pose=rng.uniform(0, 2 * np.pi, (n, 3)).astype(np.float32),
        light=np.stack(light, -1).astype(np.float32),
        **contents,
    )
    return layout, np.asarray(fits.any(1))


def _propose_places(rng: np.random.Generator, reach: np.ndarray) -> np.ndarray:
    """[N, _PROPOSALS, K, 2]: (x, z) of the main solid, and of the others around it."""
    each = (len(reach), _PROPOSALS, MAX_OBJECTS)
    main = rng.uniform((-0.6, -0.3), (0.6, 0.7), (*each[:2], 2))
    around = rng.uniform(-np.pi, np.pi, each)
    away = (reach[:, :1] + reach)[:, None] * rng.uniform(1.0, 1.6, each)
    away[..., 0] = 0
    return main[:, :, None] + away[..., None] * np.stack([np.cos(around), np.sin(around)], -1)


def _fit(places: np.ndarray, reach: np.ndarray) -> np.ndarray:
    """bool [N, _PROPOSALS]: no two footprints overlap (as discs) and all are about in view."""
    x, z = places[..., 0], places[..., 1]
    absent = reach[:, None] == 0
    fits = (absent | ((np.abs(x) < 1.45 + 0.45 * z) & (z > -1.4))).all(-1)
    for a, b in ((0, 1), (0, 2), (1, 2)):
        gap = np.linalg.norm(places[:, :, a] - places[:, :, b], axis=-1)
        fits &= absent[..., b] | (gap >= (reach[:, a] + reach[:, b])[:, None])
    return fits


def _rotation(yaw: np.ndarray, upright: np.ndarray) -> np.ndarray:
    """World-to-object rotations float32 [..., 3, 3]; upright solids have their y along z."""
    cos, sin, zero = np.cos(yaw), np.sin(yaw), np.zeros_like(yaw)
    side, up, far = ((cos, zero, -sin), (zero, zero + 1, zero), (sin, zero, cos))
    rows = np.stack([np.stack(row, -1) for row in (side, up, far)], -2)
    tipped = rows[..., [0, 2, 1], :] * np.array([1, 1, -1])[:, None]
    return np.where(upright[..., None, None], tipped, rows).astype(np.float32)


def arrays(record) -> dict[str, np.ndarray]:
    return {field.name: getattr(record, field.name) for field in fields(record)}


def select(record, indices):
    return type(record)(**{name: values[indices] for name, values in arrays(record).items()})
