"""ImageReward: BLIP reads the caption while it looks at the picture; a small head gives the score."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from jdmctl._compat import ensure_torchvision
from jdmctl.errors import BadInputError, MissingWeightsError
from jdmctl.rewards.aesthetic import mlp
from jdmctl.rewards.folders import load_tokenizer, processor_settings, read_json, require_folder
from jdmctl.rewards.pixels import Preprocessing

MODEL_TYPE = "jdmctl_imagereward"
TOKENIZER = "tokenizer"  # a folder of its own: beside a config.json that is not its own transformers would warn
# Of the released model (github.com/THUDM/ImageReward): ViT-L/16 at 224 px, BERT base with cross-attention, and
# what its scores are normalised by. BLIP's own layer norms have an epsilon of 1e-6, its BERT 12 heads.
RELEASED: dict[str, Any] = {
    "model_type": MODEL_TYPE,
    "mean": 0.16717362830052426,
    "std": 1.0333394966054072,
    "max_tokens": 35,
    "vision_config": {
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "image_size": 224,
        "patch_size": 16,
        "layer_norm_eps": 1e-6,
    },
    "text_config": {
        "vocab_size": 30524,
        "hidden_size": 768,
        "encoder_hidden_size": 1024,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "max_position_embeddings": 512,
        "layer_norm_eps": 1e-12,
        "is_decoder": True,  # or transformers leaves the cross-attention out; it is not run as a decoder
    },
}


class ImageRewardNetwork(nn.Module):
    """Picture [B, 3, S, S] and tokens [B, L] -> score [B] (Xu et al. 2023, arXiv:2304.05977)."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        ensure_torchvision()
        from transformers import BlipTextConfig, BlipVisionConfig, BlipVisionModel
        from transformers.models.blip.modeling_blip_text import BlipTextModel

        self.vision = BlipVisionModel(BlipVisionConfig(**config["vision_config"]))
        self.text = BlipTextModel(BlipTextConfig(**config["text_config"]), add_pooling_layer=False)
        self.head = mlp(config["text_config"]["hidden_size"])
        self._mean, self._std = config["mean"], config["std"]

    def forward(self, pixels: Tensor, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        seen = self.vision(pixel_values=pixels).last_hidden_state
        read = self.text(
            input_ids=input_ids,
            attention_mask=attention_mask,
            encoder_hidden_states=seen,
            encoder_attention_mask=torch.ones(seen.shape[:2], dtype=torch.long, device=seen.device),
            is_decoder=False,
        )
        score = self.head(read.last_hidden_state[:, 0].float()).squeeze(1)
        return (score - self._mean) / self._std


class ImageReward:
    """About N(0, 1) over pictures of its own training, higher is better.

    `folder` is what `jdmctl reward convert ImageReward.pt FOLDER` writes. Known to be easily hacked:
    mix it with another reward and keep the fidelity term.
    """

    name = "imagereward"
    description = "ImageReward: BLIP with a head tuned on rankings, about N(0, 1)"
    reads_text = True

    def __init__(self, folder: str) -> None:
        from safetensors.torch import load_file

        require_folder(folder)
        self._config = read_json(folder, "config.json") or {}
        if self._config.get("model_type") != MODEL_TYPE:
            raise BadInputError(
                f"{folder} is no ImageReward folder (model_type {self._config.get('model_type')!r})",
                hint="make one: jdmctl reward convert ImageReward.pt FOLDER",
            )
        self.network = ImageRewardNetwork(self._config)
        problems = self.network.load_state_dict(load_file(Path(folder, "model.safetensors")), strict=False)
        if problems.missing_keys or problems.unexpected_keys:
            raise MissingWeightsError(
                f"{folder}: {len(problems.missing_keys)} weights are missing, "
                f"{len(problems.unexpected_keys)} are not known",
                hint="convert the checkpoint again",
            )
        self.network.eval().requires_grad_(False)
        self.preprocessing = Preprocessing(processor_settings(folder) or {})
        self._tokenizer = load_tokenizer(str(Path(folder, TOKENIZER)))

    def __call__(self, image: Tensor, texts: Sequence[str]) -> Tensor:
        tokens = self._tokenizer(
            list(texts),
            padding="max_length",
            truncation=True,
            max_length=self._config["max_tokens"],
            return_tensors="pt",
        ).to(image.device)
        return self.network(self.preprocessing(image), tokens.input_ids, tokens.attention_mask)

    def to(self, device: Any) -> Self:
        self.network.to(device)
        self.preprocessing.to(device)
        return self
