"""Tokenizers and text encoders of stand-ins: of single bytes and letters, of the very classes that real ones have."""

from __future__ import annotations

import json
import string
from pathlib import Path
from typing import Any

from tokenizers.pre_tokenizers import ByteLevel
from transformers import CLIPTextConfig, CLIPTokenizer, Qwen2Tokenizer, T5Config, T5EncoderModel, T5Tokenizer

LETTERS = [letter for letter in string.printable if not letter.isspace()]


def byte_tokenizer(folder: Path) -> CLIPTokenizer:
    """CLIP's byte-level tokenizer without a single merge, 32 tokens long."""
    letters = sorted(ByteLevel.alphabet())
    tokens = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary, merges = folder / "vocab.json", folder / "merges.txt"
    vocabulary.write_text(json.dumps({token: i for i, token in enumerate(tokens)}, ensure_ascii=False))
    merges.write_text("#version: 0.2\n")
    return CLIPTokenizer(vocab=str(vocabulary), merges=str(merges), model_max_length=32)


def clip_config(tokenizer: Any, width: int, **options: Any) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=width, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=32, bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id, **options,
    )  # fmt: skip


def tiny_t5() -> T5EncoderModel:
    return T5EncoderModel(T5Config(vocab_size=100, d_model=32, d_kv=8, d_ff=32, num_layers=1, num_heads=4))


def letter_tokenizer() -> T5Tokenizer:
    """T5's, of single letters."""
    vocabulary = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0), *((c, -3.0) for c in LETTERS)]
    return T5Tokenizer(vocab=vocabulary, extra_ids=0)


def qwen_tokenizer() -> Qwen2Tokenizer:
    """Qwen's, of single bytes."""
    tokens = (*sorted(ByteLevel.alphabet()), "<|endoftext|>", "<|im_start|>", "<|im_end|>")
    return Qwen2Tokenizer(vocab={token: i for i, token in enumerate(tokens)}, merges=[])
