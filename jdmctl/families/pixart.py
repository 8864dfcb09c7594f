"""PixArt-alpha (Chen et al. 2023, arXiv:2310.00426) and PixArt-Sigma (arXiv:2403.04692), their DMD students too."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import torch
from diffusers import AutoencoderKL, PixArtAlphaPipeline, PixArtSigmaPipeline, PixArtTransformer2DModel
from diffusers.utils import is_bs4_available, is_ftfy_available
from diffusers.utils.peft_utils import recurse_remove_peft_layers
from peft import LoraConfig, get_peft_model_state_dict, inject_adapter_in_model, set_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import save_file
from torch import Tensor
from transformers import T5EncoderModel, T5Tokenizer

from jdmctl.families.pixart_control import PixArtControlNetModel
from jdmctl.families.transformer import TransformerDenoiser
from jdmctl.families.transformer_family import TransformerFamily
from jdmctl.types import Controls, Prompt


class PixArtDenoiser(TransformerDenoiser):
    text_width = "caption_channels"
    text_mask = "encoder_attention_mask"

    pixels_per_latent: int

    def network(self, x_t: Tensor, timestep: Tensor, prompt: Prompt, controls: Controls) -> Tensor:
        with self._listening(controls):
            output = self.backbone(
                x_t, timestep=timestep, added_cond_kwargs=self._sizes(x_t), return_dict=False, **prompt
            )[0]
        return output[:, : x_t.shape[1]]  # the rest is a learned variance, which no one uses

    def _sizes(self, x_t: Tensor) -> dict[str, Tensor | None]:
        """What PixArt-alpha at 1024 px is told of the picture, in pixels."""
        if not self.backbone.use_additional_conditions:
            return {"resolution": None, "aspect_ratio": None}
        height, width = (float(side * self.pixels_per_latent) for side in x_t.shape[-2:])
        resolution = torch.tensor([[height, width]], device=x_t.device).expand(len(x_t), 2)
        return {"resolution": resolution, "aspect_ratio": resolution[:, :1] / resolution[:, 1:]}

    @contextmanager
    def _listening(self, controls: Controls) -> Iterator[None]:
        """Inside, the backbone's blocks hear the branches; it has no argument for that."""
        added: list[Tensor] = []

        def start(block: Any, told: Any, named: Any, output: Tensor) -> Tensor:
            def branch_adds(branch: PixArtControlNetModel, condition: Tensor, scale: float) -> Sequence[Tensor]:
                return branch(output, self.backbone.pos_embed(condition), scale, *told[1:], **named)

            added[:] = self.added(controls, branch_adds) or []
            return output + added[0]

        def go_on(block: Any, told: Any, output: Tensor) -> Tensor:
            at = numbers[block]
            return output + added[at] if at < len(added) else output

        numbers = {block: number for number, block in enumerate(self.blocks)}
        hooks = []
        if controls:
            hooks = [block.register_forward_hook(go_on) for block in self.blocks[1:]]
            hooks.append(self.blocks[0].register_forward_hook(start, with_kwargs=True))
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()


class PixArt(TransformerFamily):
    """What both have in common. diffusers loads no LoRA into PixArt, so peft does."""

    max_words: ClassVar[int]  # tokens of a prompt
    backbone_class = PixArtTransformer2DModel
    denoiser_class = PixArtDenoiser
    part_classes = {"vae": AutoencoderKL, "tokenizer": T5Tokenizer, "text_encoder": T5EncoderModel}
    must_agree = ("in_channels", "caption_channels", "patch_size")
    branch_class = PixArtControlNetModel
    branch_config = {"num_layers": 13}  # the authors' own number
    branch_input = "before_proj"
    branch_fits = ("num_attention_heads", "attention_head_dim", "cross_attention_dim")

    @property
    def call_options(self) -> dict[str, Any]:
        return super().call_options | {"use_resolution_binning": False}

    def equip(self, denoiser: Any) -> None:
        super().equip(denoiser)
        denoiser.pixels_per_latent = self.pixels_per_latent

    @torch.no_grad()
    def encode_prompt(self, texts: Sequence[str]) -> dict[str, Tensor]:
        words, mask, _, _ = self.text_pipeline.encode_prompt(
            list(texts), do_classifier_free_guidance=False, device=self.text_device, max_sequence_length=self.max_words,
            clean_caption=is_bs4_available() and is_ftfy_available(),
        )  # fmt: skip
        return {"encoder_hidden_states": words, "encoder_attention_mask": mask}

    @classmethod
    def lora_layers(cls, weights: Mapping[str, Tensor], backbone: Any) -> tuple[Mapping[str, Tensor], Any]:
        return weights, None

    def add_lora(self, backbone: Any, rank: int) -> None:
        config = LoraConfig(r=rank, lora_alpha=rank, target_modules=list(self.lora_targets))
        inject_adapter_in_model(config, backbone)

    @classmethod
    def put_lora(
        cls,
        backbone: Any,
        layers: Mapping[str, Tensor],
        alphas: Mapping[str, float] | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> None:
        own, config = _without(f"{cls.subfolder}.", layers), _without(f"{cls.subfolder}.", metadata or {})
        told = _without(f"{cls.subfolder}.", alphas or {})
        if told and config:
            raise ValueError("it says its strength twice, beside its layers (.alpha) and in its header")
        ranks = {name.partition(".lora_A")[0]: len(value) for name, value in own.items() if ".lora_A" in name}
        strengths = ranks | {name.removesuffix(".alpha"): value for name, value in told.items()}
        rank = max(ranks.values())
        config = config or {
            "r": rank, "lora_alpha": rank, "target_modules": list(ranks), "rank_pattern": ranks,
            "alpha_pattern": strengths,
        }  # fmt: skip
        inject_adapter_in_model(LoraConfig(**config), backbone)
        set_peft_model_state_dict(backbone, own)

    @classmethod
    def merge_lora(cls, backbone: Any) -> None:
        for module in list(backbone.modules()):
            if isinstance(module, BaseTunerLayer):
                module.merge()
        recurse_remove_peft_layers(backbone)

    def save_student_lora(self, folder: str | Path) -> None:
        """Write the student's LoRA in the keys that diffusers gives other transformers' (safetensors)."""
        layers = get_peft_model_state_dict(self.student.backbone)
        Path(folder).mkdir(parents=True, exist_ok=True)
        save_file(
            {f"{self.subfolder}.{name}": value.contiguous() for name, value in layers.items()},
            Path(folder, "pytorch_lora_weights.safetensors"),
        )


def _without(prefix: str, values: Mapping[str, Any]) -> dict[str, Any]:
    return {name.removeprefix(prefix): value for name, value in values.items()}


class PixArtAlpha(PixArt):
    name = "pixart_alpha"
    pipelines = ("PixArtAlphaPipeline",)
    pipeline_class = PixArtAlphaPipeline
    tiny_decoder = "madebyollin/taesd"
    max_words = 120


class PixArtSigma(PixArt):
    name = "pixart_sigma"
    pipelines = ("PixArtSigmaPipeline",)
    pipeline_class = PixArtSigmaPipeline
    tiny_decoder = "madebyollin/taesdxl"
    max_words = 300
