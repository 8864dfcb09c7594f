"""The multi-step teacher, and ordinary ControlNets on it: denoising score matching (v-prediction, clamped SNR)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    ControlNetModel,
    DDIMScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from jdmctl.controls.base import Control
from jdmctl.diffusion.prediction import to_x0
from jdmctl.diffusion.schedule import expand
from jdmctl.objectives.denoising import denoising_loss
from jdmctl.tinyworld import models
from jdmctl.tinyworld.fit import FitSettings
from jdmctl.tinyworld.stages.autoencoder import encode
from jdmctl.tinyworld.workshop import Workshop, autocast
from jdmctl.training.atomic import whole_folder


def score_matching_loss(
    unet: UNet2DConditionModel,
    scheduler: DDIMScheduler,
    latents: Tensor,
    embeddings: Tensor,
    generator: torch.Generator,
    branch: ControlNetModel | None = None,
    condition: Tensor | None = None,
) -> Tensor:
    """Denoising of latents [B, C, h, w] at uniform timesteps, through a ControlNet if there is one."""
    noise = torch.randn(latents.shape, generator=generator)
    timesteps = torch.randint(scheduler.config.num_train_timesteps, (len(latents),), generator=generator)
    noisy = scheduler.add_noise(latents, noise, timesteps)
    residuals: dict[str, object] = {}
    if branch is not None:
        down, middle = branch(
            noisy, timesteps, encoder_hidden_states=embeddings, controlnet_cond=condition, return_dict=False
        )
        residuals = {"down_block_additional_residuals": down, "mid_block_additional_residual": middle}
    output = unet(noisy, timesteps, encoder_hidden_states=embeddings, **residuals).sample.float()
    alpha_squared = scheduler.alphas_cumprod[timesteps]
    alpha, sigma = alpha_squared.sqrt(), (1 - alpha_squared).sqrt()
    prediction = scheduler.config.prediction_type
    x0 = to_x0(prediction, output, noisy, expand(alpha, noisy), expand(sigma, noisy))
    return denoising_loss(x0, latents, alpha, sigma).mean()


class TextAndUNet(torch.nn.Module):
    """What the teacher's stage trains together."""

    def __init__(self, text_encoder: CLIPTextModel, unet: UNet2DConditionModel):
        super().__init__()
        self.text_encoder, self.unet = text_encoder, unet


def build_teacher(shop: Workshop) -> None:
    """`teacher/`: a multi-step StableDiffusionPipeline; its text encoder is learnt with its UNet."""
    vae = AutoencoderKL.from_pretrained(shop.output / "vae").eval()
    train = shop.pictures("train")
    latents = encode(vae, train.images)
    tokenizer = models.tokenizer(text for row in train.captions for text in row)
    tokens = _tokens(tokenizer, train.captions)  # [N, wordings, L]
    empty = _tokens(tokenizer, [[""]])[0, 0]

    torch.manual_seed(shop.seed + 4)
    trained = TextAndUNet(models.text_encoder(tokenizer), models.unet(latents.shape[1]))
    trained.unet.to(memory_format=torch.channels_last)
    scheduler = models.teacher_scheduler()

    def loss(generator: torch.Generator) -> Tensor:
        index = torch.randint(len(latents), (64,), generator=generator)
        wording = torch.randint(tokens.shape[1], (64,), generator=generator)
        dropped = torch.rand(64, generator=generator) < 0.1
        ids = torch.where(dropped[:, None], empty, tokens[index, wording])
        with autocast():
            embeddings = trained.text_encoder(ids)[0]
            return score_matching_loss(trained.unet, scheduler, latents[index], embeddings, generator)

    settings = FitSettings(shop.steps(4000), 1.5e-3, ema_decay=0.999, seed=shop.seed)
    shop.train("teacher", trained, loss, settings)
    with whole_folder(shop.output / "teacher") as partial:
        pipeline(vae, trained.text_encoder, tokenizer, trained.unet, scheduler).save_pretrained(partial)


def build_controlnet(shop: Workshop, control: Control, num_steps: int) -> None:
    """`controlnet_<name>/`: an ordinary ControlNet on the frozen teacher, and `..._half/` after half of its steps.

    Constant learning rate and EMA, so that the half-way weights say what twice the steps still bring.
    """
    teacher = StableDiffusionPipeline.from_pretrained(shop.output / "teacher", safety_checker=None)
    unet = teacher.unet.requires_grad_(False).to(memory_format=torch.channels_last)
    train = shop.pictures("train")
    latents = encode(teacher.vae, train.images)
    conditions = torch.cat([control.condition(part.float() / 255) for part in train.images.split(250)])
    conditions = (conditions * 255).round().to(torch.uint8)
    texts = [row[i % len(row)] for i, row in enumerate(train.captions)]
    with torch.no_grad():
        embeddings = torch.cat(
            [teacher.text_encoder(part)[0] for part in _tokens(teacher.tokenizer, [texts])[0].split(500)]
        )
        empty = teacher.text_encoder(_tokens(teacher.tokenizer, [[""]])[0])[0]

    torch.manual_seed(shop.seed + 5)
    branch = ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(16, 32, 96))
    branch.to(memory_format=torch.channels_last)

    def loss(generator: torch.Generator) -> Tensor:
        index = torch.randint(len(latents), (32,), generator=generator)
        dropped = torch.rand(32, generator=generator) < 0.1
        words = torch.where(dropped[:, None, None], empty, embeddings[index])
        condition = conditions[index].float() / 255
        with autocast():
            return score_matching_loss(unet, teacher.scheduler, latents[index], words, generator, branch, condition)

    name, num_steps = f"controlnet_{control.name}", shop.steps(num_steps)
    settings = FitSettings(num_steps, 5e-4, shape="constant", ema_decay=0.998, seed=shop.seed)

    def save(folder: Path) -> None:
        with whole_folder(folder) as partial:
            branch.save_pretrained(partial)

    shop.train(name, branch, loss, settings, {num_steps // 2: lambda: save(shop.scratch / f"{name}_half")})
    save(shop.output / name)


def pipeline(vae, text_encoder, tokenizer, unet, scheduler) -> StableDiffusionPipeline:
    return StableDiffusionPipeline(
        vae=vae, text_encoder=text_encoder, tokenizer=tokenizer, unet=unet, scheduler=scheduler,
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip


def _tokens(tokenizer: CLIPTokenizer, rows: Sequence[Sequence[str]]) -> Tensor:
    """Token ids [rows, wordings, L]."""
    flat = tokenizer(
        [text for row in rows for text in row], padding="max_length", truncation=True,
        max_length=tokenizer.model_max_length, return_tensors="pt",
    ).input_ids  # fmt: skip
    return flat.view(len(rows), -1, flat.shape[-1])
