"""Controls: one contract for all, exactness where it is claimed, gradients against finite differences."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch.nn.functional import binary_cross_entropy_with_logits

from jdmctl.controls import CONTROLS
from jdmctl.controls.base import control_names, describe_controls, load_control
from jdmctl.controls.canny import Canny, edge_agreement
from jdmctl.controls.depth import Depth, DepthNetwork
from jdmctl.controls.lowres import LowRes
from jdmctl.controls.soft_canny import edge_logit, edge_margins
from jdmctl.controls.softedge import edge_strength
from jdmctl.errors import BadInputError, JdmError, MissingWeightsError
from jdmctl.tinyworld.models import depth_network
from jdmctl.training.energies import extract


def drawings(count, seed=0, resolution_px=64):
    """uint8 [N, H, W, 3]: shaded discs and boxes, some of them blurred, and a little noise."""
    rng = np.random.default_rng(seed)
    pictures = []
    for index in range(count):
        ramp = np.linspace(0, rng.integers(20, 80), resolution_px, dtype=np.float32)
        picture = np.repeat(ramp[None, :, None], resolution_px, 0) + rng.integers(0, 176, 3)
        for _ in range(5):
            corner, size = rng.integers(0, resolution_px - 10, 2), rng.integers(6, 30, 2)
            color = tuple(int(value) for value in rng.integers(0, 256, 3))
            if rng.random() < 0.5:
                cv2.circle(picture, corner.tolist(), int(size[0]) // 2, color, -1)
            else:
                cv2.rectangle(picture, corner.tolist(), (corner + size).tolist(), color, -1)
        picture = cv2.GaussianBlur(picture, (0, 0), 0.4 + 0.4 * (index % 4))
        picture += rng.normal(0, 4 * (index % 2), picture.shape)
        pictures.append(picture.clip(0, 255).astype(np.uint8))
    return np.stack(pictures)


def to_image(pictures):
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 255  # [N, 3, H, W]


def real_pictures(name, key, count):
    """Pictures that are not part of the project, where $JDMCTL_TEST_DATA says that they are."""
    folder = os.environ.get("JDMCTL_TEST_DATA")
    if not folder or not Path(folder, name).is_file():
        pytest.skip(f"no {name} below $JDMCTL_TEST_DATA")
    with np.load(Path(folder, name)) as archive:
        pictures = archive[key][..., :3]
    return pictures[:: len(pictures) // count][:count]


@pytest.fixture(scope="session")
def depth_folder(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("depth")
    depth_network().save_pretrained(folder)
    return str(folder)


@pytest.fixture(params=sorted(CONTROLS))
def control(request, depth_folder):
    if request.param == "depth":
        return load_control("depth", network=depth_folder, normalise="per_image")
    return load_control(request.param)


# The contract


def test_condition_is_a_picture_of_its_own(control):
    images = to_image(drawings(3))
    conditions = control.condition(images.requires_grad_())
    assert conditions.shape == images.shape and conditions.dtype == images.dtype
    assert not conditions.requires_grad
    assert conditions.min() >= 0 and conditions.max() <= 1
    alone = torch.cat([control.condition(image[None]) for image in images])
    # A network's convolutions may sum in another order for another batch size: single pixels can differ.
    assert (conditions - alone).abs().mean() < 1e-5


def test_energy_and_scores_prefer_the_picture_that_was_asked_for(control):
    images = to_image(drawings(4))
    conditions = control.condition(images)
    own, others = control.energy(images, conditions), control.energy(images.roll(1, 0), conditions)
    assert own.shape == (4,)
    assert (own < others).all()
    right = control.scores(images, conditions)
    wrong = control.scores(images.roll(1, 0), conditions)
    assert control.headline in right
    assert all(values.shape == (4,) for values in right.values())
    better = right[control.headline] > wrong[control.headline]
    assert better.all() if control.higher_is_better else not better.any()


def test_energy_of_a_batch_is_that_of_its_pictures(control):
    images = to_image(drawings(3))
    conditions = control.condition(images.roll(1, 0))
    together = control.energy(images, conditions)
    pairs = zip(images, conditions, strict=True)
    alone = torch.cat([control.energy(image[None], condition[None]) for image, condition in pairs])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)


def test_gradient_of_the_energy_is_that_of_finite_differences(control):
    """(E(x + h v) - E(x - h v)) / 2 h against <grad E, v>, for smooth random directions v, in float64.

    Generic pictures and a step of 1e-7 keep away from the kinks of |.|, max and the thresholds.
    """
    generator = torch.Generator().manual_seed(1)
    if isinstance(control, Depth):
        control.network.double()
    images = to_image(drawings(2)).double()
    images += 0.01 * torch.randn(images.shape, generator=generator, dtype=torch.float64)
    conditions = control.condition(images.roll(1, 0))
    images.requires_grad_()
    (gradient,) = torch.autograd.grad(control.energy(images, conditions).sum(), images)
    assert gradient.isfinite().all() and (gradient.flatten(1).norm(dim=1) > 0).all()
    for _ in range(3):
        direction = torch.randn(images.shape, generator=generator, dtype=torch.float64)
        with torch.no_grad():
            ahead = control.energy(images + 1e-7 * direction, conditions)
            behind = control.energy(images - 1e-7 * direction, conditions)
        slopes = (gradient * direction).flatten(1).sum(1)
        torch.testing.assert_close(slopes, (ahead - behind) / 2e-7, rtol=1e-3, atol=1e-6)


def test_to_returns_the_control(control):
    assert control.to("cpu") is control


# Canny


def cv2_canny(pictures, low=100, high=200):
    edges = np.stack([cv2.Canny(picture, low, high) for picture in pictures])
    return torch.from_numpy(edges > 0)[:, None]


@pytest.mark.parametrize("resolution_px", [64, 128])
def test_condition_is_that_of_controlnet_aux(resolution_px):
    from jdmctl._compat import ensure_torchvision

    ensure_torchvision()
    from controlnet_aux import CannyDetector

    pictures = drawings(2, resolution_px=resolution_px)
    size = {"detect_resolution": resolution_px, "image_resolution": resolution_px}
    expected = np.stack([CannyDetector()(picture, **size) for picture in pictures])
    assert torch.equal(Canny().condition(to_image(pictures)), to_image(expected))


@pytest.mark.parametrize("low, high", [(100, 200), (50, 50), (300, 800)])
def test_margins_are_cv2_pixel_for_pixel(low, high):
    pictures = drawings(12)
    passed = (edge_margins(to_image(pictures), low, high) > 0).all(0)
    assert torch.equal(passed, cv2_canny(pictures, low, high))


@pytest.mark.parametrize(
    "name, key",
    [("bsds500/bsds500_64.npz", "images"), ("noto_emoji/noto_emoji_rgba.npz", "rgba64")],
)
def test_margins_are_cv2_on_real_pictures(name, key):
    pictures = real_pictures(name, key, count=100)
    passed = (edge_margins(to_image(pictures), 100, 200) > 0).all(0)
    assert torch.equal(passed, cv2_canny(pictures))


def test_likelihood_agrees_with_cv2():
    """Odds above one and cv2's edges: the same but where several tests are passed by a hair."""
    pictures = drawings(12)
    likely = edge_logit(to_image(pictures), 100, 200) > 0
    agreement = edge_agreement(likely, cv2_canny(pictures))
    assert agreement["f1"].mean() > 0.9


