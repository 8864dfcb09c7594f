"""Draws with exported files in plain diffusers; run as a program of its own, in which jdmctl cannot be imported.

    python -P plain.py JOB.json

The job holds, for each variant, the code that makes the pipeline (see code.py), and what to call it with. Writes one
array of pictures for each variant.
"""

import importlib
import json
import sys
from pathlib import Path


class _Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "jdmctl":
            raise ImportError("jdmctl is not to be used here")


def _mend_torchvision(torch):
    """A torchvision built for CUDA does not import beside a CPU torch unless these schemas exist."""
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
        try:
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        except RuntimeError:
            pass
    return library


def main(job_file):
    sys.meta_path.insert(0, _Refuse())
    library = _mend_torchvision(importlib.import_module("torch"))  # noqa: F841  torch forgets the schemas with it
    draw(json.loads(Path(job_file).read_text(encoding="utf-8")))


def draw(job):
    torch, np = importlib.import_module("torch"), importlib.import_module("numpy")
    torch.backends.cudnn.allow_tf32 = False  # its ten bits are less than the check compares
    # As in training a condition's latent is its mean. FLUX' and Qwen-Image's pipelines would take it, and then the
    # noise that a picture starts from, from one generator.
    vae = importlib.import_module("diffusers.models.autoencoders.vae")
    vae.DiagonalGaussianDistribution.sample = lambda self, generator=None: self.mode()
    asked = {}
    if job["condition"]:
        pixels = (255 * np.load(job["condition"])[0].transpose(1, 2, 0)).round().astype("uint8")
        # a tensor would go past what some pipelines do to a picture
        condition, number = importlib.import_module("PIL.Image").fromarray(pixels), job["num_conditions"]
        asked[job["condition_argument"]] = condition if number == 1 else [condition] * number
    drawn = {}
    for name, lines in job["variants"].items():
        scope = {"read_single_file": read_single_file}
        exec("\n".join(lines), scope)  # what the model card tells people to run
        pipe = scope["pipe"]
        pipe.set_progress_bar_config(disable=True)
        pipe.safety_checker = pipe.watermark = None  # they change pictures
        pipe.to(job["device"], torch.float32)
        pictures = []
        for prompt, seed in zip(job["prompts"], job["seeds"], strict=True):
            generator = torch.Generator().manual_seed(seed)
            pictures += list(pipe(prompt, generator=generator, output_type="np", **asked, **job["call"]).images)
        # SCMScheduler's end with a 0, at which nothing is called; many contracts are of whole numbers
        told = [float(timestep) for timestep in pipe.scheduler.timesteps[: pipe.scheduler.num_inference_steps]]
        if len(told) != 1 or abs(told[0] - job["timestep"]) > 5e-4 * job["timestep"]:
            sys.exit(f"its network is called at {told}, not at [{job['timestep']}]")
        drawn[name] = np.stack(pictures)
    np.savez(job["output"], **drawn)


def read_single_file(file, folder):
    """A ControlNet in the original's layout, by diffusers' own converter; its config is the folder's."""
    diffusers = importlib.import_module("diffusers")
    theirs = importlib.import_module("diffusers.loaders.single_file_utils")
    config = json.loads(Path(folder, "config.json").read_text(encoding="utf-8"))
    if not config["addition_embed_type"]:
        return diffusers.ControlNetModel.from_single_file(str(file), config=str(folder))
    # the converter knows where SDXL's label_emb belongs, but leaves it out for ControlNets (diffusers 0.42)
    weights = importlib.import_module("safetensors.torch").load_file(file)
    table = theirs.DIFFUSERS_TO_LDM_MAPPING["controlnet"]["addition_embed_type"]
    extra = {key: weights["control_model." + place] for key, place in table.items()}
    net = diffusers.ControlNetModel.from_config(diffusers.ControlNetModel.load_config(folder))
    net.load_state_dict(theirs.convert_controlnet_checkpoint(weights, config) | extra)
    return net


if __name__ == "__main__":
    main(sys.argv[1])
