"""Networks whose features measure distances between sets of pictures, by name; and who judges with them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import AutoConfig, AutoImageProcessor

from jdmctl.errors import BadInputError, JdmError, first_line
from jdmctl.evaluation.fidelity import features
from jdmctl.evaluation.prompts import Classes
from jdmctl.rewards.folders import load_network, load_tokenizer
from jdmctl.rewards.image_text import text_vectors

_TEXTS = 64  # in one batch


class InceptionFeatures:
    """FID's own network: pool3 of Inception v3, 2048 features (Heusel et al. 2017), by torch-fidelity."""

    name = "inception"

    def __init__(self, device: str = "cpu") -> None:
        self._device = device
        try:
            from torchmetrics.image.fid import NoTrainInceptionV3

            self._network = NoTrainInceptionV3("inception-v3-compat", ["2048"]).eval().to(device)
        except ModuleNotFoundError as reason:
            raise JdmError(f"Inception needs {reason.name}", hint="pip install jdmctl[metrics]") from reason
        except OSError as reason:
            raise JdmError(
                f"Inception's weights cannot be had: {reason}", hint="go online once, or give --features FOLDER"
            ) from reason

    def features(self, images: Tensor) -> Tensor:
        """float64 [N, 2048] of images [N, 3, H, W] in [0, 1]."""
        return features(self._embed, images)

    def prompt_scores(self, images: Tensor, texts: Sequence[str]) -> None:
        """None: it knows no words."""

    def _embed(self, images: Tensor) -> Tensor:
        pixels = (images * 255).round().byte()
        return self._network(pixels.to(self._device)).cpu()


class PretrainedFeatures:
    """A vision network of transformers, from a folder or the hub: CLIP (as CMMD uses), DINOv2, SigLIP ...

    Of one without a pooler, or without the weights of it, the features are the mean of its last hidden states.

    Raises:
        JdmError: it cannot be loaded, lacks other weights, or does not look at whole pictures.
    """

    def __init__(self, source: str, device: str = "cpu") -> None:
        try:
            config = AutoConfig.from_pretrained(source)
            self._processor: Any = AutoImageProcessor.from_pretrained(source)
        except (OSError, ValueError) as reason:
            raise BadInputError(
                f"no feature network can be loaded from {source}: {first_line(reason)}",
                hint="give the folder or hub name of a transformers vision model, for instance of CLIP or DINOv2",
            ) from reason
        if getattr(config, "mask_ratio", None):
            raise BadInputError(
                f"{source} holds a {config.model_type}, which looks at a random part of each picture",
                hint="give a network that sees whole pictures, such as CLIP or DINOv2",
            )
        self._network = load_network("AutoModel", source, "a feature network", spare="pooler").to(device)
        self._tokenizer = load_tokenizer(source) if hasattr(config, "text_config") else None
        has_no_pooler = getattr(self._network, "pooler", True) is None
        self.name = f"{config.model_type} {source}" + (", mean of its last hidden states" if has_no_pooler else "")

    def features(self, images: Tensor) -> Tensor:
        """float64 [N, D] of images [N, 3, H, W] in [0, 1]."""
        return features(self._embed, images)

    @torch.no_grad()
    def prompt_scores(self, images: Tensor, texts: Sequence[str]) -> Tensor | None:
        """100 cos(image, text), [N], for networks that know words (Hessel et al. 2021, arXiv:2104.08718)."""
        if self._tokenizer is None:
            return None
        parts = [texts[first : first + _TEXTS] for first in range(0, len(texts), _TEXTS)]
        words = torch.cat([text_vectors(self._network, self._tokenizer, part).cpu() for part in parts])
        return 100 * functional.cosine_similarity(self.features(images), words.double())

    def _embed(self, images: Tensor) -> Tensor:
        pixels = (images * 255).round().byte()
        inputs = self._processor(images=list(pixels), return_tensors="pt", input_data_format="channels_first")
        inputs = inputs.to(self._network.device)
        if hasattr(self._network, "get_image_features"):
            return _pooled(self._network.get_image_features(**inputs)).cpu()
        return _pooled(self._network(**inputs)).cpu()


def load_features(name: str, device: str = "cpu") -> InceptionFeatures | PretrainedFeatures:
    """`inception`, or a transformers model by folder or hub name, on a device; images and features are on the CPU.

    Raises JdmError if it cannot be loaded.
    """
    return InceptionFeatures(device) if name == "inception" else PretrainedFeatures(name, device)


@dataclass(frozen=True)
class FeatureJudge:
    """A judge that knows no attributes: it measures distances, and prompts if its network knows words."""

    network: InceptionFeatures | PretrainedFeatures

    @property
    def name(self) -> str:
        return self.network.name

    def features(self, images: Tensor) -> Tensor:
        return self.network.features(images)

    def prompt_scores(self, images: Tensor, texts: Sequence[str]) -> Tensor | None:
        return self.network.prompt_scores(images, texts)

    def shown(self, images: Tensor) -> Classes:
        return {}

    def classes(self, hot: Tensor) -> Classes:
        return {}


def _pooled(output: Any) -> Tensor:
    """Some versions return the pooled tensor, some an object that holds it; else the mean over tokens or places."""
    if isinstance(output, Tensor):
        return output
    if (pooled := getattr(output, "pooler_output", None)) is not None:
        return pooled.flatten(1)  # [B, D, 1, 1] of convolutional networks
    hidden = output.last_hidden_state  # [B, T, D], of some networks [B, D, h, w]
    return hidden.mean(1) if hidden.ndim == 3 else hidden.mean((2, 3))
