"""Prompts: from texts to tokens, and what can be done with one without knowing what is in it.

A prompt is a tensor [B, ...], or several of them by name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from jdmctl.types import Prompt


def repeat(prompt: Prompt, size: int) -> Prompt:
    """A prompt of one text, for a batch of `size`; nothing is copied."""
    if isinstance(prompt, Mapping):
        return {name: repeat(value, size) for name, value in prompt.items()}
    return prompt.expand(size, *[-1] * (prompt.ndim - 1))


def tokenize(tokenizer: Any, texts: Sequence[str]) -> Tensor:
    """[B, L] tokens, all as long as the tokenizer allows."""
    return tokenizer(
        list(texts), padding="max_length", truncation=True, max_length=tokenizer.model_max_length, return_tensors="pt",
    ).input_ids  # fmt: skip


def cut_off(tokenizer: Any, text: str) -> str:
    """The end of a text that `tokenize` leaves out, "" if it takes all of it."""
    tokens = tokenizer(text, verbose=False).input_ids
    limit = tokenizer.model_max_length
    return tokenizer.decode(tokens[limit - 1 : -1]).strip() if len(tokens) > limit else ""
