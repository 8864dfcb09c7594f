"""A transformer alone in a file of its authors' keys, as FLUX.1-schnell and Z-Image-Turbo are published beside their
folders; what such a file and its teacher differ in is told by the file's names.
"""

import inspect
import json
import re

import pytest
import torch
from diffusers import FluxTransformer2DModel
from diffusers.loaders import single_file_utils
from diffusers.loaders.single_file_model import SINGLE_FILE_LOADABLE_CLASSES
from export_runs import finished_run, run_plain_here
from safetensors.torch import load_file, save_file

from jdmctl.errors import BadInputError
from jdmctl.families.names import family_class
from jdmctl.families.standins.write import STAND_INS
from jdmctl.families.student_forms import student_form

# diffusers' names of FLUX's layers -> Black Forest Labs' own, those with several made one by joining their rows
FLUX = {
    "time_text_embed.timestep_embedder.linear_1": "time_in.in_layer",
    "time_text_embed.timestep_embedder.linear_2": "time_in.out_layer",
    "time_text_embed.text_embedder.linear_1": "vector_in.in_layer",
    "time_text_embed.text_embedder.linear_2": "vector_in.out_layer",
    "time_text_embed.guidance_embedder.linear_1": "guidance_in.in_layer",
    "time_text_embed.guidance_embedder.linear_2": "guidance_in.out_layer",
    "context_embedder": "txt_in", "x_embedder": "img_in", "proj_out": "final_layer.linear",
}  # fmt: skip
FLUX_DOUBLE = {
    "norm1.linear": "img_mod.lin", "norm1_context.linear": "txt_mod.lin", "attn.to_out.0": "img_attn.proj",
    "attn.to_add_out": "txt_attn.proj", "ff.net.0.proj": "img_mlp.0", "ff.net.2": "img_mlp.2",
    "ff_context.net.0.proj": "txt_mlp.0", "ff_context.net.2": "txt_mlp.2",
    "attn.to_q attn.to_k attn.to_v": "img_attn.qkv", "attn.add_q_proj attn.add_k_proj attn.add_v_proj": "txt_attn.qkv",
}  # fmt: skip
FLUX_SINGLE = {
    "norm.linear": "modulation.lin", "proj_out": "linear2", "attn.to_q attn.to_k attn.to_v proj_mlp": "linear1",
}  # fmt: skip
FLUX_NORMS = {
    "attn.norm_q": "img_attn.norm.query_norm", "attn.norm_k": "img_attn.norm.key_norm",
    "attn.norm_added_q": "txt_attn.norm.query_norm", "attn.norm_added_k": "txt_attn.norm.key_norm",
}  # fmt: skip


def renamed(given, table, before="", after=""):
    """The layers of `table` that are in `given`, in its other names, `before` and `after` being their blocks'."""
    found = {}
    for ours, theirs in table.items():
        for kind in ("weight", "bias"):
            parts = [given.get(f"{before}{name}.{kind}") for name in ours.split()]
            if all(part is not None for part in parts):
                found[f"{after}{theirs}.{kind}"] = torch.cat(parts)
    return found


def flux_in_authors_keys(given):
    found = renamed(given, FLUX)
    for kind in ("weight", "bias"):  # theirs has the shift first
        scale, shift = given[f"norm_out.linear.{kind}"].chunk(2)
        found[f"final_layer.adaLN_modulation.1.{kind}"] = torch.cat([shift, scale])
    for block in {
        name.rpartition("_blocks.")[0] + "_blocks." + name.split(".")[1] for name in given if "_blocks." in name
    }:
        number = block.rpartition(".")[2]
        before, is_single = f"{block}.", block.startswith("single_")
        after = f"{'single' if is_single else 'double'}_blocks.{number}."
        found |= renamed(given, FLUX_SINGLE if is_single else FLUX_DOUBLE, before, after)
        for ours, theirs in FLUX_NORMS.items():
            if f"{before}{ours}.weight" in given:
                found[f"{after}{theirs.removeprefix('img_attn.') if is_single else theirs}.scale"] = given[
                    f"{before}{ours}.weight"
                ]
    return found


def z_image_in_authors_keys(given):
    found = {}
    for name, value in given.items():
        name = re.sub(r"^all_(x_embedder|final_layer)\.2-1\.", r"\1.", name)
        name = re.sub(r"norm_([qk])\.", r"\1_norm.", name).replace("attention.to_out.0.", "attention.out.")
        if ".to_q." in name:
            rows = [given[name.replace(".to_q.", f".to_{part}.")] for part in "qkv"]
            found[name.replace(".to_q.", ".qkv.")] = torch.cat(rows)
        elif ".to_k." not in name and ".to_v." not in name:
            found[name] = value
    return found


AUTHORS = {"flux": flux_in_authors_keys, "z_image": z_image_in_authors_keys}