def test_agreement_of_a_hand_made_pair():
    """Requested: a column of 8 pixels. Found: the column beside it, its upper half, and 4 pixels afar.

    4 of 8 found pixels are near requested ones: precision 1/2. The found half reaches one pixel
    further down: recall 5/8. f1 = 2 (1/2) (5/8) / (1/2 + 5/8) = 5/9. No pixel is in both: l1 = 16 / 64.
    """
    requested, found = torch.zeros(2, 1, 1, 8, 8, dtype=torch.bool)
    requested[..., :, 2] = True
    found[..., :4, 3] = True
    found[..., :4, 6] = True
    agreement = edge_agreement(found, requested)
    expected = {"precision": 1 / 2, "recall": 5 / 8, "f1": 5 / 9, "l1": 1 / 4}
    assert {name: value.item() for name, value in agreement.items()} == pytest.approx(expected)


def test_agreement_with_nothing():
    """No edge asked for and none found is right; only one of the two is wholly wrong."""
    none, all_ = torch.zeros(1, 1, 4, 4, dtype=torch.bool), torch.ones(1, 1, 4, 4, dtype=torch.bool)
    assert edge_agreement(none, none)["f1"] == 1
    assert edge_agreement(none, all_)["f1"] == 0
    assert edge_agreement(all_, none)["f1"] == 0


