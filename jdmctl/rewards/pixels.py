"""What a network's image processor does to a picture, done in torch so that it has a gradient."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from jdmctl.errors import BadInputError

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
_NO_CROP_PX = 384  # from here on ConvNeXT resizes the whole picture
_CONVNEXT_SHARE = 224 / 256  # where the file says null
_MODES = {2: "bilinear", 3: "bicubic"}  # PIL's numbers

Fit = Literal["crop", "pad"]


class Preprocessing(nn.Module):
    """Resize, crop and normalise as a `preprocessor_config.json` says.

    `crop_pct` is ConvNeXT's and PoolFormer's: they resize to the size divided by it, and cut out the middle.
    Antialiased bicubic of torch has the kernel of PIL's; PIL also rounds to 8 bits, here nothing is.
    `fit` "pad" makes the whole picture fit into the square instead, with black around it.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, settings: Mapping[str, Any], fit: Fit = "crop") -> None:
        """Raises BadInputError for settings that are not those of such a file."""
        super().__init__()
        self._fit = fit
        self._mode = _MODES.get(settings.get("resample", 3), "")
        if not self._mode:
            raise BadInputError(
                f"preprocessor_config.json asks for resampling {settings['resample']}: only 2 (bilinear) and "
                "3 (bicubic) can be done with a gradient",
                hint="change it there if the network can take it",
            )
        if "crop_pct" in settings and settings.get("do_resize", True):
            settings = _with_margin(settings)
        crops = settings.get("do_center_crop", "crop_size" in settings)
        self._crop = _size(settings["crop_size"], square=True) if crops and settings.get("crop_size") else None
        resizes = settings.get("do_resize", True) and settings.get("size") is not None
        self._size = _size(settings["size"], square=not crops) if resizes else None
        normalises = settings.get("do_normalize", True)
        mean, std = (_channels(settings, key) if normalises else None for key in ("image_mean", "image_std"))
        self.register_buffer("mean", torch.zeros(1, 3, 1, 1) if mean is None else mean, persistent=False)
        self.register_buffer("std", torch.ones(1, 3, 1, 1) if std is None else std, persistent=False)

    @property
    def input_px(self) -> int | None:
        """The side of what the network sees, if it is fixed."""
        size = self._crop or self._size
        return size[0] if size else None

    def forward(self, image: Tensor) -> Tensor:
        """Images [B, 3, H, W], clamped to [0, 1] -> what the network takes, [B, 3, h, w]."""
        image = image.clamp(0, 1).float()
        if self._size:
            image = self._padded(image) if self._fit == "pad" else self._resize(image, _target(image, self._size))
        if self._crop and self._fit == "crop":
            image = _center(image, (self._crop[0], self._crop[1] or self._crop[0]))
        return (image - self.mean) / self.std

    def _resize(self, image: Tensor, size: tuple[int, int]) -> Tensor:
        if image.shape[-2:] == size:
            return image
        return functional.interpolate(image, size, mode=self._mode, antialias=True).clamp(0, 1)  # as 8 bits would

    def _padded(self, image: Tensor) -> Tensor:
        side = self.input_px
        assert side is not None
        scale = side / max(image.shape[-2:])
        height, width = (round(scale * length) for length in image.shape[-2:])
        above, left = (side - height) // 2, (side - width) // 2
        small = self._resize(image, (height, width))
        return functional.pad(small, (left, side - width - left, above, side - height - above))


def _channels(settings: Mapping[str, Any], key: str) -> Tensor:
    """[1, 3, 1, 1] of three numbers, or of one for all three; 0.5 where nothing is said."""
    given = settings.get(key, 0.5)
    values = list(given) if isinstance(given, (list, tuple)) else [given] * 3
    if len(values) != 3 or not all(isinstance(value, (int, float)) for value in values):
        raise BadInputError(
            f"preprocessor_config.json has an {key} that is not known: {given!r}",
            hint="expected three numbers, of red, green and blue, or one for all",
        )
    return torch.tensor(values, dtype=torch.float32).view(1, 3, 1, 1)


def _with_margin(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings with `crop_pct` as those of a processor that resizes the shortest edge and crops; or resizes alone."""
    edge, _ = _size(settings.get("size") or _NO_CROP_PX, square=False)
    if settings.get("crop_size"):  # PoolFormer's
        share = settings["crop_pct"] or 1
        return {**settings, "size": {"shortest_edge": int(edge / share)}}
    if edge >= _NO_CROP_PX:
        return {**settings, "size": {"height": edge, "width": edge}, "do_center_crop": False}
    wide = {"shortest_edge": int(edge / (settings["crop_pct"] or _CONVNEXT_SHARE))}
    return {**settings, "size": wide, "do_center_crop": True, "crop_size": edge}


def _size(setting: Any, square: bool) -> tuple[int, int | None]:
    """(height, width), or (shortest edge, None)."""
    if isinstance(setting, int):
        return (setting, setting) if square else (setting, None)
    if isinstance(setting, Mapping) and "shortest_edge" in setting:
        return setting["shortest_edge"], None
    if isinstance(setting, Mapping) and {"height", "width"} <= setting.keys():
        return setting["height"], setting["width"]
    raise BadInputError(
        f"preprocessor_config.json has a size that is not known: {setting!r}",
        hint="expected {height, width} or {shortest_edge}",
    )


def _target(image: Tensor, size: tuple[int, int | None]) -> tuple[int, int]:
    if size[1] is not None:
        return size[0], size[1]
    height, width = image.shape[-2:]
    if height <= width:
        return size[0], int(size[0] * width / height)
    return int(size[0] * height / width), size[0]


def _center(image: Tensor, size: tuple[int, int]) -> Tensor:
    top, left = ((have - want) // 2 for have, want in zip(image.shape[-2:], size, strict=True))
    return image[..., top : top + size[0], left : left + size[1]]
