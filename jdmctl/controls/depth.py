"""Depth, by any monocular depth network of transformers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from jdmctl._compat import ensure_torchvision
from jdmctl.errors import BadInputError, MissingWeightsError, first_line
from jdmctl.objectives.energy import l1, l2
from jdmctl.weights import require_safetensors

_NEAREST = 1e-3  # in a network's own unit: what distances are cut at before they are inverted
_DISTANCE = ("glpn", "zoedepth", "tipsv2_dpt")  # model types that predict distances; others say so in their config
_BEYOND = 0.5  # of [0, 1]: what a network trained on such values may overshoot


class Depth:
    """Relative inverse depth, near = 1, as one network sees it; another one scores.

    `network` and `scorer` are folders or hub names that AutoModelForDepthEstimation can load.
    `normalise` is "none" for networks that predict values in [0, 1], "per_image" for networks such
    as DPT and Depth Anything, whose prediction has no scale: (d - min d) / (max d - min d); "inverse"
    for networks that predict distances, such as GLPN, ZoeDepth and metric Depth Anything: the same of 1 / d.
    Without a `scorer` the network of the energy also scores, which flatters the result.
    """

    name = "depth"
    gradient = "network"
    description = "relative inverse depth, near is bright"
    headline = "l1"
    higher_is_better = False

    def __init__(
        self,
        network: str,
        scorer: str | None = None,
        normalise: Literal["none", "per_image", "inverse"] = "none",
    ) -> None:
        """Raises BadInputError for `per_image` of a network known to predict distances: far would be bright."""
        if normalise not in ("none", "per_image", "inverse"):
            raise BadInputError(f"depth: normalise is '{normalise}'", hint="choose 'none', 'per_image' or 'inverse'")
        self._normalise = normalise
        self.network = DepthNetwork(network)
        self.scorer = DepthNetwork(scorer) if scorer else self.network
        for source, one in ((network, self.network), (scorer, self.scorer)):
            if normalise == "per_image" and one.is_distance:
                raise BadInputError(
                    f"depth: {source} predicts distances, so far would be bright", hint="normalise: inverse"
                )

    @torch.no_grad()
    def condition(self, image: Tensor) -> Tensor:
        """[B, 3, H, W] in [0, 1]. Raises BadInputError for a network whose depth has no scale, without `normalise`."""
        depth = self._depth(self.network, image)
        low, high = depth.aminmax()
        if not -_BEYOND <= low <= high <= 1 + _BEYOND:
            raise BadInputError(
                f"depth: the network says {low:.3g} to {high:.3g}, and a condition is between 0 and 1",
                hint="normalise: per_image, for networks such as DPT and Depth Anything, or inverse, for distances",
            )
        return depth.clamp(0, 1).repeat(1, 3, 1, 1)

    def energy(self, image: Tensor, condition: Tensor) -> Tensor:
        """Mean |h(image) - condition|, [B]: Laplace noise on depth."""
        return l1(self._depth(self.network, image), condition[:, :1])

    @torch.no_grad()
    def scores(self, image: Tensor, condition: Tensor) -> dict[str, Tensor]:
        depth = self._depth(self.scorer, image.clamp(0, 1))
        return {"l1": l1(depth, condition[:, :1]), "rmse": l2(depth, condition[:, :1]).sqrt()}

    def to(self, device: Any) -> Self:
        self.network.to(device)
        self.scorer.to(device)
        return self

    def _depth(self, network: DepthNetwork, image: Tensor) -> Tensor:
        depth = network(image)  # [B, 1, H, W]
        if self._normalise == "none":
            return depth
        if self._normalise == "inverse":
            depth = 1 / depth.clamp(min=_NEAREST)
        low, high = depth.amin((2, 3), keepdim=True), depth.amax((2, 3), keepdim=True)
        return (depth - low) / (high - low).clamp(min=1e-6)


class DepthNetwork(nn.Module):
    """A frozen depth network with its own preprocessing done in torch, so that it has a gradient."""

    mean: Tensor
    std: Tensor

    def __init__(self, source: str) -> None:
        super().__init__()
        self.model = _load(source)
        settings = _preprocessing(source)
        mean, std = _normalisation(settings)
        self.register_buffer("mean", mean.view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", std.view(1, 3, 1, 1), persistent=False)
        self.input_size = _size(settings)
        config: Any = self.model.config
        self.is_distance = config.model_type in _DISTANCE or getattr(config, "depth_estimation_type", "") == "metric"

    def forward(self, image: Tensor) -> Tensor:
        """Images [B, 3, H, W] in [0, 1] -> what the network predicts, [B, 1, H, W]."""
        pixels = (image - self.mean) / self.std
        if self.input_size:
            pixels = _resize(pixels, self.input_size)
        depth = self.model(pixel_values=pixels).predicted_depth
        return _resize(depth[:, None].to(image.dtype), image.shape[-2:])  # of bf16 a CPU has no antialiased one


def _normalisation(settings: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation, [3] each, of pictures in [0, 1], from a preprocessor_config.json."""
    if not settings.get("do_normalize", "image_mean" in settings or not settings):  # GLPN's has neither
        return torch.zeros(3), torch.ones(3)
    values = torch.tensor([settings.get("image_mean", [0.5] * 3), settings.get("image_std", [0.5] * 3)])
    mean, std = values if settings.get("do_rescale", True) else values / 255  # of pictures in [0, 255]
    return mean, std


def _size(settings: Mapping[str, Any]) -> tuple[int, int] | None:
    """Height and width that the network wants, if it wants any; one number, as in DPT's first files, is a square."""
    size = settings.get("size")
    if not settings.get("do_resize", True) or not size:
        return None
    if isinstance(size, int):
        return size, size
    return (size["height"], size["width"]) if "height" in size else None


def _resize(image: Tensor, size: tuple[int, int] | torch.Size) -> Tensor:
    if image.shape[-2:] == tuple(size):
        return image
    return functional.interpolate(image, size, mode="bilinear", antialias=True)


def _load(source: str) -> nn.Module:
    ensure_torchvision()
    from transformers import AutoModelForDepthEstimation

    if Path(source).exists():
        require_safetensors(source)
    try:
        model = AutoModelForDepthEstimation.from_pretrained(source, use_safetensors=True)
    except (OSError, ValueError) as problem:
        raise MissingWeightsError(
            f"cannot load a depth network from {source}: {first_line(problem)}",
            hint="give the folder or hub name of an AutoModelForDepthEstimation",
        ) from problem
    return model.eval().requires_grad_(False)


def _preprocessing(source: str) -> dict[str, Any]:
    from transformers.utils import cached_file

    path = cached_file(source, "preprocessor_config.json", _raise_exceptions_for_missing_entries=False)
    return json.loads(Path(path).read_text()) if path else {}