def descend(control, images, conditions, num_steps, smooth_px=0.0):
    """Steps of 0.0025 root mean square along minus the gradient, smoothed as a decoder would."""
    for _ in range(num_steps):
        images = images.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(control.energy(images, conditions).sum(), images)
        if smooth_px:
            gradient = blur(gradient, smooth_px)
        norm = gradient.square().mean((1, 2, 3), keepdim=True).sqrt()
        images = images - 0.0025 * gradient / norm.clamp(min=1e-12)
    return images.detach()


def blur(image, sigma):
    return to_image(np.stack([cv2.GaussianBlur(x, (0, 0), sigma) for x in image.permute(0, 2, 3, 1).numpy()])).mul(255)


@pytest.mark.parametrize("smooth_px", [0.0, 1.0])
def test_descent_repairs_a_blurred_picture(smooth_px):
    """The energy never sees cv2, and cv2 is what improves."""
    control, images = Canny(), to_image(drawings(6))
    conditions, start = control.condition(images), blur(images, 2.5)
    end = descend(control, start, conditions, num_steps=20, smooth_px=smooth_px)
    before, after = (control.scores(x, conditions)["f1"].mean() for x in (start, end))
    assert before < 0.9
    assert after > 0.98


def test_descent_draws_edges_where_there_are_none():
    """A nearly flat grey picture has no edge at all; the requested ones appear."""
    control, generator = Canny(), torch.Generator().manual_seed(0)
    conditions = control.condition(to_image(drawings(4)))
    start = 0.5 + 0.01 * torch.randn(conditions.shape, generator=generator)
    assert control.scores(start, conditions)["f1"].max() == 0
    end = descend(control, start, conditions, num_steps=60, smooth_px=1.0)
    assert control.scores(end, conditions)["f1"].mean() > 0.8


def test_without_tolerance_the_energy_is_each_pixels_own_cross_entropy():
    """p(requested | image) is then a product of Bernoullis with the odds of `edge_logit`: -log p is their BCE."""
    images = blur(to_image(drawings(4)), 1.0)
    requested = torch.rand(4, 1, *images.shape[-2:], generator=torch.Generator().manual_seed(0)) > 0.8
    expected = binary_cross_entropy_with_logits(edge_logit(images, 100, 200), requested.float(), reduction="none")
    found = Canny(tolerance_px=0).energy(images, requested.float().repeat(1, 3, 1, 1))
    torch.testing.assert_close(found, expected.mean((1, 2, 3)))


@pytest.mark.parametrize("tolerance_px", [1, 2])
def test_an_edge_may_be_off_by_the_tolerance(tolerance_px):
    """Moved by that much, a request costs what it did; moved by one more, its edge is missing and another unasked."""
    picture = torch.zeros(1, 3, 64, 64)
    picture[..., :, 32:] = 1  # its one edge is a column
    control = Canny(tolerance_px=tolerance_px)
    wanted = control.condition(picture)
    in_place, *near, far = [control.energy(picture, wanted.roll(px, -1)).item() for px in range(tolerance_px + 2)]
    assert near == pytest.approx([in_place] * tolerance_px, rel=0.02)
    assert far > 1.2 * in_place


def test_canny_options_are_checked():
    with pytest.raises(BadInputError, match="tolerance_px is -1"):
        Canny(tolerance_px=-1)
    with pytest.raises(BadInputError, match="low is 200 and high is 100"):
        Canny(low=200, high=100)


# Low resolution


