"""Published reward checkpoints: every name at its full size, and the same numbers as the code they come from."""

import json

import pytest
import torch
from published_checkpoints import (
    IMAGEREWARD,
    VIT_H_14,
    aesthetic_shapes,
    imagereward_score,
    imagereward_shapes,
    on_meta,
    open_clip_features,
    open_clip_shapes,
    random_state,
)
from reward_folders import IMAGEREWARD as TINY_CONFIG
from reward_folders import clip_tokenizer, write_bert_tokenizer
from safetensors.torch import load_file, save_file
from transformers import CLIPConfig, CLIPModel

from jdmctl.errors import BadInputError, MissingWeightsError
from jdmctl.rewards import convert
from jdmctl.rewards.blip import to_imagereward_network
from jdmctl.rewards.convert import read_checkpoint, shapes_of_imagereward, tokenizer_for
from jdmctl.rewards.hps import HPS
from jdmctl.rewards.imagereward import RELEASED, ImageReward, ImageRewardNetwork
from jdmctl.rewards.open_clip import clip_config, to_clip_model

TINY_CLIP = {"width": 24, "layers": 2, "heads": 3, "patch": 8, "px": 32, "dimensions": 20,
             "text_width": 16, "text_layers": 2, "text_heads": 2, "vocabulary": 50, "context": 12}  # fmt: skip
TINY_BLIP = {"width": 24, "layers": 2, "patch": 8, "px": 32, "text_width": 16, "text_layers": 2,
             "vocabulary": 40, "context": 16}  # fmt: skip


def shapes_of(state):
    return {name: tuple(value.shape) for name, value in state.items()}


# HPSv2


def test_hps_at_full_size_fills_a_clip_model():
    renamed, unknown = to_clip_model(on_meta(open_clip_shapes(VIT_H_14)))
    config = clip_config(convert.VIT_H_14)
    assert not unknown and config["vision_config"]["image_size"] == 224
    with torch.device("meta"):
        model = CLIPModel(CLIPConfig(**{key: config[key] for key in ("vision_config", "text_config")},
                                     projection_dim=config["projection_dim"]))  # fmt: skip
    assert shapes_of(renamed) == shapes_of(model.state_dict())


def test_the_names_are_those_of_open_clip():
    """Where open_clip itself is installed."""
    open_clip = pytest.importorskip("open_clip")
    model = open_clip.create_model("ViT-H-14", pretrained=None, device="meta")
    assert shapes_of(model.state_dict()) == open_clip_shapes(VIT_H_14)


