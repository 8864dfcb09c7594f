"""SANA (Xie et al. 2024, arXiv:2410.10629) and SANA-Sprint, its students (Chen et al. 2025, arXiv:2503.09641)."""

from __future__ import annotations

import inspect
import math
from collections.abc import Sequence
from typing import Any

import torch
from diffusers import (
    AutoencoderDC,
    SanaControlNetModel,
    SanaPipeline,
    SanaSprintPipeline,
    SanaTransformer2DModel,
    SCMScheduler,
)
from torch import Tensor
from transformers import Gemma2Model, GemmaTokenizer

from jdmctl.families.base import DiffusionDenoiser
from jdmctl.families.codec import AutoencoderCodec
from jdmctl.families.transformer import TransformerDenoiser
from jdmctl.families.transformer_family import FlowFamily
from jdmctl.types import Codec, Controls, Prompt

_SPRINT = inspect.signature(SanaSprintPipeline.__call__).parameters
_GUIDANCE = _SPRINT["guidance_scale"].default
_INSTRUCTION = _SPRINT["complex_human_instruction"].default  # before every prompt, and part of what SANA was trained on


class SanaDenoiser(TransformerDenoiser):
    """SANA-Sprint's consistency model in TrigFlow is, seen by its network, the flow itself: see RectifiedFlow.

    It is told sigma, and the guidance that was distilled into it, SanaSprintPipeline's default.
    """

    text_width = "caption_channels"
    text_mask = "encoder_attention_mask"
    patch = 1

    @property
    def width(self) -> int:
        return self.backbone.config.num_attention_heads * self.backbone.config.attention_head_dim

    def network(self, x_t: Tensor, timestep: Tensor, prompt: Prompt, controls: Controls) -> Tensor:
        config, guidance = self.backbone.config, None
        time = timestep * config.timestep_scale
        if config.guidance_embeds:
            time = timestep / 1000
            guidance = torch.full((len(x_t),), _GUIDANCE * config.guidance_embeds_scale, device=x_t.device)

        def branch_adds(branch: SanaControlNetModel, condition: Tensor, scale: float) -> Sequence[Tensor]:
            return branch(
                x_t, timestep=time, controlnet_cond=condition, conditioning_scale=scale, return_dict=False, **prompt
            )[0]

        return self.backbone(
            x_t, timestep=time, guidance=guidance, controlnet_block_samples=self.added(controls, branch_adds),
            return_dict=False, **prompt,
        )[0]  # fmt: skip


class Sana(FlowFamily):
    """The teacher is a SANA, the student a SANA-Sprint (or a SANA, to distill)."""

    name = "sana"
    pipelines = ("SanaPipeline", "SanaSprintPipeline")
    pipeline_class = SanaSprintPipeline
    backbone_class = SanaTransformer2DModel
    denoiser_class = SanaDenoiser
    part_classes = {"vae": AutoencoderDC, "tokenizer": GemmaTokenizer, "text_encoder": Gemma2Model}
    even_sigmas = False
    lora_targets = ("to_q", "to_k", "to_v", "to_out.0", "conv_inverted", "conv_point")
    authors_keys = (".attn.qkv.",)
    must_agree = ("in_channels", "caption_channels", "patch_size")
    branch_class = SanaControlNetModel
    branch_config = {"num_layers": 7}  # diffusers' own number
    branch_input = "input_block"
    branch_fits = ("in_channels", "num_attention_heads", "attention_head_dim", "caption_channels", "patch_size")

    def __init__(self, *args: Any, **options: Any):
        super().__init__(*args, **options)
        if self._is_sprint(self.student):
            alpha, sigma = self._student_noise()
            self.student.noise_scale = math.hypot(alpha, sigma)  # SanaSprintPipeline's, and 1 at the last time
        else:
            self.pipeline_class = SanaPipeline

    @property
    def pixels_per_latent(self) -> int:
        return 2 ** (len(self.parts["vae"].config.encoder_block_out_channels) - 1)

    @property
    def pipeline_timestep(self) -> float:
        """Of a SANA-Sprint the angle in radians whose tangent is sigma / alpha."""
        if not self._is_sprint(self.student):
            return super().pipeline_timestep
        alpha, sigma = self._student_noise()
        return round(math.atan2(sigma, alpha), 5)  # as diffusers has it: 1.57080

    @property
    def call_options(self) -> dict[str, Any]:
        """With the guidance that a SANA-Sprint is told, which is no classifier-free one."""
        guidance = {"guidance_scale": _GUIDANCE} if self._is_sprint(self.student) else {}
        return super().call_options | {"use_resolution_binning": False} | guidance

    def make_codec(self) -> Codec:
        return AutoencoderCodec(self.parts["vae"])

    def encode_prompt(self, texts: Sequence[str]) -> dict[str, Tensor]:
        return self._encode(texts, _INSTRUCTION)

    def empty_prompt(self, size: int) -> Prompt:
        """Without the instruction, as SanaPipeline has it."""
        return self._encode([""] * size, None)

    def new_branch(self, denoiser: DiffusionDenoiser) -> Any:
        """A ControlNet that starts as the backbone's first blocks, but for SANA-Sprint's norms of queries and keys and
        its guidance, which the diffusers class does not have."""
        branch: Any = super().new_branch(denoiser)
        if self._is_sprint(denoiser):
            start = denoiser.backbone.time_embed.timestep_embedder.state_dict()
            branch.time_embed.emb.timestep_embedder.load_state_dict(start)
        return branch

    def one_step_scheduler(self) -> Any:
        return SCMScheduler() if self._is_sprint(self.student) else super().one_step_scheduler()

    def _student_noise(self) -> tuple[float, float]:
        """alpha and sigma at the student's time."""
        t = torch.tensor([self.student.student_time], dtype=torch.float64)
        return self.student.schedule.alpha(t).item(), self.student.schedule.sigma(t).item()

    @staticmethod
    def _is_sprint(denoiser: DiffusionDenoiser) -> bool:
        return denoiser.backbone.config.guidance_embeds

    @torch.no_grad()
    def _encode(self, texts: Sequence[str], instruction: list[str] | None) -> dict[str, Tensor]:
        words, mask = SanaSprintPipeline.encode_prompt(
            self.text_pipeline, list(texts), device=self.text_device, complex_human_instruction=instruction
        )
        return {"encoder_hidden_states": words, "encoder_attention_mask": mask}
