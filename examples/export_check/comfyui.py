"""Loads what jdmctl wrote with ComfyUI's own code, and compares the networks number by number.

    git clone https://github.com/comfyanonymous/ComfyUI
    python examples/export_check/comfyui.py ComfyUI                  # random ControlNets and LoRAs of published sizes
    python examples/export_check/comfyui.py ComfyUI --export FOLDER  # what `jdmctl export --format comfyui` wrote

ComfyUI's requirements must be installed. With --webui, a checkout of sd-webui-controlnet, the names are also compared
with that extension's table.
"""

import argparse
import importlib.util
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import jdmctl  # noqa: F401  before diffusers: it mends torchvision

# isort: split
import torch
from diffusers import ControlNetModel, UNet2DConditionModel
from peft import LoraConfig, get_peft_model_state_dict, inject_adapter_in_model
from safetensors.torch import load_file, save_file

from jdmctl.export.ldm import PREFIX, problems, single_file
from jdmctl.export.lora import kohya
from jdmctl.export.lora import problems as lora_problems
from jdmctl.export.lora import single_file as lora_file
from jdmctl.families.names import family_class

SD15 = {
    "block_out_channels": (320, 640, 1280, 1280),
    "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    "cross_attention_dim": 768,
    "attention_head_dim": 8,
}
SD21 = SD15 | {"cross_attention_dim": 1024, "attention_head_dim": (5, 10, 20, 20), "use_linear_projection": True}
SDXL = {
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "cross_attention_dim": 2048,
    "attention_head_dim": (5, 10, 20),
    "transformer_layers_per_block": (1, 2, 10),
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
SMALL = {
    "block_out_channels": (64, 128),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "layers_per_block": 3,
    "cross_attention_dim": 32,
    "attention_head_dim": (1, 2),
}
NETWORKS = {"small": SMALL, "sd15": SD15, "sd21": SD21, "sdxl": SDXL}
SD35 = {  # medium
    "sample_size": 128,
    "num_layers": 24,
    "num_attention_heads": 24,
    "caption_projection_dim": 1536,
    "dual_attention_layers": tuple(range(13)),
    "qk_norm": "rms_norm",
    "pos_embed_max_size": 384,
}
# Families with a transformer, whose LoRA is in diffusers' keys; where nothing is said, diffusers' own numbers hold.
TRANSFORMERS = {"flux": {}, "sd3": SD35, "pixart_alpha": {}, "pixart_sigma": {"sample_size": 64}, "qwen_image": {}}
KNOWN = [*NETWORKS, *TRANSFORMERS]
LORA_TARGETS = ["to_q", "to_out.0", "ff.net.0.proj", "proj_in", "conv1", "conv_shortcut", "time_emb_proj", "conv_in"]


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("comfyui", type=Path, help="a checkout of ComfyUI")
    options.add_argument("--webui", type=Path, help="a checkout of sd-webui-controlnet")
    options.add_argument("--export", type=Path, help="a folder that jdmctl export wrote")
    options.add_argument("--network", nargs="*", choices=KNOWN, default=KNOWN)
    given = options.parse_args()
    comfy = load_comfy(given.comfyui)
    if given.export:
        files = sorted(given.export.glob("controlnet-*.safetensors"))
        if not files:
            sys.exit(f"{given.export} holds no controlnet-NAME.safetensors: was it exported with --format comfyui?")
        for file in files:
            folders = [f for f in sorted(given.export.glob("controlnet*")) if f.is_dir()]
            folder = next(f for f in folders if len(folders) == 1 or f.name == file.stem)
            net = ControlNetModel.from_pretrained(folder).float()
            print(file.name, *compare(comfy, file, net), sep="\n  ")
        return
    for name in given.network:
        if name in TRANSFORMERS:
            print(name, compare_transformer_lora(comfy, name), sep="\n  ", flush=True)
            continue
        torch.manual_seed(0)
        net = ControlNetModel(**NETWORKS[name])
        with torch.no_grad():  # zero convolutions would make every output 0
            for convolution in (*net.controlnet_down_blocks, net.controlnet_mid_block):
                convolution.weight.normal_(0, 0.02)
                convolution.bias.normal_(0, 0.1)
            net.controlnet_cond_embedding.conv_out.reset_parameters()
        config = dict(net.config) | {"_class_name": "ControlNetModel"}
        assert not problems(config, "comfyui"), problems(config, "comfyui")
        with tempfile.TemporaryDirectory() as scratch:
            file = Path(scratch, "controlnet.safetensors")
            save_file(single_file(net.state_dict(), config), file)
            told = compare(comfy, file, net)
        if given.webui and name != "small":
            told.append(compare_webui(given.webui, net, config))
        if name in ("sd15", "sdxl"):
            told.append(compare_lora(comfy, name))
        print(name, *told, sep="\n  ", flush=True)


def load_comfy(folder: Path) -> SimpleNamespace:
    sys.path.insert(0, str(folder.resolve()))
    from comfy.cli_args import args

    args.cpu = True
    import comfy.controlnet
    import comfy.lora
    import comfy.model_detection
    import comfy.utils

    return comfy


def compare(comfy: SimpleNamespace, file: Path, net: ControlNetModel) -> list[str]:
    """ComfyUI's network from our file against diffusers', by its own table of names and by what it computes."""
    loaded = comfy.controlnet.load_controlnet(str(file), model_options={"dtype": torch.float32})
    theirs = loaded.control_model.float()
    state, ours = theirs.state_dict(), {k.removeprefix(PREFIX): v for k, v in load_file(file).items()}
    assert state.keys() == ours.keys(), state.keys() ^ ours.keys()
    same = sum(torch.equal(state[key].float(), ours[key].float()) for key in ours)
    told = [f"loader: {same} of {len(ours)} tensors in place, none missing, none left over"]

    weights = net.state_dict()
    config = comfy.model_detection.unet_config_from_diffusers_unet(weights)
    if config:
        table = comfy.utils.unet_to_diffusers(config)
        known = [key for key in weights if key in table]
        agreeing = sum(torch.equal(weights[key].float(), ours[table[key]].float()) for key in known)
        told.append(f"table unet_to_diffusers: {agreeing} of {len(known)} names agree")
    else:
        told.append("table unet_to_diffusers: ComfyUI knows no such UNet, so it reads our layout only")

    generator = torch.Generator().manual_seed(1)
    size = 16
    latent = torch.randn(2, net.config.in_channels, size, size, generator=generator)
    hint = torch.rand(2, 3, 8 * size, 8 * size, generator=generator)
    words = torch.randn(2, 77, net.config.cross_attention_dim, generator=generator)
    timestep = torch.tensor([999, 400])
    extra, added = {}, {}
    if net.config.addition_embed_type:
        pooled = torch.randn(2, 1280, generator=generator)
        times = torch.tensor([[1024.0, 1024, 0, 0, 1024, 1024]] * 2)
        added = {"added_cond_kwargs": {"text_embeds": pooled, "time_ids": times}}
        waves = net.add_time_proj(times.flatten()).reshape(2, -1)
        extra = {"y": torch.cat([pooled, waves], dim=1)}
    with torch.no_grad():
        down, middle = net(latent, timestep, words, hint, return_dict=False, **added)
        found = theirs(x=latent, hint=hint, timesteps=timestep.float(), context=words, **extra)
    pairs = list(zip([*down, middle], [*found["output"], *found["middle"]], strict=True))
    worst = max((a - b).abs().max() / a.abs().max() for a, b in pairs)
    told.append(f"residuals: {len(pairs)} maps, largest difference {worst:.1e} of each map's largest value")
    assert same == len(ours) and worst < 1e-3, told
    return told


def compare_webui(folder: Path, net: ControlNetModel, config: dict) -> str:
    """Every name that sd-webui-controlnet's table gives a diffusers key is the one in our file."""
    path = folder / "scripts" / "controlnet_diffusers.py"
    spec = importlib.util.spec_from_file_location("controlnet_diffusers", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    names = {key: key for key in net.state_dict()}
    theirs = module.convert_from_diffuser_state_dict(names)
    ours = {place.removeprefix(PREFIX): key for place, key in single_file(names, config).items()}
    assert theirs == ours, {k: (theirs.get(k), ours.get(k)) for k in theirs.keys() ^ ours.keys()}
    refused = problems(config, "a1111")
    return f"sd-webui-controlnet's table: {len(ours)} names agree" + (f"; refused: {refused[0]}" if refused else "")


def compare_lora(comfy: SimpleNamespace, name: str) -> str:
    """Every layer of a LoRA in kohya's keys is found by ComfyUI, and belongs to the weight that it was made for."""
    kinds = tuple(kind.replace("Down", "Up") for kind in reversed(NETWORKS[name]["down_block_types"]))
    with torch.device("meta"):
        unet = UNet2DConditionModel(up_block_types=kinds, **NETWORKS[name])
        unet.add_adapter(LoraConfig(r=2, lora_alpha=2, target_modules=LORA_TARGETS))
    layers = {f"unet.{k}": torch.zeros(v.shape) for k, v in get_peft_model_state_dict(unet).items()}
    shapes = {k.replace(".base_layer", ""): v for k, v in unet.state_dict().items() if ".lora_" not in k}
    config = comfy.model_detection.unet_config_from_diffusers_unet(shapes)
    table = comfy.utils.unet_to_diffusers(config)
    model = SimpleNamespace(
        state_dict=lambda: {f"diffusion_model.{table[key]}": None for key in shapes},
        model_config=SimpleNamespace(unet_config=config),
    )
    patches = comfy.lora.load_lora(kohya(layers), comfy.lora.model_lora_keys_unet(model, {}))
    wanted = {f"diffusion_model.{table[k[5:].replace('.lora_A', '')]}" for k in layers if ".lora_A" in k}
    assert patches.keys() == wanted, patches.keys() ^ wanted
    return f"LoRA in kohya's keys: {len(patches)} layers found by comfy.lora, each at its weight"


def compare_transformer_lora(comfy: SimpleNamespace, name: str) -> str:
    """Every layer of a LoRA in diffusers' keys is found by ComfyUI, and has the shape of what it is added to."""
    kind = family_class(name)
    assert not lora_problems(kind.backbone_class.__name__, "comfyui")
    with torch.device("meta"):
        backbone = kind.backbone_class(**TRANSFORMERS[name])
        weights = dict(backbone.state_dict())
        inject_adapter_in_model(LoraConfig(r=2, lora_alpha=2, target_modules=list(kind.lora_targets)), backbone)
        renamed = comfy.model_detection.convert_diffusers_mmdit(dict(weights), "") or weights
    layers = {f"transformer.{k}": torch.zeros(v.shape) for k, v in get_peft_model_state_dict(backbone).items()}
    config = comfy.model_detection.model_config_from_unet(renamed, "")
    config.set_inference_dtype(torch.float32, None)
    model = config.get_model(renamed, "", device="meta")
    given = lora_file(layers, kind.backbone_class.__name__)
    patches = comfy.lora.load_lora(given, comfy.lora.model_lora_keys_unet(model, {}))
    assert 2 * len(patches) == len(given), (len(patches), len(given))
    state = model.state_dict()
    for to, patch in patches.items():
        key, part = (to, None) if isinstance(to, str) else to[:2]
        weight = state[key].narrow(*part) if part else state[key]
        up, down = patch.weights[:2]
        assert (up @ down).shape == weight.flatten(1).shape, (to, up.shape, down.shape, weight.shape)
    return f"LoRA in diffusers' keys: {len(patches)} layers found by comfy.lora in its {type(model).__name__}"


if __name__ == "__main__":
    main()