def test_hps_gives_open_clips_numbers():
    """Two pictures and two texts, the second shorter, through both sets of names."""
    state = random_state(open_clip_shapes(TINY_CLIP))
    renamed, _ = to_clip_model(state)
    config = clip_config(TINY_CLIP)
    model = CLIPModel(CLIPConfig(**{key: config[key] for key in ("vision_config", "text_config")},
                                 projection_dim=config["projection_dim"])).eval()  # fmt: skip
    model.load_state_dict(renamed)
    pixels = torch.randn(2, 3, 32, 32)
    tokens = torch.tensor([[48, 3, 9, 11, 30, 49], [48, 5, 49, 0, 0, 0]])
    with torch.no_grad():
        picture, text = open_clip_features(state, pixels, tokens, 3, 2)
        output = model(pixel_values=pixels, input_ids=tokens)
    torch.testing.assert_close(output.image_embeds, picture, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(output.text_embeds, text, atol=1e-5, rtol=1e-4)


# ImageReward


def test_imagereward_at_full_size_fills_the_network():
    renamed, unknown = to_imagereward_network(on_meta(imagereward_shapes(IMAGEREWARD)))
    assert not unknown
    assert shapes_of(renamed) == {name: tuple(shape) for name, shape in shapes_of_imagereward(RELEASED).items()}


def test_imagereward_gives_its_own_numbers():
    """Two pictures and two captions, one of them padded."""
    state = random_state(imagereward_shapes(TINY_BLIP))
    renamed, _ = to_imagereward_network(state)
    network = ImageRewardNetwork(TINY_CONFIG).eval()
    network.load_state_dict(renamed)
    pixels = torch.randn(2, 3, 32, 32)
    tokens = torch.tensor([[2, 7, 8, 9, 3, 0], [2, 11, 3, 0, 0, 0]])
    attention = (tokens != 0).long()
    with torch.no_grad():
        expected = imagereward_score(state, pixels, tokens, attention, 2, 2, mean=0.25, std=2.0)
        torch.testing.assert_close(network(pixels, tokens, attention), expected, atol=1e-4, rtol=1e-3)


# The command


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_an_aesthetic_predictor(jdmctl_command, tmp_path, suffix):
    state = random_state(aesthetic_shapes(16))
    file = tmp_path / f"predictor{suffix}"
    torch.save(state, file) if suffix == ".pt" else save_file(state, file)
    code, out, _ = jdmctl_command("reward", "convert", file, tmp_path / "head", "--json")
    assert code == 0 and json.loads(out)["reward"] == "aesthetic"
    written = load_file(tmp_path / "head" / "model.safetensors")
    assert all(torch.equal(written[name], state[name]) for name in state) and written.keys() == state.keys()
    code, _, err = jdmctl_command("reward", "convert", file, tmp_path / "head")
    assert code == 1 and "is already there" in err


def test_hps_becomes_a_folder_that_the_reward_loads(jdmctl_command, tmp_path, monkeypatch):
    """A checkpoint in the form of HPSv2's: a pickle with a state_dict in it."""
    tokens = clip_tokenizer()
    tokens.save_pretrained(tmp_path / "tokens")
    size = TINY_CLIP | {"vocabulary": len(tokens)}
    monkeypatch.setattr(convert, "VIT_H_14", size)
    state = random_state(open_clip_shapes(size))
    torch.save({"epoch": 3, "state_dict": {name: value.half() for name, value in state.items()}}, tmp_path / "HPS.pt")
    command = ("reward", "convert", tmp_path / "HPS.pt", tmp_path / "hps", "--tokenizer", tmp_path / "tokens")
    code, out, err = jdmctl_command(*command)
    assert (code, out) == (0, f"hps: {tmp_path / 'hps'}\n"), err
    reward = HPS(str(tmp_path / "hps"))
    image = torch.rand(2, 3, 32, 32)
    values = reward(image, ["a red cone", "a blue torus"])
    ids = tokens(["a red cone", "a blue torus"], return_tensors="pt").input_ids
    half = {name: value.half().float() for name, value in state.items()}
    picture, text = open_clip_features(half, reward.encoder.preprocessing(image), ids, 3, 2)
    torch.testing.assert_close(values, 100 * (picture * text).sum(1), atol=1e-3, rtol=1e-4)


def test_imagereward_becomes_a_folder_that_the_reward_loads(jdmctl_command, tmp_path, monkeypatch):
    monkeypatch.setattr(convert, "RELEASED", TINY_CONFIG)
    torch.save(random_state(imagereward_shapes(TINY_BLIP)), tmp_path / "ImageReward.pt")
    write_bert_tokenizer(tmp_path / "tokens")
    command = ("reward", "convert", tmp_path / "ImageReward.pt", tmp_path / "ir", "--tokenizer", tmp_path / "tokens")
    assert jdmctl_command(*command)[0] == 0
    values = ImageReward(str(tmp_path / "ir"))(torch.rand(2, 3, 40, 40), ["a red cone", "a blue torus"])
    assert values.isfinite().all()


class Trap:
    def __reduce__(self):
        return print, ("opened",)


def test_what_cannot_be_converted(tmp_path, monkeypatch, capsys):
    with pytest.raises(BadInputError, match="no file"):
        read_checkpoint(tmp_path / "absent.pt")
    torch.save({"weight": Trap()}, tmp_path / "trap.pt")
    with pytest.raises(MissingWeightsError, match="holds more than weights"):
        read_checkpoint(tmp_path / "trap.pt")
    assert "opened" not in capsys.readouterr().out
    torch.save({"a": torch.zeros(1)}, tmp_path / "other.pt")
    with pytest.raises(BadInputError, match="the weights of no reward that is known: a ..."):
        read_checkpoint(tmp_path / "other.pt")
    torch.save([torch.zeros(1)], tmp_path / "list.pt")
    with pytest.raises(BadInputError, match="is no dictionary of weights"):
        read_checkpoint(tmp_path / "list.pt")
    torch.save({0: torch.zeros(1)}, tmp_path / "numbered.pt")
    with pytest.raises(BadInputError, match="is no dictionary of weights"):
        read_checkpoint(tmp_path / "numbered.pt")
    monkeypatch.setattr(convert, "VIT_H_14", TINY_CLIP)
    state = random_state(open_clip_shapes(TINY_CLIP))
    state["surplus"] = state.pop("ln_final.bias")
    torch.save(state, tmp_path / "half.pt")
    with pytest.raises(BadInputError, match="2 weights differ") as caught:
        read_checkpoint(tmp_path / "half.pt")
    assert "surplus is not known" in str(caught.value) and "final_layer_norm.bias is missing" in str(caught.value)


@pytest.mark.parametrize(
    "other",
    [{"width": 32}, {"text_width": 24}, {"layers": 1}, {"text_layers": 3}, {"px": 40}, {"patch": 4}],
)
def test_a_clip_of_another_size_is_no_hps(tmp_path, monkeypatch, other):
    """No shape tells how many heads it has, or which GELU: OpenAI's ViT-L-14 has other ones of both."""
    monkeypatch.setattr(convert, "VIT_H_14", TINY_CLIP)
    save_file(random_state(open_clip_shapes(TINY_CLIP | other)), tmp_path / "other.safetensors")
    with pytest.raises(BadInputError, match="is not the hps that is known") as caught:
        read_checkpoint(tmp_path / "other.safetensors")
    assert "only the released ViT-H-14 of HPSv2" in caught.value.hint


def test_half_a_clip_is_no_hps(tmp_path):
    """Against the real sizes: the picture's half alone, one of its matrices cut."""
    state = random_state(open_clip_shapes(TINY_CLIP))
    state = {name: value for name, value in state.items() if name.startswith("visual.")}
    state["visual.transformer.resblocks.0.attn.in_proj_bias"] = torch.zeros(7)
    save_file(state, tmp_path / "half.safetensors")
    with pytest.raises(BadInputError, match=r"the hps that is known; \d+ weights differ"):
        read_checkpoint(tmp_path / "half.safetensors")


def test_a_damaged_pickle_is_a_sentence(tmp_path):
    """Cut anywhere, in either of torch's formats."""
    for number, zipped in enumerate((False, True)):
        torch.save(random_state(aesthetic_shapes(4)), tmp_path / "whole.pt", _use_new_zipfile_serialization=zipped)
        content = (tmp_path / "whole.pt").read_bytes()
        for length in (*range(0, 40, 3), len(content) // 2, len(content) - 1):
            (tmp_path / f"{number}.pt").write_bytes(content[:length])
            with pytest.raises(MissingWeightsError, match=r"or is damaged: not opened \(.+\)"):
                read_checkpoint(tmp_path / f"{number}.pt")


def test_a_tokenizer_with_more_words_than_the_weights(tmp_path, monkeypatch):
    monkeypatch.setattr(convert, "RELEASED", TINY_CONFIG)
    torch.save(random_state(imagereward_shapes(TINY_BLIP)), tmp_path / "ImageReward.pt")
    clip_tokenizer().save_pretrained(tmp_path / "tokens")
    with pytest.raises(BadInputError, match="words, the weights have 40"):
        tokenizer_for(read_checkpoint(tmp_path / "ImageReward.pt"), str(tmp_path / "tokens"))
