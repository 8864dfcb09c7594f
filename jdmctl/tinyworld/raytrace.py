"""Tracing and shading of tiny-world layouts.

Each solid is a signed distance function in its own unit-sized coordinates, sphere-traced only along
the rays that meet its bounding sphere.  N is scenes, P is rays per scene, M is any
flat choice of rays.
"""

from collections.abc import Callable

import numpy as np

from jdmctl.tinyworld.layout import (
    BOUND,
    COLORS,
    CONE_BASE,
    FLOORS,
    FOOTPRINT,
    HALF_HEIGHT,
    MAX_OBJECTS,
    TORUS_RING,
    TORUS_TUBE,
    Layout,
)

CAMERA = np.array([0.0, 1.75, -3.3], np.float32)  # it never moves
_PITCH, _HALF_VIEW = np.radians(21.0), np.tan(np.radians(27.0))

_RGB = np.array(list(COLORS.values()), np.float32)
# Light stripes on dark colours, dark stripes on light ones: both must show.
_IS_DARK = _RGB @ np.array([0.3, 0.6, 0.1]) < 0.36
_BAND_RGB = np.where(_IS_DARK[:, None], 0.45 + 0.55 * _RGB, 0.52 * _RGB)
_FLOOR_RGB = np.array(list(FLOORS.values()), np.float32)
_BAND_PERIOD, _TILE = 0.66, 0.7

_HORIZON, _ZENITH = (0.86, 0.92, 0.97), (0.50, 0.70, 0.94)
_AMBIENT, _DIFFUSE = 0.42, 0.62
_MARCH_STEPS, _TOUCHING = 128, 1e-3  # so many for rays that graze a flat top
_SHADOW_LIFT = 0.015  # starts shadow rays off their surface, or it would shadow itself


def pixel_rays(resolution_px: int) -> tuple[np.ndarray, np.ndarray]:
    """Unit directions float32 [3, P], row by row, and their parts along the view axis [P]."""
    across = ((np.arange(resolution_px) + 0.5) / resolution_px * 2 - 1) * _HALF_VIEW
    x, y = (grid.ravel() for grid in np.meshgrid(across, -across))
    cos, sin = np.cos(_PITCH), np.sin(_PITCH)
    direction = np.stack([x, y * cos - sin, y * sin + cos])
    length = np.linalg.norm(direction, axis=0)
    return (direction / length).astype(np.float32), (1 / length).astype(np.float32)


