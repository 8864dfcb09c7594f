"""Folders of tiny random-weight models, of the very classes that real ones have; nothing is trained."""

import json
from pathlib import Path

import torch
from diffusers import (
    LCMScheduler,
)
from PIL import Image, ImageDraw
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    DepthAnythingConfig,
    DepthAnythingForDepthEstimation,
    Dinov2Config,
)

from jdmctl.families.standins.unets import random_sd
from jdmctl.families.standins.words import byte_tokenizer


def write_world(folder: Path) -> None:
    """teacher/, student/, depth/ and depth_heldout/."""
    torch.manual_seed(0)
    pipeline = random_sd(folder / "tokenizer-source")
    pipeline.save_pretrained(folder / "teacher")
    with torch.no_grad():  # a student that differs from its teacher
        for parameter in pipeline.unet.parameters():
            parameter.add_(0.01 * torch.randn_like(parameter))
    pipeline.scheduler = LCMScheduler.from_config(pipeline.scheduler.config)  # one step means t = 999
    pipeline.save_pretrained(folder / "student")
    for name in ("depth", "depth_heldout"):
        random_depth_network().save_pretrained(folder / name)


def random_depth_network() -> DepthAnythingForDepthEstimation:
    return DepthAnythingForDepthEstimation(
        DepthAnythingConfig(
            backbone_config=Dinov2Config(
                hidden_size=16,
                num_hidden_layers=4,
                num_attention_heads=2,
                mlp_ratio=2,
                image_size=64,
                patch_size=8,
                out_indices=[1, 2, 3, 4],
                apply_layernorm=True,
                reshape_hidden_states=False,
            ),
            patch_size=8,
            reassemble_hidden_size=16,
            reassemble_factors=[4, 2, 1, 0.5],
            neck_hidden_sizes=[8, 8, 8, 8],
            fusion_hidden_size=8,
            head_in_index=-1,
            head_hidden_size=8,
        )
    )


def write_photos(folder: Path, number: int) -> None:
    """Captioned pictures of one box each, in the imagefolder layout."""
    rows = []
    for i in range(number):
        color = ("red", "blue", "green")[i % 3]
        picture = Image.new("RGB", (64, 64), "white")
        left, top = 8 + 3 * (i % 5), 10 + 2 * (i % 7)
        ImageDraw.Draw(picture).rectangle([left, top, left + 24, top + 20], fill=color, outline="black")
        picture.save(folder / f"{i:02d}.png")
        rows.append({"file_name": f"{i:02d}.png", "text": f"a {color} box on a white floor"})
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_clip(folder: Path) -> None:
    """A random CLIP in the folder format of transformers."""
    tokenizer = byte_tokenizer(folder / "source")
    small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = small | {"vocab_size": len(tokenizer), "max_position_embeddings": 32}
    text |= {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    vision = small | {"image_size": 32, "patch_size": 8}
    torch.manual_seed(0)
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=12)).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    size, crop = {"shortest_edge": 32}, {"height": 32, "width": 32}
    CLIPImageProcessor(size=size, crop_size=crop).save_pretrained(folder / "model")
