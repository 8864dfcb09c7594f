"""Frozen networks as features of a picture and its caption, for a head that people's choices train."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d

from jdmctl.errors import BadInputError, MissingWeightsError
from jdmctl.rewards.folders import load_network, processor_settings, read_json, require_weights, run_network
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
    """A hidden state of an image classifier, averaged over each of grid x grid places, [B, grid^2 D].

    The last one (`layer` -1) knows things, early ones colour and light. An average over the whole picture says what is
    there, not where. Captions are not read.
    """

    def __init__(self, source: str, grid: int = 1, layer: int = -1) -> None:
        super().__init__()
        self.source, self.grid, self.layer = source, grid, layer
        self.network = load_network("AutoModelForImageClassification", source, "an image classifier")
        self.preprocessing = Preprocessing(processor_settings(source) or {})
        self.input_px = self.preprocessing.input_px

    def forward(self, image: Tensor, texts: Sequence[str] = ()) -> Tensor:
        output = run_network(self.network, self.source, self.preprocessing(image), output_hidden_states=True)
        if not -len(output.hidden_states) <= self.layer < len(output.hidden_states):
            raise BadInputError(f"{self.source} has no layer {self.layer}", f"it has {len(output.hidden_states)}")
        state = output.hidden_states[self.layer].float()
        if state.ndim == 3:  # [B, tokens, D]
            if self.grid > 1:
                raise BadInputError(
                    f"{self.source} keeps no places: layer {self.layer} is a list of tokens, so grid {self.grid} would "
                    "give the features of grid 1",
                    hint="leave --grid out, or take a classifier whose layers are maps, such as a ResNet",
                )
            return state.mean(1)
        return adaptive_avg_pool2d(state, self.grid).flatten(1)  # of [B, D, h, w]


def load_encoder(source: str, grid: int = 1, layer: int = -1) -> ImageTextFeatures | ClassifierFeatures:
    """The features of a CLIP-like folder, or of an image classifier's, the latter from a layer, by places.

    Raises:
        JdmError: there is no such folder, or it is neither; a layer or places are asked of a CLIP-like one.
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
        if (grid, layer) != (1, -1):
            raise BadInputError(
                f"{source} is a CLIP-like model, which gives one vector: grid {grid} and layer {layer} have no effect",
                hint="leave --grid and --layer out, or give an image classifier",
            )
        return ImageTextFeatures(source)
    if kinds[0].endswith("ForImageClassification"):
        return ClassifierFeatures(source, grid, layer)
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
