"""What the switches of a recipe's memory section do to a run, on the random world; tests/test_family_contract.py has
frozen halves, checkpoints and a shared backbone for every family."""

from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderTiny
from torch import nn

from jdmctl.build import build_controls, build_jdm_step, build_roles, prepare_student
from jdmctl.build_run import build_run
from jdmctl.errors import JdmError
from jdmctl.families.codec import LatentCodec
from jdmctl.families.low_precision import hold
from jdmctl.families.stable_diffusion import StableDiffusion
from jdmctl.recipe_files import load_recipe
from jdmctl.training.prompts import PromptCache
from jdmctl.training.run import make_accelerator

PROMPTS = ["a red cone", "a blue cube on a tan floor"]


def tiny_autoencoder(folder, **options):
    """For the random world's latents: 4 channels, a quarter of a picture's side."""
    torch.manual_seed(0)
    shape = {"encoder_block_out_channels": (4,) * 3, "decoder_block_out_channels": (4,) * 3}
    blocks = {"num_encoder_blocks": (1,) * 3, "num_decoder_blocks": (1,) * 3}
    AutoencoderTiny(**{**shape, **blocks, **options}).save_pretrained(folder)
    return folder


@pytest.fixture
def family(tiny_folders):
    return StableDiffusion.load(*tiny_folders)


@pytest.mark.parametrize("layer", [nn.Linear(6, 4), nn.Conv2d(6, 4, 3), nn.Conv1d(6, 4, 1)], ids=str)
def test_a_held_layer_rounds_its_weight_and_nothing_else(layer):
    """To the bit: outside autocast the float32 layer with a rounded weight, within what autocast makes of it anyway."""
    torch.manual_seed(0)
    x = torch.randn({nn.Linear: (2, 6), nn.Conv1d: (2, 6, 5), nn.Conv2d: (2, 6, 5, 5)}[type(layer)])
    layer.requires_grad_(False)
    with torch.autocast("cpu", torch.bfloat16):
        within = layer(x)
    rounded = layer.weight.bfloat16().float()
    outside = torch.func.functional_call(layer, {"weight": rounded, "bias": layer.bias}, (x,))
    hold([layer], torch.bfloat16)
    assert layer.weight.dtype == torch.bfloat16 and layer.bias.dtype == torch.float32
    assert torch.equal(layer(x), outside)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(layer(x), within)


def test_a_weight_that_two_layers_share_stays_one():
    one, other = nn.Linear(3, 3).requires_grad_(False), nn.Linear(3, 3).requires_grad_(False)
    other.weight = one.weight
    hold([one, other], torch.float16)
    assert one.weight is other.weight and one.weight.dtype == torch.float16


def test_energies_see_pictures_by_the_tiny_decoder_and_nobody_else_does(in_tiny_world, tmp_path):
    folder = tiny_autoencoder(tmp_path / "decoder")
    recipe = load_recipe("tiny/canny", ["fake_score.rank=2", f"memory.decoder={folder}"])
    family = build_roles(recipe, "cpu")
    prepare_student(recipe, family)
    step = build_jdm_step(recipe, family, build_controls(recipe, "cpu"))
    latent, image = torch.randn(2, *family.latent_shape), torch.rand(2, 3, 64, 64)
    theirs = AutoencoderTiny.from_pretrained(folder).decode(latent).sample / 2 + 0.5  # told latents as they are
    assert torch.equal(step.codec.decode(latent), theirs)
    assert torch.equal(step.codec.encode(image), family.codec.encode(image))
    assert (family.codec.decode(latent) - theirs).abs().max() > 0.1


def test_a_decoder_for_other_latents_is_refused(family, tmp_path):
    with pytest.raises(JdmError, match="latents of 16 channels and 1/4"):
        family.quick_codec(tiny_autoencoder(tmp_path / "other", latent_channels=16))


def test_only_a_lora_can_share_its_teacher_s_weights(tiny_folders):
    with pytest.raises(JdmError, match="is no LoRA"):
        StableDiffusion.load(*tiny_folders, share_backbone=True)


