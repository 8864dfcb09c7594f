"""A frozen network that puts pictures and texts into one space: CLIP, SigLIP and their fine-tuned kin."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from jdmctl.errors import BadInputError, MissingWeightsError
from jdmctl.rewards.folders import load_network, load_tokenizer, processor_settings
from jdmctl.rewards.pixels import Fit, Preprocessing


class ImageTextEncoder(nn.Module):
    """`source` is a folder or hub name that holds weights, preprocessor_config.json and a tokenizer.

    The latter two may lie in another folder, `processor`. With `reads_text` False no tokenizer is needed.

    Raises:
        JdmError: one of them is missing or cannot be used.
    """

    def __init__(self, source: str, processor: str | None = None, fit: Fit = "crop", reads_text: bool = True) -> None:
        super().__init__()
        self.source = source
        self.network = load_network("AutoModel", source, "an image-text network")
        if not hasattr(self.network, "get_image_features") or not hasattr(self.network, "get_text_features"):
            raise MissingWeightsError(
                f"{source} holds a {type(self.network).__name__}, not an image-text network",
                hint="give the folder of a CLIPModel or SiglipModel with both halves",
            )
        processor = processor or source
        settings = processor_settings(processor)
        if settings is None:
            raise BadInputError(
                f"{processor} has no preprocessor_config.json, so its picture size, mean and std are unknown",
                hint="copy it from the model's page; CLIPProcessor.save_pretrained writes it",
            )
        self.preprocessing = Preprocessing(settings, fit)
        self._tokenizer = load_tokenizer(processor) if reads_text else None

    def image(self, image: Tensor) -> Tensor:
        """Unit vectors [B, D] of images [B, 3, H, W] in [0, 1]; differentiable."""
        return _unit(self.network.get_image_features(pixel_values=self.preprocessing(image)))

    @torch.no_grad()
    def text(self, texts: Sequence[str]) -> Tensor:
        """Unit vectors [B, D] of texts, cut where the network's context ends; no gradient."""
        assert self._tokenizer is not None
        return text_vectors(self.network, self._tokenizer, texts)

    def similarity(self, image: Tensor, texts: Sequence[str]) -> Tensor:
        """Cosine [B] between each image and its text."""
        return (self.image(image) * self.text(texts)).sum(1)


def text_vectors(network: Any, tokenizer: Any, texts: Sequence[str]) -> Tensor:
    """Unit vectors [B, D] of texts by an image-text network, cut where its context ends."""
    config = network.config
    full = config.model_type.startswith("siglip")  # which saw nothing but full contexts
    tokens = tokenizer(
        list(texts),
        padding="max_length" if full else True,
        truncation=True,
        max_length=config.text_config.max_position_embeddings,
        return_tensors="pt",
    )
    known = {name: tokens[name].to(network.device) for name in ("input_ids", "attention_mask") if name in tokens}
    return _unit(network.get_text_features(**known))


def _unit(features: Any) -> Tensor:
    """transformers 5 wraps the features; under autocast they come in low precision."""
    vectors = features if isinstance(features, Tensor) else features.pooler_output
    return functional.normalize(vectors.float(), dim=-1)