@pytest.fixture
def narrow_flux(monkeypatch):
    """diffusers' own conversion of FLUX, whose width stands in its code, for the stand-in's."""
    code = inspect.getsource(single_file_utils.convert_flux_transformer_checkpoint_to_diffusers)
    assert "inner_dim = 3072" in code
    known = dict(vars(single_file_utils))
    exec(code.replace("inner_dim = 3072", "inner_dim = 32"), known)
    narrow = known["convert_flux_transformer_checkpoint_to_diffusers"]
    monkeypatch.setitem(SINGLE_FILE_LOADABLE_CLASSES["FluxTransformer2DModel"], "checkpoint_mapping_fn", narrow)


def written(family, folder, *, prefix=""):
    """A stand-in, and its student's transformer as one file in its authors' keys."""
    STAND_INS[family].write(folder)
    weights = load_file(folder / "student" / "transformer" / "diffusion_pytorch_model.safetensors")
    file = folder / "turbo.safetensors"
    save_file({prefix + name: value for name, value in AUTHORS[family](weights).items()}, file)
    return file, weights


def told_guidance(folder):
    """The teacher's transformer as FLUX.1-dev's is."""
    old = FluxTransformer2DModel.from_pretrained(folder / "teacher" / "transformer")
    dev = FluxTransformer2DModel.from_config(old.config, guidance_embeds=True)
    dev.load_state_dict(old.state_dict(), strict=False)
    dev.save_pretrained(folder / "teacher" / "transformer")


def same(found, expected):
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], value) for name, value in expected.items())


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
@pytest.mark.parametrize("family", ["flux", "z_image"])
def test_a_transformer_s_file(family, prefix, tmp_path, narrow_flux):
    file, weights = written(family, tmp_path, prefix=prefix)
    assert student_form(family_class(family), file)[0] == "checkpoint"
    student = family_class(family).load(tmp_path / "teacher", file).student
    same(student.backbone.state_dict(), weights)


def test_schnell_has_a_teacher_that_is_told_guidance(tmp_path, narrow_flux):
    """FLUX.1-dev's config says guidance_embeds; a file without guidance_in is of a network that has none."""
    file, weights = written("flux", tmp_path)
    told_guidance(tmp_path)
    family = family_class("flux").load(tmp_path / "teacher", file)
    same(family.student.backbone.state_dict(), weights)
    assert (family.student.backbone.config.guidance_embeds, family.max_words) == (False, 256)
    assert family.teacher.backbone.config.guidance_embeds


def test_what_is_missing_of_such_a_file_is_told(tmp_path, narrow_flux):
    file, _ = written("z_image", tmp_path)
    cut = load_file(file)
    del cut["cap_embedder.1.bias"]
    save_file(cut, file)
    with pytest.raises(BadInputError, match="does not fit the teacher .*: some weights of such a network are missing"):
        family_class("z_image").load(tmp_path / "teacher", file)


@pytest.mark.parametrize(
    ("family", "name", "form"),
    [
        ("sd3", "joint_blocks.0.x_block.attn.qkv.weight", "checkpoint"),
        ("sd3", "transformer_blocks.0.attn.to_q.weight", "weights"),
        ("sana", "blocks.0.attn.qkv.weight", "checkpoint"),
        ("sana", "transformer_blocks.0.attn1.to_q.weight", "weights"),
        ("flux", "single_transformer_blocks.0.proj_mlp.weight", "weights"),
        ("z_image", "layers.0.attention.to_q.weight", "weights"),
    ],
)
def test_whose_keys_they_are(family, name, form, tmp_path):
    save_file({name: torch.zeros(1)}, tmp_path / "x.safetensors")
    assert student_form(family_class(family), tmp_path / "x.safetensors")[0] == form


def test_a_family_that_diffusers_reads_no_such_file_of(tmp_path):
    STAND_INS["pixart_alpha"].write(tmp_path)
    save_file({"model.diffusion_model.x_embedder.proj.weight": torch.zeros(1)}, tmp_path / "x.safetensors")
    with pytest.raises(
        BadInputError, match="in its authors' keys, which diffusers does not read for the family pixart"
    ):
        family_class("pixart_alpha").load(tmp_path / "teacher", tmp_path / "x.safetensors")


def test_a_card_reads_schnell_s_file_too(tmp_path, narrow_flux, jdmctl_command, monkeypatch):
    """Plain diffusers, given dev's config, has to be told what the file has otherwise."""
    file, _ = written("flux", tmp_path)
    told_guidance(tmp_path)
    model = {"family": "flux", "teacher": str(tmp_path / "teacher"), "student": str(file)}
    run = finished_run(tmp_path / "run", file, "lora", (), model)
    run_plain_here(monkeypatch)
    code, text, error = jdmctl_command("export", run, "-o", tmp_path / "out", "--json")
    assert code == 0, error
    assert json.loads(text)["largest_difference"]["folders"] <= 1 / 255
    assert ", guidance_embeds=False)" in (tmp_path / "out" / "README.md").read_text()
