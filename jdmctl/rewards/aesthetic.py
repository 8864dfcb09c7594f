"""LAION's aesthetic predictors: a small head on CLIP ViT-L/14's embedding of the picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from torch import Tensor, nn

from jdmctl.errors import BadInputError
from jdmctl.rewards.folders import require_weights
from jdmctl.rewards.image_text import ImageTextEncoder

ENCODER = "openai/clip-vit-large-patch14"
_WIDTHS = (1024, 128, 64, 16, 1)
_DROPOUTS = (0.2, 0.2, 0.1)  # after the first three; they only matter for the layers' numbers


class Aesthetic:
    """About 1 to 10, from people's ratings; the caption is not read.

    `folder` is what `jdmctl reward convert sac+logos+ava1-l14-linearMSE.pth FOLDER` writes, or a
    safetensors file, with the weights of either predictor: linear (`weight`, `bias`;
    github.com/LAION-AI/aesthetic-predictor) or five layers (`layers.0.weight` ...;
    github.com/christophschuhmann/improved-aesthetic-predictor). Both take the unit vector of the
    CLIP that they were made for: `encoder`, a folder or hub name.
    """

    name = "aesthetic"
    description = "LAION aesthetic predictor: 1 to 10, the caption is not read"
    reads_text = False

    def __init__(self, folder: str, encoder: str = ENCODER) -> None:
        self.head = load_head(folder)
        self.encoder = ImageTextEncoder(encoder, reads_text=False)
        expected, found = next(self.head.parameters()).shape[1], self.encoder.network.config.projection_dim
        if expected != found:
            raise BadInputError(
                f"the aesthetic head {folder} takes {expected} numbers, {encoder} gives {found}",
                hint=f"give the CLIP that the head was made for: {ENCODER} for LAION's",
            )

    def __call__(self, image: Tensor, texts: Sequence[str] = ()) -> Tensor:
        return self.head(self.encoder.image(image)).squeeze(1)

    def to(self, device: Any) -> Self:
        self.encoder.to(device)
        self.head.to(device)
        return self


def mlp(width: int) -> nn.Sequential:
    """Five linear layers with nothing but dropout between them, as both LAION and ImageReward publish it."""
    layers: list[nn.Module] = []
    for number, (before, after) in enumerate(zip((width, *_WIDTHS), _WIDTHS, strict=False)):
        layers.append(nn.Linear(before, after))
        if number < len(_DROPOUTS):
            layers.append(nn.Dropout(_DROPOUTS[number]))
    return nn.Sequential(*layers)


def head_of(state: Mapping[str, Tensor]) -> nn.Module | None:
    """An empty head for weights with these names and shapes, None if they are not those of one."""
    if set(state) == {"weight", "bias"} and state["weight"].ndim == 2 and state["weight"].shape[0] == 1:
        return nn.Linear(state["weight"].shape[1], 1)
    first = state.get("layers.0.weight")
    if first is None or first.ndim != 2:
        return None
    head = nn.ModuleDict({"layers": mlp(first.shape[1])})
    shapes = {name: value.shape for name, value in state.items()}
    return head if shapes == {name: value.shape for name, value in head.state_dict().items()} else None


def load_head(path: str) -> nn.Module:
    """Raises JdmError if there is no such head, or it is a pickle."""
    from safetensors.torch import load_file

    file = Path(path, "model.safetensors") if Path(path).is_dir() else Path(path)
    if Path(path).exists():
        require_weights(path)
    if not file.is_file():
        raise BadInputError(f"no aesthetic head at {path}", hint="give a .safetensors file, or a folder with one")
    state = load_file(file)
    head = head_of(state)
    if head is None:
        raise BadInputError(
            f"{file} is no aesthetic head: it holds {', '.join(sorted(state)[:4])} ...",
            hint="expected weight and bias, or layers.0.weight ... layers.7.bias",
        )
    head.load_state_dict(state)
    inner = head["layers"] if isinstance(head, nn.ModuleDict) else head
    return inner.eval().requires_grad_(False)
