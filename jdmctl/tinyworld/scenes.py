"""The tiny world: seeded pictures of solids on a floor, with depth, segmentation and classes.

>>> scenes = render(num_scenes=1000, seed=0, processes=2)
"""

from dataclasses import dataclass, fields
from multiprocessing import Pool

import numpy as np

from jdmctl.tinyworld.layout import (
    COLORS,
    FLOORS,
    MAX_OBJECTS,
    SHAPES,
    Layout,
    arrays,
    sample_contents,
    sample_layout,
    select,
)
from jdmctl.tinyworld.raytrace import CAMERA, cast, pixel_rays, shade

__all__ = ["COLORS", "FLOORS", "MAX_OBJECTS", "NEAREST_DEPTH", "SHAPES", "Scenes", "render"]

NEAREST_DEPTH = 1.6  # no visible point is closer to the camera plane than this
_DOMINANCE, _LEAST_VISIBLE = 1.4, 12  # of the main solid; of the others, in pixels at 64 x 64
_CHUNK = 64  # scenes per seed: enough to amortise numpy calls, few enough for memory


@dataclass(frozen=True)
class Scenes:
    """N rendered scenes and what is in them; object 0 is the main, most visible one.

    Class indices follow SHAPES, COLORS and FLOORS; an absent object has -1 (position: nan).
    """

    image: np.ndarray  # uint8 [N, res, res, 3]
    inverse_depth: np.ndarray  # float16 [N, res, res], NEAREST_DEPTH / depth along the view axis; sky 0
    segmentation: np.ndarray  # uint8 [N, res, res]: 0 sky, 1 floor, 2 main object, 3 and 4 the others
    num_objects: np.ndarray  # int64 [N], 1 to 3
    shape: np.ndarray  # int64 [N, 3]
    color: np.ndarray  # int64 [N, 3]
    striped: np.ndarray  # int64 [N, 3], 0 or 1
    floor: np.ndarray  # int64 [N]
    checkered: np.ndarray  # int64 [N], 0 or 1
    position: np.ndarray  # float32 [N, 3, 3]: world centre (x, y, z) of each object

    def __len__(self) -> int:
        return len(self.image)

    def select(self, indices) -> "Scenes":
        """The scenes at `indices` (an integer array, a boolean mask or a slice)."""
        return select(self, indices)

    def save(self, path) -> None:
        np.savez_compressed(path, **arrays(self))  # type: ignore[arg-type]  # allow_pickle is an array before numpy 2.1

    @classmethod
    def load(cls, path) -> "Scenes":
        with np.load(path, allow_pickle=False) as archive:
            return cls(**{field.name: archive[field.name] for field in fields(cls)})


def render(num_scenes: int, seed: int, processes: int = 1, resolution_px: int = 64) -> Scenes:
    """Render random scenes; the result depends on every argument but `processes`.

    Fewer scenes are the first of more only in whole chunks of 64: each chunk is drawn at once, and a smaller one is
    another.
    """
    jobs = [(min(_CHUNK, num_scenes - first), (seed, first), resolution_px) for first in range(0, num_scenes, _CHUNK)]
    if processes > 1:
        with Pool(processes) as pool:
            return _join(pool.starmap(_render_chunk, jobs, chunksize=1))
    return _join([_render_chunk(*job) for job in jobs])


def _render_chunk(num_scenes: int, seed: tuple[int, int], resolution_px: int) -> Scenes:
    rng = np.random.default_rng(seed)
    contents = sample_contents(rng, num_scenes)
    waiting, done, parts = np.arange(num_scenes), [], []
    # Only the geometry of a rejected scene is drawn again: the classes keep their odds.
    while len(waiting):
        layout, fits = sample_layout(rng, {name: values[waiting] for name, values in contents.items()})
        scenes, clear = _render_layout(select(layout, fits), resolution_px)
        accepted = np.flatnonzero(fits)[clear]
        parts.append(scenes)
        done.append(waiting[accepted])
        waiting = np.delete(waiting, accepted)
    return _join(parts).select(np.argsort(np.concatenate(done)))


def _render_layout(layout: Layout, resolution_px: int) -> tuple[Scenes, np.ndarray]:
    """Render those scenes in which all solids show as they should, and give their indices."""
    direction, slant = pixel_rays(2 * resolution_px)
    direction, origin = direction[:, None], CAMERA[:, None, None]
    on_screen = np.ones((len(layout.floor), direction.shape[-1]), bool)
    reach, owner = cast(layout, origin, direction, on_screen)
    to_floor = np.where(direction[1] < 0, -CAMERA[1] / np.minimum(direction[1], -1e-6), np.inf)
    label = np.where(reach < to_floor, owner + 2, np.isfinite(to_floor)).astype(np.uint8)
    reach = np.minimum(reach, to_floor)

    # A pixel's depth and label are its nearest sample's: a mean would lie between surfaces.
    depth, label_px = _in_pixels(reach * slant, resolution_px), _in_pixels(label, resolution_px)
    front = depth.argmin(-1)[..., None]
    depth = np.take_along_axis(depth, front, -1)[..., 0]
    segmentation = np.take_along_axis(label_px, front, -1)[..., 0]
    clear = np.flatnonzero(_all_show(segmentation, layout.num_objects))

    layout = select(layout, clear)
    samples = shade(layout, origin, direction, reach[clear], label[clear])
    image = _in_pixels(samples, resolution_px).mean(-1).transpose(1, 2, 3, 0)
    scenes = Scenes(
        image=np.round(image * 255).astype(np.uint8),
        inverse_depth=np.minimum(NEAREST_DEPTH / depth[clear], 1).astype(np.float16),
        segmentation=segmentation[clear],
        position=np.where(layout.shape[..., None] < 0, np.float32(np.nan), layout.center),
        num_objects=layout.num_objects,
        shape=layout.shape,
        color=layout.color,
        striped=layout.striped,
        floor=layout.floor,
        checkered=layout.checkered,
    )
    return scenes, clear


def _in_pixels(samples: np.ndarray, resolution_px: int) -> np.ndarray:
    """[..., P] to [..., res, res, 4], the four samples of each pixel last."""
    lead, res = samples.shape[:-1], resolution_px
    return np.moveaxis(samples.reshape(*lead, res, 2, res, 2), -3, -2).reshape(*lead, res, res, 4)


def _all_show(segmentation: np.ndarray, num_objects: np.ndarray) -> np.ndarray:
    """bool [N]: the main solid dominates and the others are large enough to be recognised."""
    seen = np.stack([(segmentation == 2 + slot).sum((1, 2)) for slot in range(MAX_OBJECTS)], -1)
    least = _LEAST_VISIBLE * (segmentation.shape[-1] / 64) ** 2
    absent = np.arange(MAX_OBJECTS) >= num_objects[:, None]
    return ((seen >= least) | absent).all(-1) & (seen[:, 0] >= _DOMINANCE * seen[:, 1:].max(-1))


def _join(parts: list[Scenes]) -> Scenes:
    tables = [arrays(part) for part in parts]
    return Scenes(**{name: np.concatenate([table[name] for table in tables]) for name in tables[0]})
