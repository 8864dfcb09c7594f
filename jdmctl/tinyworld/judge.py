"""What the held-out classifier says of pictures: stated attributes, open attributes, distance to true pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModelForImageClassification, PreTrainedModel

from jdmctl.evaluation.fidelity import features, frechet_distance
from jdmctl.evaluation.prompts import OPEN, Classes, stated_accuracy
from jdmctl.weights import fingerprint


@dataclass(frozen=True)
class Judge:
    classifier: PreTrainedModel
    name: str = "features of a classifier"

    @property
    def attributes(self) -> dict[str, list[int]]:
        """Attribute -> its columns among the labels, which read `attribute: value`."""
        columns: dict[str, list[int]] = {}
        for column, label in self.classifier.config.id2label.items():
            columns.setdefault(label.split(": ")[0], []).append(column)
        return columns

    @classmethod
    def load(cls, world: Path) -> Judge:
        folder = world / "classifier"
        name = f"features of the classifier {(fingerprint(folder) or '')[:8]}"
        return cls(AutoModelForImageClassification.from_pretrained(folder).float().eval(), name)

    def pooled(self, images: Tensor) -> Tensor:
        """[B, D] features of images [B, 3, H, W] in [0, 1]."""
        states = self.classifier(images * 2 - 1, output_hidden_states=True).hidden_states[-1]
        return states.mean((2, 3))

    def features(self, images: Tensor) -> Tensor:
        """float64 [N, D] features for Frechet and kernel distances."""
        return features(self.pooled, images)

    @torch.no_grad()
    def shown(self, images: Tensor) -> Classes:
        """Attribute -> class indices [N] that the classifier sees in images [N, 3, H, W] in [0, 1]."""
        logits = torch.cat([self.classifier(part * 2 - 1).logits for part in images.split(128)])
        return {name: logits[:, columns].argmax(1) for name, columns in self.attributes.items()}

    def prompt_scores(self, images: Tensor, texts: Sequence[str]) -> None:
        """None: it judges by attributes."""

    def accuracy(self, images: Tensor, stated: Tensor) -> dict[str, float]:
        """Attribute -> share of pictures that show what their caption states; `stated` is bool [N, L]."""
        correct = stated_accuracy(self.shown(images), self.classes(stated))
        return {name: values.mean().item() for name, values in correct.items()}

    def frechet(self, images: Tensor, reference: Tensor) -> float:
        return frechet_distance(self.features(images), self.features(reference))

    def classes(self, hot: Tensor) -> Classes:
        """Multi-hot labels [N, L] to attribute -> class indices [N]; OPEN where none is set."""
        found = {}
        for name, columns in self.attributes.items():
            part = hot[:, columns]
            found[name] = torch.where(part.any(1), part.int().argmax(1), OPEN)
        return found
