"""A taste that is known exactly, and somebody who has it: 5,000 noisy choices between two pictures of one prompt.

    python examples/taste/taste.py --output runs/taste

It likes pictures that are brighter on their left (light from that side) and warm. Captions say neither, though a
stated colour narrows what can be warm. Writes pictures and preferences.jsonl, the last fifth of the prompts held out.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from jdmctl.families.stable_diffusion import StableDiffusion
from jdmctl.tinyworld.world import samples, world_folder
from jdmctl.training.draws import SampleDraws

LUMA = torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)
SIDE_SPREAD, WARMTH_SPREAD = 0.06, 0.12  # about the standard deviations of the two in the world's pictures
NOISE = 0.25  # of a choice, in units of the taste: P(a preferred) = sigmoid((T_a - T_b) / NOISE)
BATCH = 50


def taste(images: Tensor) -> Tensor:
    """Images [B, 3, H, W] in [0, 1] -> [B]: the two likings, each in its own spread."""
    luma = (images * LUMA).sum(1)
    middle = luma.shape[2] // 2
    side = luma[:, :, :middle].mean((1, 2)) - luma[:, :, middle:].mean((1, 2))
    warmth = (images[:, 0] - images[:, 2]).mean((1, 2))
    return side / SIDE_SPREAD + warmth / WARMTH_SPREAD


@torch.no_grad()
def draw(family: StableDiffusion, captions: list[str], seed: int, noise_name: str) -> Tensor:
    """One picture for each caption, [N, 3, H, W]."""
    images = []
    for part in torch.arange(len(captions)).split(BATCH):
        prompt = family.encode_prompt([captions[i] for i in part.tolist()])
        images.append(_decoded(family, noises(family, part, seed, noise_name), prompt))
    return torch.cat(images)


def noises(family: StableDiffusion, numbers: Tensor, seed: int, noise_name: str) -> Tensor:
    return SampleDraws(seed, noise_name, numbers.tolist()).normal("student_noise", family.latent_shape)


def _decoded(family: StableDiffusion, noise: Tensor, prompt: Tensor) -> Tensor:
    return family.codec.decode(family.student.generate(noise, prompt)).clamp(0, 1)


def simulate(folder: Path, num_pairs: int) -> dict[str, float]:
    """Draw and judge; returns how often the taste itself agrees with the choices it made, noise included."""
    family = StableDiffusion.load(world_folder() / "teacher", world_folder() / "student")
    scenes = samples("train")
    captions = [scenes.text(i) for i in range(num_pairs)]
    two = [draw(family, captions, 0, name) for name in ("first", "second")]
    liked = [taste(images) for images in two]
    odds = ((liked[0] - liked[1]) / NOISE).sigmoid()
    chosen = torch.rand(num_pairs, generator=torch.Generator().manual_seed(0)) < odds  # of the first
    pictures = folder / "pictures"
    pictures.mkdir(parents=True, exist_ok=True)
    held_out = sorted(set(captions))[::5]
    lines = []
    for i, text in enumerate(captions):
        names = [f"pictures/{i:05d}{side}.png" for side in "ab"]
        for name, images in zip(names, two, strict=True):
            pixels = (images[i] * 255).round().byte().permute(1, 2, 0).numpy()
            Image.fromarray(pixels).save(folder / name)
        split = "held_out" if text in held_out else "train"
        row = {"prompt": text, "image_a": names[0], "image_b": names[1], "preferred": "a" if chosen[i] else "b"}
        lines.append(json.dumps(row | {"split": split}))
    (folder / "preferences.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    tests = torch.tensor([text in held_out for text in captions])
    agrees = ((liked[0] > liked[1]) == chosen)[tests].double().mean().item()
    found = {"attainable": agrees, "pairs": num_pairs, "within_prompt_std": _within(torch.stack(liked))}
    (folder / "simulated.json").write_text(json.dumps(found, indent=1) + "\n")
    return found


def _within(liked: Tensor) -> float:
    """Standard deviation between pictures of one prompt, from two of each, [2, N]."""
    return ((liked[0] - liked[1]).square().mean() / 2).sqrt().item()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("runs/taste"))
    parser.add_argument("--pairs", type=int, default=5000)
    given = parser.parse_args()
    print(json.dumps(simulate(given.output, given.pairs), indent=1))