def test_lowres_is_the_mean_of_squares():
    """Square (i, j) of 8 x 8 pixels holds 0.1 on its left half and 0.3 on its right: its mean is 0.2."""
    image = torch.full((1, 3, 16, 16), 0.1)
    image[..., 4:8] = image[..., 12:16] = 0.3
    condition = LowRes().condition(image)
    torch.testing.assert_close(condition, torch.full_like(image, 0.2))
    shifted = LowRes().energy(image + 0.05, condition)
    torch.testing.assert_close(shifted, torch.tensor([0.0125**0.5 - 0.1]))  # pseudo-Huber of 0.05
    # psnr of an error of 0.05 everywhere: -20 log10(0.05) = 26.02 dB
    scores = LowRes().scores(image + 0.05, condition)
    assert scores["psnr"].item() == pytest.approx(26.0206, abs=1e-3)
    assert scores["l1"].item() == pytest.approx(0.05, abs=1e-6)


def test_lowres_needs_a_resolution_that_divides():
    with pytest.raises(BadInputError, match="20 x 16 px does not divide by 8"):
        LowRes().condition(torch.rand(1, 3, 16, 20))
    with pytest.raises(BadInputError, match="factor is 1"):
        LowRes(factor=1)


# Soft edges


def test_soft_edges_lie_on_the_edges_and_grow_with_contrast():
    """A vertical step between columns 15 and 16: the map peaks there, and is nothing far from it."""
    image = torch.zeros(3, 3, 32, 32)
    for index, height in enumerate((0.1, 0.4, 0.8)):
        image[index, :, :, 16:] = height
    edges = edge_strength(image)
    assert (edges.argmax(3) - 15.5).abs().max() == 0.5
    peaks = edges[..., 16, 16].flatten()
    assert (peaks[1:] > peaks[:-1]).all()
    assert edges[..., :4].max() < 1e-3
    torch.testing.assert_close(edges, edge_strength(image.flip(3)).flip(3))


def test_a_run_in_bf16_extracts_soft_edges_as_data_does():
    """As nct does from what it drew: 24 such pictures in bf16 kept oneDNN busy for minutes."""
    image = torch.rand(24, 3, 64, 64).contiguous(memory_format=torch.channels_last)
    soft = load_control("softedge")
    with torch.autocast("cpu", torch.bfloat16):
        edges = extract(soft, image)
    assert torch.equal(edges, soft.condition(image))


# Depth


def test_depth_network_prepares_pictures_as_its_image_processor_does(depth_folder):
    """transformers' own processor, from the same folder, without its resizing."""
    from transformers import AutoModelForDepthEstimation, DPTImageProcessorPil

    mean, std = [0.1, 0.2, 0.3], [0.4, 0.5, 0.6]
    processor = DPTImageProcessorPil(do_resize=False, image_mean=mean, image_std=std)
    processor.save_pretrained(depth_folder)
    try:
        network = DepthNetwork(depth_folder)
    finally:
        Path(depth_folder, "preprocessor_config.json").unlink()
    pictures = drawings(2)
    model = AutoModelForDepthEstimation.from_pretrained(depth_folder)
    prepared = processor([Image.fromarray(x) for x in pictures], return_tensors="pt")
    network.input_size = None
    with torch.no_grad():
        expected = model.eval()(**prepared).predicted_depth[:, None]
        torch.testing.assert_close(network(to_image(pictures)), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    "settings, mean, std, size",
    [
        ({}, 0.5, 0.5, None),
        # Intel/dpt-large, from before transformers wrote sizes as height and width
        ({"do_normalize": True, "do_resize": True, "image_mean": [0.5] * 3, "image_std": [0.5] * 3, "size": 384},
         0.5, 0.5, (384, 384)),
        ({"do_normalize": True, "image_mean": [0.4] * 3, "image_std": [0.2] * 3, "size": {"height": 518, "width": 518}},
         0.4, 0.2, (518, 518)),  # Depth Anything
        ({"do_rescale": True, "do_resize": True, "size_divisor": 32}, 0, 1, None),  # GLPN
        # facebook/dpt-dinov2-base-nyu: pictures stay in [0, 255]
        ({"do_rescale": False, "do_resize": False, "image_mean": [127.5] * 3, "image_std": [51.0] * 3,
          "size": {"height": 384, "width": 384}}, 0.5, 0.2, None),
    ],
)  # fmt: skip
def test_published_settings_of_depth_networks(depth_folder, settings, mean, std, size):
    file = Path(depth_folder, "preprocessor_config.json")
    file.write_text(json.dumps(settings))
    try:
        network = DepthNetwork(depth_folder)
    finally:
        file.unlink()
    torch.testing.assert_close(network.mean.flatten(), torch.full((3,), float(mean)))
    torch.testing.assert_close(network.std.flatten(), torch.full((3,), float(std)))
    assert network.input_size == size