def test_prompts_are_encoded_once_and_as_by_the_encoders(family, tmp_path):
    """Alone or in a batch makes no difference beyond rounding; what is on disk is not encoded again."""
    asked = []

    def encode(texts):
        asked.extend(texts)
        return family.encode_prompt(texts)

    PromptCache(tmp_path, encode, "cpu").fill(PROMPTS)
    again = PromptCache(tmp_path, encode, "cpu")
    asked.clear()
    assert (again(PROMPTS) - family.encode_prompt(PROMPTS)).abs().max() < 1e-5
    assert asked == []
    with torch.no_grad():
        next(family.text_encoders[0].parameters()).normal_()
    assert (PromptCache(tmp_path, encode, "cpu")(PROMPTS) - again(PROMPTS)).abs().max() > 1e-3


def test_prompts_of_different_lengths_are_padded_with_zeros(tmp_path):
    """One token for each word, of as many ones."""

    def encode(texts):
        (text,) = texts
        words = torch.ones(1, len(text.split()), 2)
        return {"words": words, "mask": words[..., 0].long()}

    found = PromptCache(tmp_path, encode, "cpu")(["one", "two three four"])
    assert found["mask"].tolist() == [[1, 0, 0], [1, 1, 1]]
    assert found["words"].sum((1, 2)).tolist() == [2, 6]


def test_prompts_from_a_cache_leave_the_encoders_unasked(family, tmp_path):
    cache, empty = PromptCache(tmp_path, family.encode_prompt, "cpu"), family.empty_prompt(1)
    cache.fill(["", *PROMPTS])
    prompt = cache(PROMPTS)
    family.use_prompts(cache, empty)
    family.parts["text_encoder"] = None
    assert torch.equal(family.encode_prompt(PROMPTS), prompt)
    assert torch.equal(family.empty_prompt(2)[1], empty[0])
    assert family.multistep(torch.randn(2, *family.latent_shape), prompt, 2, 2.0).isfinite().all()


def test_latents_are_encoded_once(in_tiny_world, monkeypatch):
    """A second run encodes nothing and sees the same bits; those of a batch are the encoder's own up to rounding."""
    few = ["data.num_samples=4", "data.num_validation_samples=4", "training.batch_size=4", "memory.cache_latents=true"]
    recipe, accelerator = load_recipe("tiny/softedge", [*few, "method=dsm"]), make_accelerator("cpu", "bf16")

    def latents():
        run = build_run(recipe, accelerator)
        codec, batch = run.stages[-1].step.codec, run.batches.batch("dsm", 0)
        with accelerator.autocast():
            return codec, batch.images, codec.encode(batch.images)

    codec, images, first = latents()
    with torch.no_grad():
        assert (LatentCodec(codec.vae).encode(images) - first).abs().max() < 1e-4
    asked = []
    encode = LatentCodec.encode
    monkeypatch.setattr(LatentCodec, "encode", lambda self, image: asked.append(len(image)) or encode(self, image))
    assert torch.equal(latents()[2], first)
    assert asked == [1]  # the ramp that tells which encoder it is


def test_drawings_are_measured_and_their_latents_not_kept(in_tiny_world):
    """Each validation draws others: kept, they would fill the disk."""
    few = ["data.source=prompts", "data.path=prompts.txt", "memory.cache_latents=true", "training.teacher_steps=1"]
    Path("prompts.txt").write_text("\n".join(f"picture {number}" for number in range(16)))
    run = build_run(load_recipe("tiny/distill", few), make_accelerator("cpu", "fp32"))
    assert run.validation.measure()["frechet"] > 0
    assert len(list((in_tiny_world / "cache" / "latents").rglob("*.npz"))) == 0
    run.stages[-1].step.codec.encode(torch.rand(1, 3, 64, 64))
    assert len(list((in_tiny_world / "cache" / "latents").rglob("*.npz"))) == 1


@pytest.mark.parametrize("changes", [["student.trainable=lora"], ["student.trainable=full"]])
def test_a_student_that_is_trained_shares_nothing(changes):
    with pytest.raises(JdmError, match="memory.share_backbone is for a frozen student"):
        load_recipe("tiny/canny", ["memory.share_backbone=true", *changes])
