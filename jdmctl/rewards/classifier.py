"""A class of any image classifier as something to strive for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

from torch import Tensor
from torch.nn import functional

from jdmctl.errors import BadInputError
from jdmctl.rewards.folders import load_network, processor_settings, run_network
from jdmctl.rewards.pixels import Preprocessing


class Classifier:
    """log p(label | image), at most 0; the caption is not read.

    `folder` is what AutoModelForImageClassification can load, `label` a name or number of one of its
    classes. Classes exclude one another (softmax) unless `independent` says that each has its own
    yes or no (sigmoid); by default the folder's problem_type says which. Without a
    preprocessor_config.json pictures go in at their own size, in [-1, 1].
    """

    name = "classifier"
    description = "log-probability of a class of any image classifier"
    reads_text = False

    def __init__(self, folder: str, label: str | int, independent: bool | None = None) -> None:
        self.network = load_network("AutoModelForImageClassification", folder, "an image classifier")
        labels: dict[int, str] = self.network.config.id2label
        self._column = _column(folder, label, labels)
        if independent is None:
            independent = self.network.config.problem_type == "multi_label_classification"
        self._folder, self._independent = folder, independent
        self.preprocessing = Preprocessing(processor_settings(folder) or {})

    def __call__(self, image: Tensor, texts: Sequence[str] = ()) -> Tensor:
        logits = run_network(self.network, self._folder, self.preprocessing(image)).logits.float()  # [B, classes]
        log_odds = functional.logsigmoid(logits) if self._independent else functional.log_softmax(logits, dim=1)
        return log_odds[:, self._column]

    def to(self, device: Any) -> Self:
        self.network.to(device)
        self.preprocessing.to(device)
        return self


def _column(folder: str, label: str | int, labels: dict[int, str]) -> int:
    if isinstance(label, int) and label in labels:
        return label
    for column, name in labels.items():
        if name == label:
            return int(column)
    shown = ", ".join(list(labels.values())[:10]) + (" ..." if len(labels) > 10 else "")
    raise BadInputError(f"{folder} has no class {label!r}", hint=f"it has {len(labels)}: {shown}")
