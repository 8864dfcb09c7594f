"""What transformers share as denoisers: prompts by keyword, branches that read encoded conditions, features."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from jdmctl.families.base import DiffusionDenoiser, frozen
from jdmctl.types import Controls, Prompt


class TransformerDenoiser(DiffusionDenoiser):
    """A transformer with control branches beside it.

    A prompt is what the network takes of a text, tensors [B, ...] by keyword. `encode_condition` makes of a condition
    [B, 3, H, W] in [0, 1] what branches are shown, the codec's latent; the family sets it.
    """

    text_width: ClassVar[str] = "joint_attention_dim"  # key of the backbone's config
    text_mask: ClassVar[str] = ""  # which of the prompt says what is padding
    patch: ClassVar[int] = 2  # latent rows and columns that a token covers

    encode_condition: Callable[[Tensor], Tensor]

    @property
    def blocks(self) -> Sequence[nn.Module]:
        """The backbone's blocks, in order."""
        return self.backbone.transformer_blocks

    @property
    def width(self) -> int:
        """Of a token between blocks."""
        return self.backbone.inner_dim

    def features(self, x_t: Tensor, t: Tensor, prompt: Prompt, controls: Controls | None = None) -> list[Tensor]:
        """The picture's tokens after a quarter, a half and three quarters of the blocks, as maps."""
        rows, columns = x_t.shape[-2] // self.patch, x_t.shape[-1] // self.patch
        with frozen(self), _outputs([self.blocks[i] for i in self._read]) as found:
            self.network(x_t, self.schedule.timestep(t), prompt, controls or {})
        return [tokens[:, : rows * columns].mT.unflatten(2, (rows, columns)) for tokens in found]

    @property
    def feature_channels(self) -> tuple[int, ...]:
        return (self.width,) * len(self._read)

    def summary(self, prompt: Prompt) -> Tensor:
        words = prompt["encoder_hidden_states"]  # [B, L, D]
        mask = prompt[self.text_mask] if self.text_mask else torch.ones_like(words[..., 0])
        weights = (mask / mask.sum(1, keepdim=True).clamp(min=1)).to(words)
        return (words * weights[..., None]).sum(1)

    @property
    def summary_width(self) -> int:
        return self.backbone.config[self.text_width]

    def added(self, controls: Controls, call: Callable[[Any, Tensor, float], Sequence[Tensor]]) -> list[Tensor] | None:
        """The sum of what `call(branch, encoded condition, scale)` gives for each control; None for no control."""
        total: list[Tensor] | None = None
        for name, condition in controls.items():
            with torch.no_grad():
                encoded = self.encode_condition(condition)
            one = call(self.branches[name], encoded, self.control_scales.get(name, 1.0))
            total = list(one) if total is None else [a + b for a, b in zip(total, one, strict=True)]
        return total

    @property
    def _read(self) -> list[int]:
        number = len(self.blocks)
        return sorted({number // 4, number // 2, 3 * number // 4})


@contextmanager
def _outputs(blocks: Sequence[nn.Module]) -> Iterator[list[Tensor]]:
    """Inside, what the blocks compute for the picture is put into the list, in order."""
    found: list[Tensor] = []

    def keep(block: nn.Module, inputs: Any, output: Any) -> None:
        found.append(output if isinstance(output, Tensor) else output[-1])  # beside it: the text's tokens

    hooks = [block.register_forward_hook(keep) for block in blocks]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def pack(latent: Tensor) -> Tensor:
    """Latents [B, C, h, w] as tokens [B, h/2 w/2, 4 C], as FLUX and Qwen-Image take them."""
    batch, channels, rows, columns = latent.shape
    cells = latent.view(batch, channels, rows // 2, 2, columns // 2, 2).permute(0, 2, 4, 1, 3, 5)
    return cells.reshape(batch, rows * columns // 4, 4 * channels)


def unpack(tokens: Tensor, like: Tensor) -> Tensor:
    """The latents, shaped as `like` [B, C, h, w], whose tokens these are."""
    batch, channels, rows, columns = like.shape
    cells = tokens.view(batch, rows // 2, columns // 2, channels, 2, 2).permute(0, 3, 1, 4, 2, 5)
    return cells.reshape(like.shape)
