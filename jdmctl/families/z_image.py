"""Z-Image (Z-Image Team 2025, arXiv:2511.22699), its Turbo too."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from diffusers import AutoencoderKL, ZImageControlNetModel, ZImagePipeline, ZImageTransformer2DModel
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import Qwen2Tokenizer, Qwen3Model

from jdmctl.errors import ConditionMismatchError
from jdmctl.families.base import DiffusionDenoiser
from jdmctl.families.transformer import TransformerDenoiser
from jdmctl.families.transformer_family import FlowFamily
from jdmctl.types import Controls, Prompt

_BLOCKS_APART = 5  # that a new branch speaks to: VideoX-Fun, config/z_image/z_image_control.yaml
_LENT = (
    "t_embedder", "all_x_embedder", "cap_embedder", "rope_embedder", "noise_refiner", "context_refiner", "x_pad_token",
    "cap_pad_token", "t_scale",
)  # fmt: skip


class ZImageDenoiser(TransformerDenoiser):
    text_width = "cap_feat_dim"
    text_mask = "encoder_attention_mask"

    @property
    def blocks(self) -> Sequence[nn.Module]:
        return self.backbone.layers

    @property
    def width(self) -> int:
        return self.backbone.config.dim

    def network(self, x_t: Tensor, timestep: Tensor, prompt: Prompt, controls: Controls) -> Tensor:
        """The network's time runs from noise to picture, and its output is the flow's negative."""
        texts = zip(prompt["encoder_hidden_states"], prompt["encoder_attention_mask"].bool(), strict=True)
        told = (_listed(x_t), 1 - timestep / 1000, [words[mask] for words, mask in texts])
        places: list[int] = []

        def branch_adds(branch: ZImageControlNetModel, condition: Tensor, scale: float) -> Sequence[Tensor]:
            unused = branch.config.control_in_dim - condition.shape[1]  # later ControlNets have room for inpainting
            condition = nn.functional.pad(condition, (0, 0, 0, 0, 0, unused))
            spoken = branch(*told, _listed(condition), conditioning_scale=scale)
            places[:] = spoken
            return list(spoken.values())

        added = self.added(controls, branch_adds)
        samples = dict(zip(places, added, strict=True)) if added else None
        output = self.backbone(*told, controlnet_block_samples=samples, return_dict=False)[0]
        return -torch.stack(output)[:, :, 0]


class ZImage(FlowFamily):
    name = "z_image"
    pipelines = ("ZImagePipeline", "ZImageControlNetPipeline")
    pipeline_class = ZImagePipeline
    backbone_class = ZImageTransformer2DModel
    denoiser_class = ZImageDenoiser
    tiny_decoder = "madebyollin/taef1"
    part_classes = {"vae": AutoencoderKL, "tokenizer": Qwen2Tokenizer, "text_encoder": Qwen3Model}
    lora_targets = ("to_q", "to_k", "to_v", "to_out.0", "w1", "w2", "w3")
    authors_keys = (".attention.qkv.",)
    must_agree = ("in_channels", "cap_feat_dim", "dim")
    branch_class = ZImageControlNetModel
    branch_fits = ("dim", "n_heads", "n_refiner_layers", "all_patch_size", "all_f_patch_size")

    @property
    def call_options(self) -> dict[str, Any]:
        """This pipeline counts guidance from 0."""
        return super().call_options | {"guidance_scale": 0.0}

    @torch.no_grad()
    def encode_prompt(self, texts: Sequence[str]) -> dict[str, Tensor]:
        words, _ = self.text_pipeline.encode_prompt(
            list(texts), device=self.text_device, do_classifier_free_guidance=False
        )
        mask = [torch.ones(len(one), dtype=torch.long, device=one.device) for one in words]
        padded = {"encoder_hidden_states": words, "encoder_attention_mask": mask}
        return {name: pad_sequence(value, batch_first=True) for name, value in padded.items()}

    def new_branch(self, denoiser: DiffusionDenoiser) -> nn.Module:
        """A ControlNet that starts as every fifth block of the backbone, and as its blocks for the picture alone."""
        config, start = denoiser.backbone.config, denoiser.backbone.state_dict()
        places = list(range(0, config.n_layers, _BLOCKS_APART))
        shape = ("all_patch_size", "all_f_patch_size", "dim", "n_refiner_layers", "n_heads", "n_kv_heads", "norm_eps")
        branch = ZImageControlNetModel(
            control_layers_places=places, control_refiner_layers_places=[], control_in_dim=config.in_channels,
            qk_norm=config.qk_norm, **{key: config[key] for key in shape},
        )  # fmt: skip
        own = {f"control_layers.{i}.": f"layers.{place}." for i, place in enumerate(places)}
        own |= {"control_noise_refiner.": "noise_refiner.", "control_all_x_embedder.": "all_x_embedder."}
        copied = {mine + name[len(theirs) :]: value for mine, theirs in own.items()
                  for name, value in start.items() if name.startswith(theirs)}  # fmt: skip
        branch.load_state_dict(copied, strict=False)
        branch.control_layers[0].before_proj.reset_parameters()  # see TransformerFamily.new_branch
        return self._lend(branch, denoiser)

    def load_branch(self, source: Any, denoiser: DiffusionDenoiser) -> nn.Module:
        branch: Any = super().load_branch(source, denoiser)
        found, least = branch.config.control_in_dim, denoiser.backbone.config.in_channels
        if found < least:
            raise ConditionMismatchError(
                f"the ControlNet at {source} does not fit this model: control_in_dim is {found}, "
                f"needed {least} or more",
                hint="give a ControlNet made for the same backbone, or start from the student (init: student)",
            )
        return self._lend(branch, denoiser)

    @staticmethod
    def _lend(branch: nn.Module, denoiser: DiffusionDenoiser) -> nn.Module:
        """Let the branch use the backbone's embeddings, which stay the backbone's: not trained or saved with it."""
        for name in _LENT:
            branch.__dict__[name] = getattr(denoiser.backbone, name)
        branch.__dict__["gradient_checkpointing"] = False  # diffusers asks for it, and does not set it
        return branch


def _listed(latent: Tensor) -> list[Tensor]:
    """[B, C, h, w] as B frames [C, 1, h, w]."""
    return list(latent[:, :, None].unbind(0))
