"""Published reward checkpoints, made once into folders that can be opened safely."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from jdmctl._compat import ensure_torchvision
from jdmctl.errors import BadInputError, MissingWeightsError, first_line
from jdmctl.rewards.aesthetic import head_of
from jdmctl.rewards.blip import to_imagereward_network
from jdmctl.rewards.folders import load_tokenizer
from jdmctl.rewards.imagereward import RELEASED, TOKENIZER, ImageRewardNetwork
from jdmctl.rewards.open_clip import VIT_H_14, clip_config, to_clip_model
from jdmctl.rewards.pixels import CLIP_MEAN, CLIP_STD
from jdmctl.weights import PICKLE_SUFFIXES, require_safetensors

TOKENIZERS = {"hps": "openai/clip-vit-large-patch14", "imagereward": "bert-base-uncased"}

State = Mapping[str, Tensor]


@dataclass(frozen=True)
class Converted:
    """A checkpoint under the names of a reward, and what its folder holds besides."""

    reward: str
    state: dict[str, Tensor]
    config: dict[str, Any]
    picture_px: int | None = None

    def write(self, folder: Path, tokenizer: Any = None) -> None:
        """model.safetensors, config.json, and for networks the preprocessing and the tokenizer."""
        from safetensors.torch import save_file

        tensors = {name: value.contiguous() for name, value in self.state.items()}
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        _write_json(folder / "config.json", self.config)
        if self.picture_px:
            _write_json(folder / "preprocessor_config.json", _preprocessing(self.picture_px))
        if tokenizer is not None:
            tokenizer.save_pretrained(folder / TOKENIZER if self.reward == "imagereward" else folder)


def read_checkpoint(path: str | Path) -> Converted:
    """HPSv2, ImageReward or an aesthetic predictor, known by the names of its weights.

    A pickle is opened with `weights_only=True`, which builds tensors and plain containers and calls
    nothing else. The user asks for it by running the command; nothing else in jdmctl opens one.

    Raises:
        JdmError: no such file, more than weights in it, or the weights of no known reward.
    """
    state = _weights(Path(path))
    if "visual.conv1.weight" in state:
        renamed, unknown = to_clip_model(state)
        config = clip_config(VIT_H_14)
        converted = Converted("hps", renamed, config, config["vision_config"]["image_size"])
        _require_same(path, converted, _shapes_of_clip(config), unknown)
    elif "blip.visual_encoder.cls_token" in state:
        renamed, unknown = to_imagereward_network(state)
        converted = Converted("imagereward", renamed, RELEASED, RELEASED["vision_config"]["image_size"])
        _require_same(path, converted, shapes_of_imagereward(RELEASED), unknown)
    elif head_of(state) is not None:
        converted = Converted("aesthetic", dict(state), {"model_type": "jdmctl_aesthetic"})
    else:
        raise BadInputError(
            f"{path} holds the weights of no reward that is known: {', '.join(list(state)[:3])} ...",
            hint="known are HPSv2 / v2.1, ImageReward and LAION's aesthetic predictors",
        )
    return converted


def tokenizer_for(converted: Converted, source: str) -> Any:
    """The tokenizer to put beside the weights; None for a reward without one.

    Raises:
        JdmError: it cannot be loaded, or has more words than the weights.
    """
    if converted.reward not in TOKENIZERS:
        return None
    tokenizer = load_tokenizer(source or TOKENIZERS[converted.reward])
    known = converted.config["text_config"]["vocab_size"]
    if len(tokenizer) > known:
        raise BadInputError(
            f"the tokenizer has {len(tokenizer)} words, the weights have {known}",
            hint=f"give the one of {TOKENIZERS[converted.reward]}",
        )
    return tokenizer


def shapes_of_imagereward(config: Mapping[str, Any]) -> dict[str, torch.Size]:
    """Name -> shape of ImageRewardNetwork's weights, without making them."""
    with torch.device("meta"):
        return {name: value.shape for name, value in ImageRewardNetwork(config).state_dict().items()}


def _shapes_of_clip(config: Mapping[str, Any]) -> dict[str, torch.Size]:
    ensure_torchvision()
    from transformers import CLIPConfig, CLIPModel

    with torch.device("meta"):
        model = CLIPModel(CLIPConfig(vision_config=config["vision_config"], text_config=config["text_config"],
                                     projection_dim=config["projection_dim"]))  # fmt: skip
        return {name: value.shape for name, value in model.state_dict().items()}


def _weights(path: Path) -> State:
    if not path.is_file():
        raise BadInputError(f"no file {path}", hint="give the downloaded checkpoint itself, not its folder")
    if path.suffix in PICKLE_SUFFIXES:
        try:
            found = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as problem:  # of a damaged pickle torch raises whatever it stumbles over
            raise MissingWeightsError(
                f"{path} holds more than weights, or is damaged: not opened ({first_line(problem)})",
                hint="download it again from its authors",
            ) from problem
    else:
        from safetensors.torch import load_file

        require_safetensors(path)
        found = load_file(path)
    while isinstance(found, Mapping) and (inner := found.get("state_dict", found.get("model"))) is not None:
        found = inner
    is_named = isinstance(found, Mapping) and all(isinstance(name, str) for name in found)
    if not is_named or not all(isinstance(value, Tensor) for value in found.values()):
        raise BadInputError(f"{path} is no dictionary of weights", hint="give a state_dict")
    return {name.removeprefix("module."): value for name, value in found.items()}


def _require_same(
    path: str | Path, converted: Converted, expected: Mapping[str, torch.Size], unknown: list[str]
) -> None:
    found = {name: value.shape for name, value in converted.state.items()}
    problems = [f"{name} is not known" for name in unknown]
    problems += [f"{name} is missing" for name in expected.keys() - found.keys()]
    problems += [f"{name} is not known" for name in found.keys() - expected.keys()]
    problems += [
        f"{name} is {list(found[name])}, expected {list(expected[name])}"
        for name in found.keys() & expected.keys()
        if found[name] != expected[name]
    ]
    if problems:
        shown = "".join(f"\n  {problem}" for problem in sorted(problems)[:10])
        raise BadInputError(
            f"{path} is not the {converted.reward} that is known; {len(problems)} weights differ:{shown}",
            hint="only the released ViT-H-14 of HPSv2 and ViT-L of ImageReward can be converted",
        )


def _preprocessing(picture_px: int) -> dict[str, Any]:
    return {
        "image_processor_type": "CLIPImageProcessor",
        "do_resize": True,
        "size": {"shortest_edge": picture_px},
        "resample": 3,
        "do_center_crop": True,
        "crop_size": {"height": picture_px, "width": picture_px},
        "do_normalize": True,
        "image_mean": list(CLIP_MEAN),
        "image_std": list(CLIP_STD),
    }


def _write_json(file: Path, content: Mapping[str, Any]) -> None:
    file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