def test_depth_in_bf16_of_pictures_that_its_network_resizes(depth_folder):
    """A CPU cannot resize bf16 smoothly. What it asks of a picture differs by what bf16 rounds, 2^-8 and a little."""
    network, pictures = DepthNetwork(depth_folder), torch.rand(1, 3, 64, 64, requires_grad=True)
    network.input_size = (48, 48)
    with torch.autocast("cpu", torch.bfloat16):
        depth = network(pictures)
    depth.sum().backward()
    assert depth.shape == (1, 1, 64, 64) and pictures.grad.abs().max() > 0
    torch.testing.assert_close(depth, network(pictures), rtol=0.02, atol=0.02)


def test_depth_without_a_scale_wants_to_be_normalised(depth_folder):
    """Cut at 1 it would be a white picture."""
    depth = Depth(depth_folder)
    depth._depth = lambda network, image: torch.full((1, 1, 8, 8), 5.0)  # as a DPT predicts
    with pytest.raises(BadInputError, match="the network says 5 to 5") as refused:
        depth.condition(torch.rand(1, 3, 8, 8))
    assert "normalise: per_image" in refused.value.hint


def test_depth_per_image_spans_the_range(depth_folder):
    depth = Depth(depth_folder, normalise="per_image").condition(to_image(drawings(3)))
    torch.testing.assert_close(depth.amin((1, 2, 3)), torch.zeros(3))
    torch.testing.assert_close(depth.amax((1, 2, 3)), torch.ones(3))


def test_networks_that_predict_distances_are_turned_over(tmp_path):
    """Of a metric Depth Anything far would be bright; near is, as for every network here."""
    network = depth_network()
    network.config.depth_estimation_type = "metric"
    network.save_pretrained(tmp_path)
    with pytest.raises(BadInputError, match="predicts distances") as refused:
        Depth(str(tmp_path), normalise="per_image")
    assert refused.value.hint == "normalise: inverse"
    depth = Depth(str(tmp_path), normalise="inverse")
    distance = torch.tensor([[1.0, 2.0], [4.0, 4.0]]).view(1, 1, 2, 2)
    depth.network.forward = lambda image: distance
    condition = depth.condition(torch.rand(1, 3, 2, 2))
    torch.testing.assert_close(condition[0, 0], torch.tensor([[1.0, 1 / 3], [0.0, 0.0]]))


def test_depth_is_scored_by_the_other_network(depth_folder, tmp_path):
    """Conditions come from the first network: it scores its own pictures 0, another one does not."""
    torch.manual_seed(1)
    depth_network().save_pretrained(tmp_path)
    images = to_image(drawings(2))
    for scorer, exact in ((None, True), (str(tmp_path), False)):
        control = Depth(depth_folder, scorer, normalise="per_image")
        scores = control.scores(images, control.condition(images))
        assert bool((scores["l1"] < 1e-6).all()) == exact
        assert (scores["rmse"] >= scores["l1"]).all()


