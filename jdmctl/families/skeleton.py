"""Components from their configurations alone: what a plan is made of before any weights are there."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

_WITHOUT_WEIGHTS: ContextVar[bool] = ContextVar("without_weights", default=False)


@contextmanager
def without_weights() -> Iterator[None]:
    """Inside, `load_component` makes components of their configurations and reads no weights.

    Their tensors are fake: they have shapes and no memory. What is computed of them inside is fake too.
    """
    token = _WITHOUT_WEIGHTS.set(True)
    # All are made in float32 on the CPU and stay so: torch refuses to convert a fake parameter in place.
    unconverted = patch.object(nn.Module, "_apply", lambda self, *_, **__: self)
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    fake.cache_enabled = False
    try:
        with fake, unconverted:
            yield
    finally:
        _WITHOUT_WEIGHTS.reset(token)


def is_without_weights() -> bool:
    return _WITHOUT_WEIGHTS.get()


def from_configuration(model_class: Any, folder: str | Path, subfolder: str | None) -> Any:
    """A diffusers or transformers component in float32, or a tokenizer (a stand-in where its files are not there)."""
    options = {"subfolder": subfolder} if subfolder else {}
    if not issubclass(model_class, nn.Module):
        is_there = not Path(folder).exists() or Path(folder, subfolder or "").exists()
        return model_class.from_pretrained(folder, **options) if is_there else StandInTokenizer()
    if hasattr(model_class, "load_config"):  # diffusers
        return model_class.from_config(model_class.load_config(folder, **options)).float()
    return model_class(model_class.config_class.from_pretrained(folder, **options)).float()


class StandInTokenizer:
    """Every text is as many zeros as are asked for, or as CLIP's tokenizer makes: 77."""

    model_max_length = 77

    def __call__(self, texts: str | Sequence[str], max_length: int | None = None, **options: Any) -> SimpleNamespace:
        size = 1 if isinstance(texts, str) else len(texts)
        shape = size, max_length or self.model_max_length
        return SimpleNamespace(
            input_ids=torch.zeros(shape, dtype=torch.long), attention_mask=torch.ones(shape, dtype=torch.long)
        )
