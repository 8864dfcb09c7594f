"""Full-size published models, built on the meta device: their shapes without memory or download."""

from __future__ import annotations

import functools
import json
from importlib import import_module
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any

import torch
import yaml
from pydantic import Field, PositiveInt
from torch import nn

from jdmctl.families.students import Strict, Url


class Component(Strict):
    """A configuration with its source; what each field means is told at the head of published.yaml."""

    class_name: str = Field(alias="class", pattern=r"^(diffusers|transformers)\.\w+$")
    config: dict[str, Any]
    config_source: Url
    size: Annotated[str, Field(pattern=r"^[\d.]+ (B|MB|GB)$")] | None = None
    bytes_each: PositiveInt | None = None
    buffers: int = 0
    size_source: Url | None = None

    def build(self) -> nn.Module:
        """The module, on the meta device."""
        return build_on_meta(self.class_name, self.config)


class PublishedModel(Strict):
    family: str
    resolution_px: PositiveInt
    backbone: str
    vae: str
    text_encoders: tuple[str, ...]
    repositories: tuple[str, ...]


class _Published(Strict):
    components: dict[str, Component]
    models: dict[str, PublishedModel]


@functools.cache
def published() -> _Published:
    """published.yaml, checked."""
    text = files("jdmctl.families").joinpath("published.yaml").read_text(encoding="utf-8")
    return _Published.model_validate(yaml.safe_load(text))


def find_published(repository: str) -> PublishedModel | None:
    """The model that a hub repository holds, if it is known."""
    wanted = repository.lower()
    return next(
        (model for model in published().models.values() if wanted in (name.lower() for name in model.repositories)),
        None,
    )


def write_skeleton(model: PublishedModel, folder: Path) -> Path:
    """A pipeline folder of a published model's configurations, without weights, for `families.skeleton`.

    Its scheduler is one of the family's: what is held does not depend on it.
    """
    known = published().components
    index: dict[str, Any] = {"_class_name": _PIPELINES[model.family]}
    encoders = {f"text_encoder{f'_{i + 1}' if i else ''}": name for i, name in enumerate(model.text_encoders)}
    backbone = "unet" if known[model.backbone].class_name.endswith("UNet2DConditionModel") else "transformer"
    for role, name in {backbone: model.backbone, "vae": model.vae, **encoders}.items():
        component = known[name]
        library, _, kind = component.class_name.partition(".")
        config: dict[str, Any] = {"_class_name": kind, **component.config}
        if library == "transformers":
            config = {"model_type": _model_type(kind), "architectures": [kind], **component.config}
        index[role] = [library, kind]
        write_json(folder / role / "config.json", config)
    index["scheduler"] = ["diffusers", _SCHEDULERS[model.family]["_class_name"]]
    write_json(folder / "scheduler" / "scheduler_config.json", _SCHEDULERS[model.family])
    write_json(folder / "model_index.json", index)
    return folder


def write_json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")


_PIPELINES = {
    "stable_diffusion": "StableDiffusionPipeline",
    "sdxl": "StableDiffusionXLPipeline",
    "pixart_alpha": "PixArtAlphaPipeline",
    "pixart_sigma": "PixArtSigmaPipeline",
    "sd3": "StableDiffusion3Pipeline",
    "flux": "FluxPipeline",
    "sana": "SanaPipeline",
    "z_image": "ZImagePipeline",
    "qwen_image": "QwenImagePipeline",
}
_TABLE = {"_class_name": "DDIMScheduler", "beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
_FLOW = {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0}
_SCHEDULERS: dict[str, dict[str, Any]] = {
    family: _TABLE if family in ("stable_diffusion", "sdxl", "pixart_alpha", "pixart_sigma") else _FLOW
    for family in _PIPELINES
}


def _model_type(kind: str) -> str:
    return getattr(import_module("transformers"), kind).config_class.model_type


def build_on_meta(class_name: str, config: dict[str, Any]) -> nn.Module:
    """`diffusers.X` or `transformers.X` of a configuration, without memory."""
    library, _, name = class_name.partition(".")
    kind = getattr(import_module(library), name)
    with torch.device("meta"):
        if library == "diffusers":
            return kind.from_config(config)
        return kind(kind.config_class(**config))
