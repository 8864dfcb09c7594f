"""One-step pictures: drawn from seeds, shown beside what was asked for, saved to be drawn again."""

from __future__ import annotations

import hashlib
import json
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont, PngImagePlugin
from torch import Tensor

from jdmctl.errors import BadInputError, ConditionMismatchError, JdmError
from jdmctl.training.atomic import whole_file
from jdmctl.types import Codec, Prompt

METADATA_KEY = "jdmctl"
_CELL_PX, _MARGIN_PX, _TEXT_PX = 160, 8, 13


class Family(Protocol):
    """What sampling needs of a family."""

    student: Any  # a Student, with its `branches` and `control_scales`
    codec: Codec
    latent_shape: tuple[int, int, int]
    resolution_px: int

    def encode_prompt(self, texts: Sequence[str]) -> Prompt: ...


def seed_noise(seeds: Sequence[int], shape: tuple[int, ...]) -> Tensor:
    """[B, *shape]: the latents that a diffusers pipeline draws for one picture with each seed."""
    draws = [torch.randn((1, *shape), generator=torch.Generator().manual_seed(s)) for s in seeds]
    return torch.cat(draws)


@torch.no_grad()
def draw(
    family: Family,
    prompts: Sequence[str],
    seeds: Sequence[int],
    controls: Mapping[str, Tensor | None] | None = None,
    scales: Mapping[str, float] | None = None,
    batch_size: int = 16,
) -> Tensor:
    """Images [B, 3, H, W] in [0, 1], one for each pair of prompt and seed, in one step.

    `controls` maps a branch to its conditions [B, 3, H, W] in [0, 1]; with None, or without an
    entry, the branch is not run. `scales` multiplies what a branch adds (1 as it was trained).

    Raises:
        ConditionMismatchError: a condition has no branch, or not the student's size.
        JdmError: what is drawn is not finite.
    """
    asked = {name: value for name, value in (controls or {}).items() if value is not None}
    for name, condition in asked.items():
        require_fit(family, name, condition)
    device = next(family.student.parameters()).device
    noise = seed_noise(seeds, family.latent_shape)
    images = []
    with _scaled(family.student, scales or {}):
        for part in torch.arange(len(seeds)).split(batch_size):
            prompt = family.encode_prompt([prompts[i] for i in part])
            conditions = {name: condition[part].to(device) for name, condition in asked.items()}
            x0 = family.student.generate(noise[part].to(device), prompt, conditions)
            images.append(family.codec.decode(x0).clamp(0, 1).cpu())
            if not (x0.isfinite().all() and images[-1].isfinite().all()):
                raise JdmError(
                    f"what the student draws for seed {seeds[int(part[0])]} is not finite",
                    hint="its weights are damaged, or --scale, --student-time or --student-prediction are not its own",
                )
    return torch.cat(images)


def require_fit(family: Family, name: str, condition: Tensor) -> None:
    """Check that the student has such a branch, and that it takes a condition [..., 3, H, W].

    Raises:
        ConditionMismatchError: it does not.
    """
    if name not in family.student.branches:
        known = ", ".join(family.student.branches) or "none"
        raise ConditionMismatchError(
            f"the student has no control branch named {name} (it has {known})",
            hint=f"give one with --controlnet {name}=FOLDER",
        )
    size = family.resolution_px
    channels, height, width = condition.shape[-3:]
    if (channels, height, width) != (3, size, size):
        raise ConditionMismatchError(
            f"the condition for {name} is {width} x {height} px with {channels} channels, "
            f"this student takes {size} x {size} px with 3",
            hint=f"resize it, or let it be made from a photo: --control {name}=PHOTO",
        )


@contextmanager
def _scaled(student: Any, scales: Mapping[str, float]) -> Iterator[None]:
    before = dict(student.control_scales)
    student.control_scales.update(scales)
    try:
        yield
    finally:
        student.control_scales = before


# --- pictures on disk ---------------------------------------------------------------------------


def to_picture(image: Tensor) -> Image.Image:
    """An 8-bit picture of an image [3, H, W], rounded as diffusers does."""
    pixels = (image.clamp(0, 1) * 255).round().to(torch.uint8)
    return Image.fromarray(pixels.permute(1, 2, 0).numpy())


def eight_bit(image: Tensor) -> Tensor:
    """The nearest image that a PNG can hold."""
    return (image.clamp(0, 1) * 255).round() / 255


def fingerprint(image: Tensor) -> str:
    """sha256 of the 8-bit pixels of an image [3, H, W], row by row, RGB."""
    return hashlib.sha256(np.asarray(to_picture(image)).tobytes()).hexdigest()


def save_picture(picture: Image.Image, path: Path, record: Mapping[str, Any]) -> None:
    """Write a PNG that carries `record` as JSON in a tEXt chunk named jdmctl; it appears whole or not at all.

    Raises:
        JdmError: it cannot be written, for instance because the disk is full.
    """
    chunk = PngImagePlugin.PngInfo()
    chunk.add_text(METADATA_KEY, json.dumps(record))
    with whole_file(path) as partial:
        picture.save(partial, format="PNG", pnginfo=chunk)


def read_record(path: Path) -> dict[str, Any]:
    """What `save_picture` was given. Raises BadInputError if the picture carries none."""
    with Image.open(path) as picture:
        text = picture.info.get(METADATA_KEY)
    if text is None:
        raise BadInputError(f"{path} does not say how it was made", hint="was it saved by another program?")
    return json.loads(text)


def require_own(folder: Path, commands: Mapping[str, str]) -> None:
    """Raises BadInputError unless each picture that was drawn into `folder` is one of these: file -> its command."""
    for path in sorted(folder.glob("[0-9]*-seed*.png")):
        try:
            command = read_record(path)["command"]
        except (BadInputError, OSError, ValueError, KeyError, TypeError):
            command = ""
        if command != commands.get(str(path)):
            raise BadInputError(
                f"{folder} holds pictures of another call, such as {path.name}", hint="choose another --output"
            )


def grid(columns: Sequence[str], rows: Sequence[tuple[str, Sequence[Tensor | None]]]) -> Image.Image:
    """A captioned table of images [3, H, W], None where there is nothing to show.

    Small pictures are enlarged by whole pixels; the caption of a row stands above it.
    """
    largest = max(image.shape[-1] for _, images in rows for image in images if image is not None)
    factor = max(1, _CELL_PX // largest)
    cell, line = factor * largest, _TEXT_PX + 3
    step = cell + _MARGIN_PX
    width = _MARGIN_PX + step * len(columns)
    font = ImageFont.load_default(_TEXT_PX)
    letters = int((width - 2 * _MARGIN_PX) / font.getlength("n"))
    captions = [textwrap.wrap(caption, letters) for caption, _ in rows]
    heights = [line * len(caption) + step for caption in captions]
    sheet = Image.new("RGB", (width, 2 * _MARGIN_PX + line + sum(heights)), "white")
    pen = ImageDraw.Draw(sheet)
    for number, title in enumerate(columns):
        pen.text((_MARGIN_PX + number * step, _MARGIN_PX), title, "black", font)
    top = _MARGIN_PX + line
    for caption, (_, images), height in zip(captions, rows, heights, strict=True):
        for number, text in enumerate(caption):
            pen.text((_MARGIN_PX, top + number * line), text, "black", font)
        for number, image in enumerate(images):
            if image is not None:
                enlarged = to_picture(image).resize((cell, cell), Image.Resampling.NEAREST)
                sheet.paste(enlarged, (_MARGIN_PX + number * step, top + line * len(caption)))
        top += height
    return sheet
