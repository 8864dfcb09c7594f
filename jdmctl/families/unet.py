"""A UNet2DConditionModel, with control branches beside it, as a denoiser."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from jdmctl.families.base import DiffusionDenoiser, frozen
from jdmctl.types import Controls, Prompt


class UNetDenoiser(DiffusionDenoiser):
    """A family whose prompt is more than [B, L, D] embeddings says in `words` and `summary` what is in it."""

    def words(self, prompt: Prompt) -> dict[str, Any]:
        """What UNet and branches are told by a prompt, by the names of diffusers' arguments."""
        return {"encoder_hidden_states": prompt}

    def network(self, x_t: Tensor, timestep: Tensor, prompt: Prompt, controls: Controls) -> Tensor:
        down, middle = self._residuals(x_t, timestep, prompt, controls)
        return self.backbone(
            x_t, timestep, **self.words(prompt),
            down_block_additional_residuals=down, mid_block_additional_residual=middle, return_dict=False,
        )[0]  # fmt: skip

    def features(self, x_t: Tensor, t: Tensor, prompt: Prompt, controls: Controls | None = None) -> list[Tensor]:
        """The UNet's way down, each block's output and then the middle's; the way up is not computed."""
        unet, timestep = self.backbone, self.schedule.timestep(t)
        with frozen(self):
            _, middle = self._residuals(x_t, timestep, prompt, controls or {})
            words = self.words(prompt)
            text = {"encoder_hidden_states": words["encoder_hidden_states"]}
            embedding = unet.time_embedding(unet.time_proj(timestep).to(x_t.dtype))
            extra = unet.get_aug_embed(embedding, **{"added_cond_kwargs": {}} | words)
            embedding = embedding if extra is None else embedding + extra
            hidden, found = unet.conv_in(x_t), []
            for block in unet.down_blocks:
                heard = text if getattr(block, "has_cross_attention", False) else {}
                hidden, _ = block(hidden_states=hidden, temb=embedding, **heard)
                found.append(hidden)
            hidden = unet.mid_block(hidden, embedding, **text)
        return [*found, hidden if middle is None else hidden + middle]

    @property
    def feature_channels(self) -> tuple[int, ...]:
        widths = tuple(self.backbone.config.block_out_channels)
        return (*widths, widths[-1])

    def summary(self, prompt: Prompt) -> Tensor:
        return prompt.mean(1)  # [B, L, D] -> [B, D]

    @property
    def summary_width(self) -> int:
        return self.backbone.config.cross_attention_dim

    def _residuals(
        self, x_t: Tensor, timestep: Tensor, prompt: Prompt, controls: Controls
    ) -> tuple[list[Tensor] | None, Tensor | None]:
        """What the control branches add to the UNet's way down and to its middle."""
        down: list[Tensor] | None = None
        middle: Tensor | None = None
        for name, condition in controls.items():
            scale = self.control_scales.get(name, 1.0)
            branch_down, branch_middle = self.branches[name](
                x_t, timestep, controlnet_cond=condition, conditioning_scale=scale, return_dict=False,
                **self.words(prompt),
            )  # fmt: skip
            down = branch_down if down is None else [a + b for a, b in zip(down, branch_down, strict=True)]
            middle = branch_middle if middle is None else middle + branch_middle
        return down, middle
