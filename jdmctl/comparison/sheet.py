"""Pictures side by side: the same requests, each method's answers."""

from __future__ import annotations

from collections.abc import Mapping

from PIL import Image
from torch import Tensor

from jdmctl.comparison.scenes import Scenes
from jdmctl.sampling import grid

_ROWS = 6


def sheet(scenes: Scenes, answers: Mapping[str, Tensor]) -> Image.Image:
    """Conditions, then the answers [N, 3, H, W] of each method, with what its extractor finds in them if it is one."""
    columns = [*scenes.controls, *answers]
    found = {}
    if len(answers) == 1:
        (images,) = answers.values()
        first = images[:_ROWS].to(scenes.device)
        found = {f"{name} found": control.condition(first).cpu() for name, control in scenes.controls.items()}
    rows = []
    for i in range(min(_ROWS, scenes.num)):
        cells = [maps[i] for maps in scenes.conditions.values()]
        cells += [images[i] for images in answers.values()] + [maps[i] for maps in found.values()]
        rows.append((scenes.pictures.text(i), cells))
    return grid([name[:19] for name in [*columns, *found]], rows)
