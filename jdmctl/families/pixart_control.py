"""A control branch for PixArt, for which diffusers has no ControlNet class."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.attention import BasicTransformerBlock
from torch import Tensor, nn


class PixArtControlNetModel(ModelMixin, ConfigMixin):
    """ControlNet-Transformer, as PixArt's authors describe it (Chen et al. 2024, PixArt-delta, arXiv:2401.05252).

    Trainable copies of the backbone's first `num_layers` blocks. The first sees what the backbone's own first block
    has made, plus the condition's tokens through `before_proj`; each next one what the copy before it has made. Behind
    each copy a linear layer, zero at first, gives what is added to the input of the backbone's next block: copy i
    speaks to block i + 1. Condition tokens are those that the backbone's patch embedding makes of the condition's
    latent. Saved by `save_pretrained`; the authors' own checkpoints are pickles in other keys and are not read.
    """

    _supports_gradient_checkpointing = True

    @register_to_config
    def __init__(
        self,
        num_layers: int = 13,
        num_attention_heads: int = 16,
        attention_head_dim: int = 72,
        dropout: float = 0.0,
        cross_attention_dim: int | None = 1152,
        attention_bias: bool = True,
        activation_fn: str = "gelu-approximate",
        num_embeds_ada_norm: int | None = 1000,
        upcast_attention: bool = False,
        norm_type: str = "ada_norm_single",
        norm_elementwise_affine: bool = False,
        norm_eps: float = 1e-6,
        attention_type: str = "default",
    ):
        super().__init__()
        width = num_attention_heads * attention_head_dim
        self.before_proj = nn.Linear(width, width)
        self.transformer_blocks = nn.ModuleList(
            BasicTransformerBlock(
                width,
                num_attention_heads,
                attention_head_dim,
                dropout=dropout,
                cross_attention_dim=cross_attention_dim,
                activation_fn=activation_fn,
                num_embeds_ada_norm=num_embeds_ada_norm,
                attention_bias=attention_bias,
                upcast_attention=upcast_attention,
                norm_type=norm_type,
                norm_elementwise_affine=norm_elementwise_affine,
                norm_eps=norm_eps,
                attention_type=attention_type,
            )
            for _ in range(num_layers)
        )
        self.after_proj = nn.ModuleList(nn.Linear(width, width) for _ in range(num_layers))
        self.gradient_checkpointing = False
        for layer in (self.before_proj, *self.after_proj):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(
        self, hidden_states: Tensor, condition: Tensor, conditioning_scale: float, *told: Any, **named: Any
    ) -> list[Tensor]:
        """What is added, [B, N, D] for each block, to the first block's output [B, N, D] and those after it.

        `condition` are its tokens [B, N, D]; what else the backbone told its first block comes last.
        """
        hidden_states = hidden_states + self.before_proj(condition)
        added = []
        for block, after in zip(self.transformer_blocks, self.after_proj, strict=True):
            if torch.is_grad_enabled() and self.gradient_checkpointing:
                hidden_states = self._gradient_checkpointing_func(block, hidden_states, *told, **named)
            else:
                hidden_states = block(hidden_states, *told, **named)
            added.append(conditioning_scale * after(hidden_states))
        return added
