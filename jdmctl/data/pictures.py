"""Reading a picture of any common kind into a tensor; nothing else in jdmctl opens a user's picture."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from jdmctl.errors import BadInputError

SMALLEST_PX = 8


def read_image(path: str | Path, resolution_px: int) -> Tensor:
    """The picture's centre square at `resolution_px`, [3, H, W] in [0, 1].

    Greyscale, palette, CMYK and 16-bit pictures become RGB; transparency is laid over white; EXIF
    orientation is applied; of an animation the first frame is taken.

    Raises:
        BadInputError: missing, damaged, not a picture, too small to show anything, or so large that
            it is likely an attack.
    """
    with _open(Path(path)) as image:
        try:
            image.load()
        except (OSError, SyntaxError, ValueError, EOFError) as problem:
            raise BadInputError(
                f"{path} is damaged or cut short: {problem}", hint="copy or export it again"
            ) from problem
        rgb = _to_rgb(ImageOps.exif_transpose(image))
    if min(rgb.size) < SMALLEST_PX:
        raise BadInputError(
            f"{path} is {rgb.width} x {rgb.height} px: too small to show anything",
            hint=f"use pictures of at least {SMALLEST_PX} px on each side",
        )
    square = ImageOps.fit(rgb, (resolution_px, resolution_px), Image.Resampling.LANCZOS)
    return torch.from_numpy(np.array(square)).permute(2, 0, 1).float() / 255


def _open(path: Path) -> Image.Image:
    if not path.is_file():
        found = "a folder, not a picture" if path.is_dir() else "not there"
        raise BadInputError(f"{path} is {found}", hint="check the path")
    try:
        return Image.open(path)
    except Image.DecompressionBombError as problem:
        raise BadInputError(f"{path} is too large: {problem}", hint="make it smaller than 100 megapixels") from problem
    except UnidentifiedImageError as problem:
        raise BadInputError(
            f"{path} is not a picture that can be read ({path.stat().st_size} bytes)",
            hint="use PNG, JPEG or WebP",
        ) from problem
    except (OSError, SyntaxError, ValueError) as problem:
        raise BadInputError(f"{path} cannot be read: {problem}", hint="use PNG, JPEG or WebP") from problem


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I") or image.mode == "F":
        image = _to_8_bit(image)
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        white = Image.new("RGBA", layer.size, "white")
        return Image.alpha_composite(white, layer).convert("RGB")
    return image.convert("RGB")


def _to_8_bit(image: Image.Image) -> Image.Image:
    """Whole numbers are taken as 16-bit, fractions as already in [0, 1]."""
    values = np.asarray(image, dtype=np.float64) / (1 if image.mode == "F" else 65535)
    return Image.fromarray((values.clip(0, 1) * 255).round().astype(np.uint8))
