"""A UNet2DConditionModel, with control branches beside it, as a denoiser."""

from __future__ import annotations

from typing import Any

from diffusers import T2IAdapter
from torch import Tensor

from jdmctl.families.base import DiffusionDenoiser, frozen
from jdmctl.types import Controls, Prompt


class UNetDenoiser(DiffusionDenoiser):
    """A family whose prompt is more than [B, L, D] embeddings says in `words` and `summary` what is in it."""

    def words(self, prompt: Prompt, x_t: Tensor) -> dict[str, Any]:
        """What UNet and branches are told by a prompt and of a picture's size, by the names of diffusers' arguments."""
        return {"encoder_hidden_states": prompt}

    def network(self, x_t: Tensor, timestep: Tensor, prompt: Prompt, controls: Controls) -> Tensor:
        added = self._additions(x_t, timestep, prompt, controls)
        return self.backbone(
            x_t, timestep, **self.words(prompt, x_t),
            **added, return_dict=False,
        )[0]  # fmt: skip

    def features(self, x_t: Tensor, t: Tensor, prompt: Prompt, controls: Controls | None = None) -> list[Tensor]:
        """The UNet's way down, each block's output and then the middle's; the way up is not computed."""
        unet, timestep = self.backbone, self.schedule.timestep(t)
        with frozen(self):
            middle = self._additions(x_t, timestep, prompt, controls or {}).get("mid_block_additional_residual")
            words = self.words(prompt, x_t)
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

    def _additions(self, x_t: Tensor, timestep: Tensor, prompt: Prompt, controls: Controls) -> dict[str, Any]:
        """What the control branches add to the UNet on its way down and in its middle, by diffusers' arguments."""
        sums: dict[str, list[Tensor]] = {}
        for name, condition in controls.items():
            branch, scale = self.branches[name], self.control_scales.get(name, 1.0)
            if isinstance(branch, T2IAdapter):
                said = {"down_intrablock_additional_residuals": [scale * feature for feature in branch(condition)]}
            else:
                down, middle = branch(
                    x_t, timestep, controlnet_cond=condition, conditioning_scale=scale, return_dict=False,
                    **self.words(prompt, x_t),
                )  # fmt: skip
                said = {"down_block_additional_residuals": down, "mid_block_additional_residual": [middle]}
            for place, values in said.items():
                before = sums.get(place)
                sums[place] = [a + b for a, b in zip(before, values, strict=True)] if before else list(values)
        return {place: values[0] if place.startswith("mid") else values for place, values in sums.items()}
