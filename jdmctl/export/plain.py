"""Draws with exported files in plain diffusers; run as a program of its own, in which jdmctl cannot be imported.

    python -P plain.py JOB.json

The job names a student, a pipeline class, a scheduler, what to call the pipeline with, and variants: ControlNets (a
folder, or a single file with the folder whose config it has) and a LoRA. Writes one array of pictures for each variant.
"""

import importlib
import json
import sys


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
    torch = importlib.import_module("torch")
    library = _mend_torchvision(torch)  # noqa: F841  torch forgets the schemas with it
    np = importlib.import_module("numpy")
    diffusers = importlib.import_module("diffusers")
    job = json.loads(open(job_file, encoding="utf-8").read())
    condition = torch.from_numpy(np.load(job["condition"])) if job["condition"] else None
    drawn = {}
    for name, variant in job["variants"].items():
        parts = {}
        nets = [read_controlnet(diffusers, **given) for given in variant["controlnets"]]
        if nets:
            parts["controlnet"] = nets[0] if len(nets) == 1 else nets
        pipe = getattr(diffusers, job["pipeline"]).from_pretrained(
            variant["student"], torch_dtype=torch.float32, **parts
        )
        pipe.set_progress_bar_config(disable=True)
        if pipe.components.get("safety_checker") is not None:
            pipe.safety_checker = None
        scheduler = dict(job["scheduler"])
        pipe.scheduler = getattr(diffusers, scheduler.pop("_class_name")).from_config(scheduler)
        if variant["lora"]:
            pipe.load_lora_weights(variant["lora"])
        pipe.to(job["device"])
        asked = {job["condition_argument"]: condition if len(nets) == 1 else [condition] * len(nets)} if nets else {}
        pictures = []
        for prompt, seed in zip(job["prompts"], job["seeds"], strict=True):
            generator = torch.Generator().manual_seed(seed)
            answer = pipe(prompt, generator=generator, output_type="np", **asked, **job["call"])
            pictures.append(answer.images[0])
        assert [round(float(t)) for t in pipe.scheduler.timesteps] == [job["timestep"]], pipe.scheduler.timesteps
        drawn[name] = np.stack(pictures)
    np.savez(job["output"], **drawn)


def read_controlnet(diffusers, folder, file=None):
    """From a folder, or from a single file by diffusers' own converter of the original layout."""
    config = json.loads(open(f"{folder}/config.json", encoding="utf-8").read())
    kind = getattr(diffusers, config["_class_name"])
    if not file:
        return kind.from_pretrained(folder).float()
    if not config.get("addition_embed_type"):
        return kind.from_single_file(file, config=folder).float()
    # diffusers' converter knows where SDXL's label_emb belongs, but leaves it out for ControlNets (0.42)
    from diffusers.loaders import single_file_utils as theirs
    from safetensors.torch import load_file

    weights = load_file(file)
    table = theirs.DIFFUSERS_TO_LDM_MAPPING["controlnet"]["addition_embed_type"]
    extra = {key: weights["control_model." + place] for key, place in table.items()}
    net = kind.from_config(kind.load_config(folder))
    net.load_state_dict(theirs.convert_controlnet_checkpoint(weights, config) | extra)
    return net.float()


if __name__ == "__main__":
    main(sys.argv[1])
