"""Looks of pictures that distances between distributions tell late: sharpness and colour."""

import torch
from kornia.color import rgb_to_grayscale, rgb_to_hsv, rgb_to_lab
from kornia.filters import laplacian
from torch import Tensor


def sharpness(images: Tensor) -> Tensor:
    """Variance of the Laplacian of the grey picture, images [N, 3, H, W] in [0, 1] -> [N].

    The usual focus measure (Pech-Pacheco et al. 2000, doi:10.1109/ICPR.2000.903548); blur lowers it, noise and
    ringing raise it, so it is read beside that of true pictures.
    """
    return laplacian(rgb_to_grayscale(images), 3, normalized=False).flatten(1).var(1)


def mean_color(images: Tensor) -> Tensor:
    """Mean CIE L*a*b* of each picture, images [N, 3, H, W] in [0, 1] -> [N, 3]; about 2 units are just seen."""
    return rgb_to_lab(images).mean((2, 3))


def saturation(images: Tensor) -> Tensor:
    """Mean saturation (of HSV) of each picture, images [N, 3, H, W] in [0, 1] -> [N] in [0, 1]."""
    return rgb_to_hsv(images)[:, 1].mean((1, 2))


def rms_difference(images: Tensor, others: Tensor) -> Tensor:
    """Root mean square difference of pixels, picture by picture, [N, 3, H, W] both -> [N]."""
    return (images - others).square().flatten(1).mean(1).sqrt()


def mean_distance(features: Tensor) -> float:
    """Mean Euclidean distance between two different rows of features [N, D]."""
    n = len(features)
    return (torch.cdist(features.double(), features.double()).sum() / (n * (n - 1))).item()
