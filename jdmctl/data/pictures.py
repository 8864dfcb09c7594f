"""Reading a picture of any common kind into a tensor; nothing else in jdmctl opens a user's picture."""

from __future__ import annotations

import io
import struct
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.TiffImagePlugin import IMAGELENGTH, IMAGEWIDTH, TiffImageFile
from torch import Tensor

from jdmctl.errors import BadInputError

SMALLEST_PX = 8
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif")
_ORIENTATION = 0x0112
_TURNS = {  # EXIF orientation -> what lays it upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_ON_ITS_SIDE = (5, 6, 7, 8)
_SLACK = 0.01  # by which fractions may leave [0, 1], as resizing makes them do


@dataclass(frozen=True)
class Packed:
    """A picture within an archive or a table: what to call it in a message, and its bytes."""

    name: str
    content: bytes

    def __str__(self) -> str:
        return self.name


Picture = str | Path | Packed


def read_image(picture: Picture, resolution_px: int | tuple[int, int]) -> Tensor:
    """The picture's centre square at `resolution_px`, or its centre of height x width, [3, H, W] in [0, 1].

    Greyscale, palette, CMYK and 16-bit pictures become RGB; transparency is laid over white; EXIF
    orientation is applied, unless it is damaged; of an animation the first frame is taken.

    Raises:
        BadInputError: missing, damaged, not a picture, too small to show anything, so large that it
            is likely an attack, or of numbers that do not say what is white.
    """
    with _open(picture) as image:
        try:
            image.load()
        except (OSError, SyntaxError, ValueError, EOFError) as problem:
            raise BadInputError(
                f"{picture} is damaged or cut short: {problem}", hint="copy or export it again"
            ) from problem
        turn = _TURNS.get(_orientation(image))
        rgb = _to_rgb(image if turn is None else image.transpose(turn), picture)
    if min(rgb.size) < SMALLEST_PX:
        raise BadInputError(
            f"{picture} is {rgb.width} x {rgb.height} px: too small to show anything",
            hint=f"use pictures of at least {SMALLEST_PX} px on each side",
        )
    height, width = (resolution_px, resolution_px) if isinstance(resolution_px, int) else resolution_px
    cut = ImageOps.fit(rgb, (width, height), Image.Resampling.LANCZOS)
    return torch.from_numpy(np.array(cut)).permute(2, 0, 1).float() / 255


def size_of(picture: Picture) -> tuple[int, int]:
    """Height and width in pixels as it is to be seen, from the picture's header alone.

    Raises BadInputError where `read_image` would, as far as a header can tell.
    """
    with _open(picture) as image:
        width, height = image.size
        if isinstance(image, TiffImageFile):  # its `size` is as seen, or as stored, by the version of Pillow
            width, height = image.tag_v2[IMAGEWIDTH], image.tag_v2[IMAGELENGTH]
        is_on_its_side = _orientation(image) in _ON_ITS_SIDE
    return (width, height) if is_on_its_side else (height, width)


def require_fit(picture: Picture, other: Picture) -> None:
    """Raises BadInputError for pictures of different shapes, which would not lie over each other once cut to one.

    Sides may differ from the same shape's by a pixel, by which one may be rounded that was made smaller.
    """
    (height, width), (other_height, other_width) = size_of(picture), size_of(other)
    if abs(width * other_height - height * other_width) > max(width + height, other_width + other_height):
        raise BadInputError(
            f"{other} is {other_width} x {other_height} px, another shape than the {width} x {height} of {picture}, "
            "so it would not lie over it",
            hint=f"if it was stretched, resize it to {width} x {height}; if it was cut, make it again",
        )


def _open(picture: Picture) -> Image.Image:
    source: Path | io.BytesIO
    if isinstance(picture, Packed):
        source, size = io.BytesIO(picture.content), len(picture.content)
    else:
        source = Path(picture)
        if not source.is_file():
            found = "a folder, not a picture" if source.is_dir() else "not there"
            raise BadInputError(f"{picture} is {found}", hint="check the path")
        size = source.stat().st_size
    try:
        with warnings.catch_warnings():  # what Pillow would read with a warning is read
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            return Image.open(source)
    except Image.DecompressionBombError as problem:
        raise BadInputError(
            f"{picture} is too large: {problem}", hint="make it smaller than 100 megapixels"
        ) from problem
    except UnidentifiedImageError as problem:
        raise BadInputError(
            f"{picture} is not a picture that can be read ({size} bytes)",
            hint="use PNG, JPEG or WebP",
        ) from problem
    except (OSError, SyntaxError, ValueError) as problem:
        raise BadInputError(f"{picture} cannot be read: {problem}", hint="use PNG, JPEG or WebP") from problem


def _orientation(image: Image.Image) -> int:
    """As EXIF has it; 1, upright, where there is none or it is damaged."""
    try:
        return image.getexif().get(_ORIENTATION, 1)
    except (OSError, SyntaxError, ValueError, struct.error):
        return 1


def _to_rgb(image: Image.Image, picture: Picture) -> Image.Image:
    if image.mode.startswith("I") or image.mode == "F":
        image = _to_8_bit(image, picture)
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        white = Image.new("RGBA", layer.size, "white")
        return Image.alpha_composite(white, layer).convert("RGB")
    return image.convert("RGB")


def _to_8_bit(image: Image.Image, picture: Picture) -> Image.Image:
    """Whole numbers are taken as 16-bit, fractions as already in [0, 1].

    Raises BadInputError for numbers that are neither: in 32 bits, 0 to 255 may be a picture of 8 bits.
    """
    values = np.asarray(image, dtype=np.float64)
    low, high = values.min(), values.max()
    is_fraction = image.mode == "F"
    fits = -_SLACK <= low and high <= 1 + _SLACK if is_fraction else 0 <= low and high <= 65535
    if not fits or (image.mode == "I" and 0 < high <= 255):
        kind, wanted = ("fractions", "0 to 1") if is_fraction else ("32-bit whole numbers", "16 bits, 0 to 65535")
        raise BadInputError(
            f"{picture} holds {kind} from {low:g} to {high:g}, so what is white is not known; {wanted} is read",
            hint="save it with 8 or 16 bits" + (", or divide it so that white is 1" if is_fraction else ""),
        )
    return Image.fromarray(((values / (1 if is_fraction else 65535)).clip(0, 1) * 255).round().astype(np.uint8))
