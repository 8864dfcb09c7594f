"""What a run leaves behind works in plain diffusers, in a process that cannot import jdmctl."""

import subprocess
import sys

import numpy as np
import torch

from jdmctl.families.stable_diffusion import StableDiffusion
from jdmctl.sampling import draw

PLAIN_DIFFUSERS = """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "jdmctl":
            raise ImportError("jdmctl is not here")

sys.meta_path.insert(0, Refuse())
try:
    import jdmctl
except ImportError:
    pass
else:
    sys.exit("jdmctl can be imported: this shows nothing")

import torch

# A torchvision built for CUDA does not import beside a CPU torch unless these schemas exist.
library = torch.library.Library("torchvision", "FRAGMENT")
for name in ("nms", "qnms"):
    try:
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    except RuntimeError:
        pass

import numpy as np
from diffusers import ControlNetModel, StableDiffusionControlNetPipeline

student, controlnet, condition, picture = sys.argv[1:]
pipe = StableDiffusionControlNetPipeline.from_pretrained(
    student, controlnet=ControlNetModel.from_pretrained(controlnet), safety_checker=None
)
pipe.set_progress_bar_config(disable=True)
drawn = [
    pipe(
        "a red cone on a tan floor",
        image=torch.from_numpy(np.load(condition)),
        num_inference_steps=1,
        guidance_scale=1.0,
        generator=torch.Generator().manual_seed(seed),
        output_type="np",
    ).images[0]
    for seed in (0, 7)
]
assert pipe.scheduler.timesteps.tolist() == [999]
np.save(picture, np.stack(drawn))
"""


def test_exported_branch_draws_the_same_picture_without_jdmctl(tiny_folders, tmp_path):
    """One step at t = 999 from the same seed: equal to 1/255, and the branch does matter.

    A new branch adds nothing, since its output convolutions are zero; so they are filled first.
    """
    teacher, student = tiny_folders
    family = StableDiffusion.load(teacher=teacher, student=student)
    branch = family.add_control_branch("depth")
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for convolution in (*branch.controlnet_down_blocks, branch.controlnet_mid_block):
            convolution.weight.normal_(0, 0.3, generator=generator)
    size = family.resolution_px
    condition = torch.rand(1, 3, size, size, generator=generator)
    prompts, seeds = ["a red cone on a tan floor"] * 2, [0, 7]
    controlled = draw(family, prompts, seeds, {"depth": condition.expand(2, -1, -1, -1)})
    plain = draw(family, prompts, seeds)
    assert (controlled - plain).abs().max() > 10 / 255

    family.save_control_branch("depth", tmp_path / "controlnet")
    np.save(tmp_path / "condition.npy", condition.numpy())
    arguments = [student, tmp_path / "controlnet", tmp_path / "condition.npy", tmp_path / "out.npy"]
    command = [sys.executable, "-c", PLAIN_DIFFUSERS, *map(str, arguments)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    theirs = torch.from_numpy(np.load(tmp_path / "out.npy")).permute(0, 3, 1, 2)
    assert (theirs - controlled).abs().max() < 1 / 255
