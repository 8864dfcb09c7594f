"""What was drawn in many steps is drawn once: of a tiny random pipeline with a ControlNet."""

import pytest
import torch

from jdmctl.comparison import kept
from jdmctl.comparison.kept import KeptSampler
from jdmctl.families.stable_diffusion import StableDiffusion


@pytest.fixture
def counted(tiny_folders, monkeypatch):
    """The family, and the batches that it drew in many steps."""
    teacher, student = tiny_folders
    family = StableDiffusion.load(teacher=teacher, student=student)
    family.add_control_branch("canny", denoiser=family.teacher)
    calls, multistep = [], family.multistep

    def counting(*arguments):
        calls.append(arguments)
        return multistep(*arguments)

    monkeypatch.setattr(family, "multistep", counting)
    return family, calls


@torch.no_grad()
def test_a_batch_is_drawn_once_and_again_where_anything_differs(counted, tmp_path):
    family, calls = counted
    noise, prompt = torch.randn(2, *family.latent_shape), family.encode_prompt(["a cube", "a cone"])
    edges = {"canny": torch.rand(2, 3, family.resolution_px, family.resolution_px)}
    asked = [noise, prompt, 2, 1.5, edges]
    x0 = KeptSampler(family, tmp_path)(*asked)
    assert torch.equal(x0, family.multistep(*asked))
    calls.clear()
    assert torch.equal(KeptSampler(family, tmp_path)(*asked), x0) and not calls
    others = [noise + 1, family.encode_prompt(["a cube", "a ball"]), 3, 2.0, {"canny": 1 - edges["canny"]}]
    for number, other in enumerate(others):
        KeptSampler(family, tmp_path)(*asked[:number], other, *asked[number + 1 :])
        assert len(calls) == number + 1
    family.teacher.branches["canny"].controlnet_down_blocks[0].bias.add_(1)
    assert not torch.equal(KeptSampler(family, tmp_path)(*asked), x0) and len(calls) == len(others) + 1


@torch.no_grad()
def test_what_another_device_drew_is_not_taken_for_ones_own(counted, tmp_path, monkeypatch):
    """The CPU's is called as it was before there were others."""
    family, calls = counted
    asked = torch.randn(1, *family.latent_shape), family.encode_prompt(["a cube"]), 2, 1.0, {}
    KeptSampler(family, tmp_path)(*asked)
    for name in ("cuda one", "cuda other"):
        monkeypatch.setattr(kept, "describe_device", lambda device, name=name: name)
        for _ in range(2):
            KeptSampler(family, tmp_path)(*asked)
    monkeypatch.undo()
    KeptSampler(family, tmp_path)(*asked)
    assert len(calls) == 3


@torch.no_grad()
def test_a_file_cut_short_is_drawn_anew(counted, tmp_path):
    family, calls = counted
    asked = torch.randn(1, *family.latent_shape), family.encode_prompt(["a cube"]), 2, 1.0, {}
    x0 = KeptSampler(family, tmp_path)(*asked)
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:-1])
    assert torch.equal(KeptSampler(family, tmp_path)(*asked), x0) and len(calls) == 2
    assert [path.name for path in tmp_path.iterdir()] == [file.name]