def _norm(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.sqrt(a * a + b * b)  # several times faster than np.hypot


def _sphere(p: np.ndarray) -> np.ndarray:
    return np.sqrt((p * p).sum(0)) - 1


def _cube(p: np.ndarray) -> np.ndarray:
    edge = 0.05  # rounded, so that edges catch some light
    x, y, z = np.abs(p) - (HALF_HEIGHT[1].astype(np.float32) - edge)
    outside = np.sqrt(np.maximum(x, 0) ** 2 + np.maximum(y, 0) ** 2 + np.maximum(z, 0) ** 2)
    return outside + np.minimum(np.maximum(np.maximum(x, y), z), 0) - edge


def _cylinder(p: np.ndarray) -> np.ndarray:
    side = _norm(p[0], p[2]) - FOOTPRINT[2].astype(np.float32)
    cap = np.abs(p[1]) - HALF_HEIGHT[2].astype(np.float32)
    return np.minimum(np.maximum(side, cap), 0) + _norm(np.maximum(side, 0), np.maximum(cap, 0))


def _cone(p: np.ndarray) -> np.ndarray:
    flank = (2 * _norm(p[0], p[2]) + CONE_BASE * (p[1] - 1)) / float(np.hypot(2, CONE_BASE))
    return np.maximum(flank, -1 - p[1])


def _torus(p: np.ndarray) -> np.ndarray:
    return _norm(_norm(p[0], p[2]) - TORUS_RING, p[1]) - TORUS_TUBE


_DISTANCE: tuple[Callable[[np.ndarray], np.ndarray], ...] = (
    _sphere,
    _cube,
    _cylinder,
    _cone,
    _torus,
)


def _march(distance, origin, direction, start, stop) -> np.ndarray:
    """Where rays [3, M] first meet the solid from `start` to `stop` [M]; inf: they do not."""
    along, hit = start.copy(), np.full(len(start), np.inf, np.float32)
    moving = np.arange(len(start))
    for _ in range(_MARCH_STEPS):
        gap = distance(origin + along * direction)
        touching = gap < _TOUCHING
        hit[moving[touching]] = along[touching]
        along = along + gap
        still = np.flatnonzero(~touching & (along < stop))
        moving, along, stop = moving[still], along[still], stop[still]
        origin, direction = origin[:, still], direction[:, still]
    return hit


def cast(layout: Layout, origin, direction, wanted) -> tuple[np.ndarray, np.ndarray]:
    """Distance to the nearest solid, float32 [N, P] (inf: none), and its slot, int [N, P].

    `origin`, `direction`: [3, N or 1, P or 1]; `wanted`: bool [N, P], the rays to follow.
    """
    near = []
    for slot in range(MAX_OBJECTS):
        radius = layout.radius[:, slot]
        bound = (radius * BOUND[layout.shape[:, slot]]).astype(np.float32)[:, None]
        offset = origin - layout.center[:, slot].T[:, :, None]
        middle = -(offset * direction).sum(0)
        half_squared = bound**2 - (offset * offset).sum(0) + middle**2
        half = np.sqrt(np.maximum(half_squared, 0))
        meets = (bound > 0) & (half_squared > 0) & (middle + half > 0)  # an absent solid has no bound
        rays = np.flatnonzero(wanted & meets)
        scene, pixel = np.divmod(rays, wanted.shape[1])
        size, turn = radius[scene], layout.to_object[scene, slot]
        start = _turn(turn, _pick(offset, scene, pixel)) / size
        heading = _turn(turn, _pick(direction, scene, pixel))
        middle, half = middle.ravel()[rays] / size, half.ravel()[rays] / size
        near.append((start, heading, middle - half, middle + half, size, layout.shape[scene, slot], rays))

    # One march for each shape, over all slots: the rays are many but the numpy calls few.
    counts = [len(rays) for *_, rays in near]
    joined = (np.concatenate(part, -1) for part in zip(*near, strict=True))
    start, heading, enter, leave, size, shape, rays = joined
    found = np.empty_like(size)
    for kind, distance in enumerate(_DISTANCE):
        which = np.flatnonzero(shape == kind)
        span = np.maximum(enter[which], 0), leave[which]
        found[which] = _march(distance, start[:, which], heading[:, which], *span) * size[which]

    nearest, owner = np.full(wanted.size, np.inf, np.float32), np.zeros(wanted.size, np.int8)
    ends = np.cumsum(counts)[:-1]
    for slot in range(MAX_OBJECTS):
        hit, ray = np.split(found, ends)[slot], np.split(rays, ends)[slot]
        closer = hit < nearest[ray]
        nearest[ray[closer]], owner[ray[closer]] = hit[closer], slot
    return nearest.reshape(wanted.shape), owner.reshape(wanted.shape)


def _pick(field: np.ndarray, scene: np.ndarray, pixel: np.ndarray) -> np.ndarray:
    """[3, M] out of a field [3, N or 1, P or 1]."""
    return field[:, scene * (field.shape[1] > 1), pixel * (field.shape[2] > 1)]


def _turn(rotation: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    """Rotate vectors [3, M] by [M, 3, 3]."""
    return np.einsum("mij,jm->im", rotation, vectors)


def shade(layout: Layout, origin, direction, reach, label) -> np.ndarray:
    """Colours float32 [3, N, P] in 0..1 of rays that end after `reach` on `label`, both [N, P]."""
    point = origin + direction * np.where(label > 0, reach, 0)
    albedo = _floor_albedo(layout, point)
    normal = np.zeros_like(point)
    normal[1] = 1
    scene, pixel = np.nonzero(label >= 2)
    slot = label[scene, pixel].astype(np.int64) - 2
    shape = layout.shape[scene, slot]
    for kind, distance in enumerate(_DISTANCE):
        m = np.flatnonzero(shape == kind)
        hit, solid = (slice(None), scene[m], pixel[m]), (scene[m], slot[m])
        turn, color = layout.to_object[solid], layout.color[solid]
        local = _turn(turn, point[hit] - layout.center[solid].T) / layout.radius[solid]
        normal[hit] = _turn(turn.transpose(0, 2, 1), _normal(distance, local))
        band = _bands(distance, local) & (layout.striped[solid] == 1)
        albedo[hit] = np.where(band, _BAND_RGB.T[:, color], _RGB.T[:, color])

    light = layout.light.T[:, :, None]
    facing = np.maximum((normal * light).sum(0), 0)
    blocked, _ = cast(layout, point + _SHADOW_LIFT * normal, light, (label > 0) & (facing > 0))
    lit = albedo * (_AMBIENT + _DIFFUSE * facing * np.isinf(blocked))
    horizon, zenith = (np.array(c, np.float32)[:, None, None] for c in (_HORIZON, _ZENITH))
    fog = np.where(label == 1, 1 - np.exp(-0.06 * np.maximum(reach - 2, 0)), 0)
    sky = horizon + (zenith - horizon) * np.clip(direction[1] * 7, 0, 1)
    return np.clip(np.where(label > 0, lit + (horizon - lit) * fog, sky), 0, 1)


def _floor_albedo(layout: Layout, point: np.ndarray) -> np.ndarray:
    """Colours [3, N, P] of the floor at `point`; a checker fades with distance."""
    base = _FLOOR_RGB[layout.floor].T[:, :, None]
    angle, shift_x, shift_z = (pose[:, None] for pose in layout.checker_pose.T)
    cos, sin, wave = np.cos(angle), np.sin(angle), np.float32(np.pi / _TILE)
    x, z = point[0], point[2]
    product = np.sin(wave * (cos * x - sin * z) + shift_x) * np.sin(wave * (sin * x + cos * z) + shift_z)
    # Tiles smaller than a pixel or two would be noise: far ones blend into the base colour.
    fade = np.clip((6 - (z - CAMERA[2])) / 3, 0, 1) * layout.checkered[:, None]
    return base * (1 + 0.22 * fade * np.clip(6 * product, -1, 1)).astype(np.float32)


def _bands(distance, local: np.ndarray) -> np.ndarray:
    """bool [M]: whether points [3, M] of a solid lie on the second colour of its stripes."""
    across = local[0] if distance is _torus else local[1]  # a lying torus is too thin for bands in y
    return np.sin(across * (2 * np.pi / _BAND_PERIOD)) > 0


def _normal(distance, local: np.ndarray) -> np.ndarray:
    """Unit gradient [3, M] of a distance function, by central differences."""
    steps = np.float32(1e-3) * np.eye(3, dtype=np.float32)[:, :, None]
    slope = np.stack([distance(local + step) - distance(local - step) for step in steps])
    return slope / np.maximum(np.sqrt((slope * slope).sum(0)), 1e-9)
