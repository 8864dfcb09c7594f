"""Components from their configurations alone: what a plan is made of before any weights are there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import nn
from torch._subclasses import fake_tensor
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import BatchEncoding

_KNOWN = 2**16  # elements of a small tensor, whose numbers are followed where all they are made of is known
_WITHOUT_WEIGHTS: ContextVar[bool] = ContextVar("without_weights", default=False)


@contextmanager
def random_weights() -> Iterator[None]:
    """Inside, `load_component` makes components of their configurations and reads no weights: they are random."""
    token = _WITHOUT_WEIGHTS.set(True)
    try:
        yield
    finally:
        _WITHOUT_WEIGHTS.reset(token)


@contextmanager
def without_weights() -> Iterator[None]:
    """Likewise, but their tensors are fake: they have shapes and no memory. What is computed of them is fake too."""
    # All are made in float32 on the CPU and stay so: torch refuses to convert a fake parameter in place.
    unconverted = patch.object(nn.Module, "_apply", lambda self, *_, **__: self)
    # A tokenizer's mask keeps its numbers, and so do the lengths that a pipeline counts of it.
    known = patch.object(fake_tensor, "CONSTANT_NUMEL_LIMIT", _KNOWN)
    fake = fake_tensor.FakeTensorMode(allow_non_fake_inputs=True)
    with random_weights(), fake, unconverted, known, _Unknown():
        yield


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
    """Every text is as many zeros as it may at most have; CLIP's tokenizer allows 77. Uncut, each is one."""

    model_max_length = 77
    added_tokens_encoder: Mapping[str, int] = {}

    def __call__(
        self, texts: str | Sequence[str], max_length: int | None = None, padding: str | bool = False, **options: Any
    ) -> BatchEncoding:
        size = 1 if isinstance(texts, str) else len(texts)
        length = max_length or (1 if padding == "longest" else self.model_max_length)
        return BatchEncoding(
            {
                "input_ids": torch.zeros((size, length), dtype=torch.long),
                "attention_mask": torch.tensor([[1] * length] * size),
            }
        )

    def tokenize(self, text: str) -> list[str]:
        return text.split()

    def encode(self, text: str) -> list[int]:
        return [0] * len(self.tokenize(text))

    def apply_chat_template(self, messages: Sequence[Mapping[str, str]], **options: Any) -> str:
        return messages[-1]["content"]


class _Unknown(TorchDispatchMode):
    """Answers what fake tensors cannot: all that is compared is equal, and no mask leaves anything out."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.equal.default:
            return True
        if func is torch.ops.aten.all.default:
            return torch.tensor(True)
        if func is torch.ops.aten.index.Tensor and len(args[1]) == 1 and args[1][0].dtype == torch.bool:
            return args[0].flatten(0, args[1][0].ndim - 1).clone()
        return func(*args, **(kwargs or {}))