def test_depth_folders_that_cannot_be_used(depth_folder, tmp_path):
    with pytest.raises(MissingWeightsError, match="cannot load a depth network from"):
        Depth(str(tmp_path / "nowhere"))
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(MissingWeightsError, match="refused"):
        Depth(str(tmp_path))
    save_file({"a": torch.zeros(1)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text('{"model_type": "clip_text_model"}')
    with pytest.raises(MissingWeightsError, match="cannot load a depth network from"):
        Depth(str(tmp_path))
    with pytest.raises(BadInputError, match="normalise is 'max'"):
        Depth(depth_folder, normalise="max")


# Finding controls


def test_listing_names_loads_nothing_heavy():
    code = (
        "import sys, jdmctl.controls, jdmctl.controls.base as base; base.control_names();"
        "print([name for name in ('torch', 'numpy', 'cv2') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_unknown_names_and_options():
    with pytest.raises(JdmError, match="no control is named 'cany'") as caught:
        load_control("cany")
    assert caught.value.hint == "did you mean 'canny'?"
    with pytest.raises(JdmError, match="no control is named 'xyz'") as caught:
        load_control("xyz")
    assert caught.value.hint == "there are canny, depth, lowres, softedge"
    with pytest.raises(JdmError, match="'lowres' has no option 'facto'") as caught:
        load_control("lowres", facto=4)
    assert caught.value.hint == "did you mean 'factor'?"
    with pytest.raises(JdmError, match="'softedge' has no option 'factor'") as caught:
        load_control("softedge", factor=4)
    assert caught.value.hint == "it takes no options"
    with pytest.raises(JdmError, match="'depth' needs the option network"):
        load_control("depth")


THIRD_PARTY = """
class Brightness:
    name = "brightness"
    gradient = "exact"
    description = "one grey"
    headline = "l1"
    higher_is_better = False
    def __init__(self, scale=1.0):
        self.scale = scale
"""


@pytest.fixture
def other_package(tmp_path, monkeypatch):
    """An installed distribution that registers a control, and one that is broken."""
    (tmp_path / "glow.py").write_text(THIRD_PARTY)
    install(tmp_path, "jdm-glow", "brightness = glow:Brightness", "broken = glow:Absent")
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()


def install(folder, package: str, *points: str) -> None:
    """A distribution with controls as entry points."""
    info = folder / f"{package.replace('-', '_')}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("\n".join(["[jdmctl.controls]", *points]))


def test_another_package_registers_a_control(other_package):
    assert set(control_names()) == {*CONTROLS, "brightness", "broken"}
    assert load_control("brightness", scale=2.0).scale == 2.0
    with pytest.raises(JdmError, match="'broken' cannot be imported from glow:Absent") as caught:
        load_control("broken")
    assert "jdm-glow" in caught.value.hint


def test_a_name_that_two_packages_bring_is_nobody_s(other_package, tmp_path):
    """Neither is used in place of the other; all else works, and listing tells."""
    install(tmp_path, "other-glow", "canny = glow:Brightness", "brightness = glow:Brightness")
    importlib.invalidate_caches()
    for name, packages in (
        ("canny", "jdmctl and other-glow"),
        ("brightness", r"(jdm|other)-glow and (jdm|other)-glow"),
    ):
        with pytest.raises(JdmError, match=f"{packages} each bring a control named '{name}'") as caught:
            load_control(name)
        assert "-glow, or ask its authors for another name" in caught.value.hint
    assert set(control_names()) == {*CONTROLS, "brightness", "broken"}
    (row,) = [row for row in describe_controls() if row["name"] == "canny"]
    assert row["from"] == "jdmctl and other-glow" and "each bring a control" in row["description"]


def test_controls_are_described(other_package):
    rows = {row["name"]: row for row in describe_controls()}
    assert [rows[name]["gradient"] for name in sorted(CONTROLS)] == ["surrogate", "network", "exact", "exact"]
    assert rows["canny"]["from"] == "jdmctl"
    assert rows["canny"]["options"] == "[low=100], [high=200], [tolerance_px=1]"
    assert rows["depth"]["options"] == "network, [scorer], [normalise=none]"
    assert rows["brightness"] == {
        "name": "brightness", "options": "[scale=1.0]", "gradient": "exact", "headline": "l1", "from": "jdm-glow",
        "description": "one grey",
    }  # fmt: skip
    assert "cannot be imported" in rows["broken"]["description"]
