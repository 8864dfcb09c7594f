"""Frozen networks as features of a picture and its caption, for a head that people's choices train."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from jdmctl.errors import BadInputError, MissingWeightsError
from jdmctl.rewards.folders import load_network, processor_settings, read_json, require_weights
from jdmctl.rewards.image_text import ImageTextEncoder
from jdmctl.rewards.pixels import Preprocessing

_PROBE_PX = 64


class Encoder(Protocol):
    """Any function of pictures and captions that is differentiable in the pictures."""

    def __call__(self, image: Tensor, texts: Sequence[str]) -> Tensor: ...  # [B, 3, H, W] in [0, 1] -> [B, D]


class ImageTextFeatures(nn.Module):
    """[u, u v]: the picture's unit vector, and its product with the caption's, number by number; [B, 2 D].

    A linear head on them holds every linear taste in pictures, and every reweighting of the CLIP score.
    What belongs to the caption alone is the same for both pictures of a pair and is left out.
    """

    def __init__(self, source: str) -> None:
        super().__init__()
        self.source = source
        self.encoder = ImageTextEncoder(source)
        self.input_px = self.encoder.preprocessing.input_px

    def forward(self, image: Tensor, texts: Sequence[str]) -> Tensor:
        picture = self.encoder.image(image)
        return torch.cat([picture, picture * self.encoder.text(texts)], dim=1)


class ClassifierFeatures(nn.Module):
    """The last hidden state of an image classifier, averaged over places, [B, D]; captions are not read."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.source = source
        self.network = load_network("AutoModelForImageClassification", source, "an image classifier")
        self.preprocessing = Preprocessing(processor_settings(source) or {})
        self.input_px = self.preprocessing.input_px

    def forward(self, image: Tensor, texts: Sequence[str] = ()) -> Tensor:
        output = self.network(pixel_values=self.preprocessing(image), output_hidden_states=True)
        last = output.hidden_states[-1].float()
        return last.mean((2, 3)) if last.ndim == 4 else last.mean(1)  # [B, D, h, w] or [B, tokens, D]


def load_encoder(source: str) -> ImageTextFeatures | ClassifierFeatures:
    """The features of a CLIP-like folder, or of an image classifier's.

    Raises:
        JdmError: there is no such folder, or it is neither.
    """
    require_weights(source)
    config = read_json(source, "config.json")
    if config is None:
        raise MissingWeightsError(
            f"no encoder at {source}: there is no config.json",
            hint="give the folder or hub name of a CLIP-like model or an image classifier",
        )
    kinds = config.get("architectures") or [""]
    if {"text_config", "vision_config"} <= config.keys():
        return ImageTextFeatures(source)
    if kinds[0].endswith("ForImageClassification"):
        return ClassifierFeatures(source)
    raise BadInputError(
        f"{source} holds a {kinds[0] or config.get('model_type')}: neither a CLIP-like model nor an image classifier",
        hint="give the folder of a CLIPModel, SiglipModel or ...ForImageClassification",
    )


@torch.no_grad()
def probe(encoder: Encoder, device: Any = "cpu") -> Tensor:
    """Features [D] of one fixed picture and caption, by which an encoder is known again."""
    ramp = torch.linspace(0, 1, _PROBE_PX, device=device)
    image = torch.stack(torch.broadcast_tensors(ramp[:, None], ramp, ramp.flip(0)))  # [3, H, W]
    return encoder(image[None], ["a probe"])[0].float().cpu()
