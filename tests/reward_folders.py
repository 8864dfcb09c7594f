"""Tiny networks of random weights, saved in the formats that rewards are published in."""

import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from transformers import (
    BertTokenizerFast,
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPTokenizer,
    ResNetConfig,
    ResNetForImageClassification,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessorPil,
)

from jdmctl.rewards.imagereward import MODEL_TYPE, TOKENIZER, ImageRewardNetwork
from jdmctl.tinyworld.models import tokenizer

PX = 32
WORDS = ["a red cone on a tan floor", "a blue torus behind a white cube"]


def write_clip(folder: Path, seed=0, dimensions=16) -> Path:
    """A CLIPModel folder with preprocessor and tokenizer."""
    torch.manual_seed(seed)
    tokens = clip_tokenizer()
    width = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    ends = {"bos_token_id": tokens.bos_token_id, "eos_token_id": tokens.eos_token_id}
    model = CLIPModel(
        CLIPConfig(
            text_config={**width, **ends, "vocab_size": len(tokens), "max_position_embeddings": 16},
            vision_config={**width, "image_size": PX, "patch_size": 8},
            projection_dim=dimensions,
        )
    )
    model.save_pretrained(folder)
    clip_processor().save_pretrained(folder)
    tokens.save_pretrained(folder)
    return folder


def clip_tokenizer() -> CLIPTokenizer:
    return tokenizer(WORDS, vocabulary_size=560)


def clip_processor() -> CLIPImageProcessorPil:
    return CLIPImageProcessorPil(size={"shortest_edge": PX}, crop_size={"height": PX, "width": PX})


def write_classifier(folder: Path, seed=0, preprocessor=True) -> Path:
    torch.manual_seed(seed)
    labels = ["cat", "dog", "ship"]
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic",
                          num_labels=3, id2label=dict(enumerate(labels)))  # fmt: skip
    ResNetForImageClassification(config).save_pretrained(folder)
    if preprocessor:
        ViTImageProcessorPil(size={"height": PX, "width": PX}, resample=2, image_mean=[0.1, 0.2, 0.3]).save_pretrained(
            folder
        )
    return folder


def write_vit(folder: Path, preprocessor=False) -> Path:
    """A classifier of tokens, which takes pictures of one size."""
    torch.manual_seed(0)
    config = ViTConfig(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
                       image_size=PX, patch_size=8, num_labels=3)  # fmt: skip
    ViTForImageClassification(config).save_pretrained(folder)
    if preprocessor:
        ViTImageProcessorPil(size={"height": PX, "width": PX}).save_pretrained(folder)
    return folder


IMAGEREWARD = {
    "model_type": MODEL_TYPE,
    "mean": 0.25,
    "std": 2.0,
    "max_tokens": 12,
    "vision_config": {"hidden_size": 24, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 2,
                      "image_size": PX, "patch_size": 8, "layer_norm_eps": 1e-6},
    "text_config": {"vocab_size": 40, "hidden_size": 16, "encoder_hidden_size": 24, "intermediate_size": 64,
                    "num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 16,
                    "bos_token_id": 2, "sep_token_id": 3, "eos_token_id": 3, "is_decoder": True},
}  # fmt: skip


def write_imagereward(folder: Path) -> Path:
    torch.manual_seed(0)
    folder.mkdir(exist_ok=True)
    network = ImageRewardNetwork(IMAGEREWARD)
    for parameter in network.head.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    torch.nn.init.normal_(network.vision.embeddings.patch_embedding.weight, std=0.05)
    state = {name: value.contiguous() for name, value in network.state_dict().items()}
    save_file(state, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(IMAGEREWARD))
    clip_processor().save_pretrained(folder)
    write_bert_tokenizer(folder / TOKENIZER)
    return folder


def write_bert_tokenizer(folder: Path) -> None:
    words = sorted(set(" ".join(WORDS).split()))
    vocabulary = {word: number for number, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words])}
    BertTokenizerFast(vocab=vocabulary, do_lower_case=True).save_pretrained(folder)


def pictures(count=2, seed=0, height=40, width=40) -> list[Image.Image]:
    """Smooth random colours, so that resizing has something to keep."""
    rng = np.random.default_rng(seed)
    small = [Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)) for _ in range(count)]
    return [picture.resize((width, height), Image.Resampling.BICUBIC) for picture in small]


def to_image(found: list[Image.Image]) -> torch.Tensor:
    """[B, 3, H, W] in [0, 1]"""
    return torch.stack([torch.from_numpy(np.asarray(one).copy()).permute(2, 0, 1).float() / 255 for one in found])
