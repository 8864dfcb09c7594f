"""How well the energy of `canny` stands in for cv2.Canny, which has no gradient.

    python examples/canny_surrogate/measure.py [--results docs/results/canny_surrogate.json]

First table: on each kind of picture, the F1 (one pixel of tolerance) of the energy's own tests against
cv2.Canny, and of its odds; student pictures are floats, which cv2 sees rounded to 8 bits.
Second table: F1 of cv2.Canny before and after descent on the energy from spoilt pictures, along the
bare gradient, a smoothed one, or the latent of the world's autoencoder. Each step has a fixed length,
so the last column says how much change the F1 cost.

Pictures: scenes of the embedded world; its student's, where it is built; real ones, where
JDMCTL_TEST_DATA names a folder with bsds500/bsds500_64.npz and noto_emoji/noto_emoji_rgba.npz.
"""

import argparse
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from kornia.filters import gaussian_blur2d
from torch import Tensor

from jdmctl.cli.evaluate import keep
from jdmctl.controls.canny import Canny, edge_agreement
from jdmctl.controls.soft_canny import edge_logit, edge_margins
from jdmctl.errors import MissingWeightsError
from jdmctl.evaluation.results import Row, setup
from jdmctl.tinyworld.captions import caption
from jdmctl.tinyworld.scenes import render

REAL = {"photos": ("bsds500/bsds500_64.npz", "images"), "emoji": ("noto_emoji/noto_emoji_rgba.npz", "rgba64")}
PIXEL_STEP, LATENT_STEP = 0.0025, 0.03  # root mean square; of the range, and of the latent's deviation


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=200, help="of each kind in the first table")
    parser.add_argument("--descents", type=int, default=8, help="of each kind in the second table")
    parser.add_argument("--steps", type=int, default=30, help="of each descent")
    parser.add_argument("--results", type=Path, help="file of rows, docs/results/NAME.json")
    settings = parser.parse_args()
    torch.manual_seed(0)
    family = world_family()
    pictures = real_pictures(settings.pictures) | scene_pictures(settings.pictures, family)
    print(f"{'pictures':10}{'number':>8}{'edge px':>9}{'F1 of tests':>13}{'px that differ':>16}{'F1 of odds':>12}")
    rows = [row for kind, images in pictures.items() for row in report_agreement(kind, images)]
    print(f"\n{'pictures':10}{'spoilt by':>11}{'through':>10}{'F1':>7}{'after':>7}{'rms change':>12}")
    for kind, images in pictures.items():
        rows += report_descents(kind, images[: settings.descents], settings.steps, family)
    keep(rows, settings.results)


def world_family():
    """The embedded world's student and autoencoder, or None where they are not built."""
    from jdmctl.families.stable_diffusion import StableDiffusion
    from jdmctl.tinyworld.world import world_folder

    try:
        folder = world_folder()
    except MissingWeightsError:
        return None
    return StableDiffusion.load(teacher=folder / "teacher", student=folder / "student")


def real_pictures(num: int) -> dict[str, Tensor]:
    folder, found = Path(os.environ.get("JDMCTL_TEST_DATA", "")), {}
    for kind, (name, key) in REAL.items():
        if (folder / name).is_file():
            with np.load(folder / name) as archive:
                all_of_them = archive[key][..., :3]
            found[kind] = to_image(all_of_them[:: max(1, len(all_of_them) // num)][:num])
    return found


@torch.no_grad()
def scene_pictures(num: int, family) -> dict[str, Tensor]:
    scenes = render(num, seed=123)
    found = {"scenes": to_image(scenes.image)}
    if family:
        rng = np.random.default_rng(0)
        prompt = family.encode_prompt([caption(scenes, index, rng).text for index in range(num)])
        latents = family.student.generate(torch.randn(num, *family.latent_shape), prompt)
        found["student"] = family.codec.decode(latents)
    return found


def to_image(pictures: np.ndarray) -> Tensor:
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 255  # [N, 3, H, W]


def report_agreement(kind: str, images: Tensor) -> list[Row]:
    requested = Canny().condition(images)[:, :1] > 0.5
    passed = (edge_margins(images, 100, 200) > 0).all(0)
    likely = edge_logit(images, 100, 200) > 0
    of_tests, of_odds = (edge_agreement(edges, requested)["f1"].mean() for edges in (passed, likely))
    differ = (passed != requested).float().mean()
    share = requested.float().mean()
    print(f"{kind:10}{len(images):8}{share:9.1%}{of_tests:13.4f}{differ:16.3%}{of_odds:12.3f}")
    found = {"F1 of tests": of_tests, "px that differ": differ, "F1 of odds": of_odds}
    return [row(kind, "agreement", name, value.item(), len(images)) for name, value in found.items()]


def report_descents(kind: str, images: Tensor, num_steps: int, family) -> list[Row]:
    images = images.clamp(0, 1)
    conditions = Canny().condition(images)
    noise, rows = torch.randn(images.shape), []
    spoilt = {
        "blur": gaussian_blur2d(images, (9, 9), (1.5, 1.5)),
        "noise": (images + 0.1 * noise).clamp(0, 1),
        "no edges": 0.5 + 0.01 * noise,
        "another": images.roll(1, 0),
    }
    for name, start in spoilt.items():
        before = score(start, conditions)
        for through, smooth in (("pixels", lambda g: g), ("smooth", lambda g: gaussian_blur2d(g, (7, 7), (1.0, 1.0)))):
            end = descend(start, lambda image: image, smooth, conditions, PIXEL_STEP, num_steps)
            rows += report(kind, name, through, before, start, end, conditions)
        if family:
            with torch.no_grad():
                latent = family.codec.encode(start)
                start = family.codec.decode(latent)
            step = LATENT_STEP * latent.std().item()
            end = family.codec.decode(
                descend(latent, family.codec.decode, lambda g: g, conditions, step, num_steps)
            ).detach()
            rows += report(kind, name, "latent", score(start, conditions), start, end, conditions)
    return rows


def descend(x: Tensor, decode: Callable, smooth: Callable, conditions: Tensor, step: float, num_steps: int) -> Tensor:
    """Steps of equal length along the (smoothed) gradient of the energy."""
    for _ in range(num_steps):
        x = x.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(Canny().energy(decode(x), conditions).sum(), x)
        gradient = smooth(gradient)
        length = gradient.square().mean((1, 2, 3), keepdim=True).sqrt()
        x = x - step * gradient / length.clamp(min=1e-12)
    return x.detach()


def score(images: Tensor, conditions: Tensor) -> float:
    return Canny().scores(images, conditions)["f1"].mean().item()


def report(kind, name, through, before, start, end, conditions) -> list[Row]:
    change = (end - start).square().mean((1, 2, 3)).sqrt().mean().item()
    after = score(end, conditions)
    print(f"{kind:10}{name:>11}{through:>10}{before:7.3f}{after:7.3f}{change:12.3f}", flush=True)
    found = {"F1 before": before, "F1 after": after, "rms change": change}
    return [row(kind, f"{name}, through {through}", metric, value, len(start)) for metric, value in found.items()]


def row(kind: str, method: str, metric: str, value: float, num: int) -> Row:
    command = "python examples/canny_surrogate/measure.py"
    return Row(kind, "canny", method, 0, metric, value, value, value, [0], num, command, setup("cv2.Canny(100, 200)"))


if __name__ == "__main__":
    main()
