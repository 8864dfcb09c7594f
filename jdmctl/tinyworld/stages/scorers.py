"""The world's judges: a multi-label classifier and two depth networks.

They are trained on true pictures and on their round trips through the VAE, so that they judge a picture's content and
not the codec's blur.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from diffusers import AutoencoderKL
from torch import Tensor
from torch.nn import functional as F
from transformers import (
    AutoModelForDepthEstimation,
    DPTImageProcessor,
    PreTrainedModel,
)

from jdmctl.tinyworld import models
from jdmctl.tinyworld.fit import FitSettings
from jdmctl.tinyworld.judge import Judge
from jdmctl.tinyworld.source import Pictures
from jdmctl.tinyworld.stages.autoencoder import decode, encode
from jdmctl.tinyworld.workshop import Workshop, autocast
from jdmctl.training.atomic import whole_folder, writing


def classifier_loss(classifier: PreTrainedModel, images: Tensor, truth: Tensor) -> Tensor:
    logits = classifier(images * 2 - 1).logits.float()
    return F.binary_cross_entropy_with_logits(logits, truth.float())


def depth_loss(network: PreTrainedModel, images: Tensor, inverse_depth: Tensor) -> Tensor:
    """L1 on the map and on its differences, which keep the edges sharp."""
    error = network(pixel_values=images * 2 - 1).predicted_depth.float() - inverse_depth.float()
    return error.abs().mean() + error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()


def draw(pictures: Pictures, round_trips: Tensor, batch: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Images [batch, 3, H, W] in [0, 1], half of them round trips, lightly noised; and their indices [batch]."""
    index = torch.randint(len(pictures), (batch,), generator=generator)
    clean, decoded = index[: batch // 2], index[batch // 2 :] % len(round_trips)
    index = torch.cat([clean, decoded])
    images = torch.cat([pictures.image(clean), round_trips[decoded].float() / 255])
    noise = torch.randn(images.shape, generator=generator) * torch.rand(batch, 1, 1, 1, generator=generator)
    return (images + 0.03 * noise).clamp(0, 1), index


def build(shop: Workshop) -> None:
    """`classifier/`, and `depth/` and `depth_heldout/` where the source knows exact depths."""
    vae = AutoencoderKL.from_pretrained(shop.output / "vae").eval()
    train = shop.pictures("train")
    round_trips = decode(vae, encode(vae, train.images[:4000]))

    torch.manual_seed(shop.seed + 1)
    classifier = models.classifier(list(train.labels))
    _train(shop, "classifier", classifier, 2000, train.truth, classifier_loss, train, round_trips)
    if train.inverse_depth is not None:
        for name, network, offset in (
            ("depth", models.depth_network, 2),
            ("depth_heldout", models.heldout_depth_network, 3),
        ):
            torch.manual_seed(shop.seed + offset)
            _train(shop, name, network(), 1400, train.inverse_depth, depth_loss, train, round_trips)
            processor = DPTImageProcessor(
                size={"height": 64, "width": 64}, image_mean=[0.5] * 3, image_std=[0.5] * 3, do_rescale=True
            )
            with writing(shop.output / name):
                processor.save_pretrained(shop.output / name)


def _train(
    shop: Workshop,
    name: str,
    network: PreTrainedModel,
    num_steps: int,
    targets: Tensor,
    loss: Callable[[PreTrainedModel, Tensor, Tensor], Tensor],
    train: Pictures,
    round_trips: Tensor,
) -> None:
    if (shop.output / name).exists():
        return

    def batch_loss(generator: torch.Generator) -> Tensor:
        images, index = draw(train, round_trips, 32, generator)
        with autocast():
            return loss(network, images, targets[index])

    network.train()
    shop.train(name, network, batch_loss, FitSettings(shop.steps(num_steps), 2e-3, ema_decay=0.99, seed=shop.seed))
    with whole_folder(shop.output / name) as partial:
        network.eval().save_pretrained(partial)


def report(shop: Workshop) -> dict[str, float]:
    """Accuracy of the classifier per attribute and mean error of the depth networks, on true val pictures."""
    val = shop.pictures("val")
    images = val.image(slice(None))
    accuracy = Judge.load(shop.output).accuracy(images, val.truth)
    numbers = {f"classifier {name}": value for name, value in accuracy.items()}
    if val.inverse_depth is not None:
        for name in ("depth", "depth_heldout"):
            network = AutoModelForDepthEstimation.from_pretrained(shop.output / name).eval()
            with torch.no_grad():
                error = network(pixel_values=images * 2 - 1).predicted_depth - val.inverse_depth.float()
            numbers[f"{name} l1"] = float(error.abs().mean())
    return numbers
