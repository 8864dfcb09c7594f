"""Feature networks of `--features`: whole, the same in each process, and reading captions as they were trained to."""

import json

import pytest
import torch
from reward_folders import PX, clip_tokenizer, write_clip, write_vit
from safetensors.torch import load_file, save_file
from transformers import (
    SiglipConfig,
    SiglipImageProcessorPil,
    SiglipModel,
    ViTImageProcessorPil,
    ViTMAEConfig,
    ViTMAEModel,
    ViTModel,
)

from jdmctl.errors import JdmError
from jdmctl.evaluation.extractors import load_features
from jdmctl.rewards.clip import Clip

IMAGES = torch.randint(256, (2, 3, PX, PX), generator=torch.Generator().manual_seed(0)) / 255
LONG = "a red cone on a tan floor behind a blue torus " * 3


def test_a_classifier_without_a_pooler_is_seen_by_its_last_hidden_states(tmp_path):
    """Transformers would make a pooler of random weights, another one in each process."""
    source = str(write_vit(tmp_path / "vit", preprocessor=True))
    one, other = load_features(source), load_features(source)
    found = one.features(IMAGES)
    assert torch.equal(found, other.features(IMAGES))
    pixels = ViTImageProcessorPil.from_pretrained(source)(list((IMAGES * 255).round().byte()), return_tensors="pt")
    network = ViTModel.from_pretrained(source, add_pooling_layer=False).eval()
    with torch.no_grad():
        torch.testing.assert_close(found.float(), network(**pixels).last_hidden_state.mean(1))
    assert one.name == f"vit {source}, mean of its last hidden states"


def test_weights_that_are_missing_are_not_made_up(tmp_path):
    file = write_vit(tmp_path / "vit", preprocessor=True) / "model.safetensors"
    weights = load_file(file)
    del weights["vit.layernorm.weight"]
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(JdmError, match="lacks 3 of the weights of a feature network: layernorm.weight, pooler"):
        load_features(str(file.parent))


def test_a_network_that_hides_parts_of_pictures_is_refused(tmp_path):
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    ViTMAEModel(ViTMAEConfig(**small, image_size=PX, patch_size=8)).save_pretrained(tmp_path)
    ViTImageProcessorPil(size={"height": PX, "width": PX}).save_pretrained(tmp_path)
    with pytest.raises(JdmError, match="holds a vit_mae, which looks at a random part of each picture"):
        load_features(str(tmp_path))


def without_a_length(folder):
    """The tokenizer does not say how much it takes."""
    file = folder / "tokenizer_config.json"
    settings = json.loads(file.read_text())
    settings.pop("model_max_length", None)
    file.write_text(json.dumps(settings))
    return str(folder)


def test_a_caption_s_score_by_siglip_does_not_depend_on_the_others(tmp_path):
    tokens = clip_tokenizer()
    width = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {**width, "vocab_size": len(tokens), "max_position_embeddings": 16, "projection_size": 16}
    vision = {**width, "image_size": PX, "patch_size": 8}
    SiglipModel(SiglipConfig(text_config=text, vision_config=vision)).save_pretrained(tmp_path)
    SiglipImageProcessorPil(size={"height": PX, "width": PX}).save_pretrained(tmp_path)
    tokens.save_pretrained(tmp_path)
    network = load_features(without_a_length(tmp_path))
    alone, beside = (network.prompt_scores(IMAGES[:n], ["a red cone", LONG][:n])[0].item() for n in (1, 2))
    assert alone == pytest.approx(beside, rel=1e-5)


def test_prompt_scores_are_what_the_reward_of_the_same_network_says(tmp_path):
    """Also of captions beyond the context, of a tokenizer that does not say how long it is."""
    source = without_a_length(write_clip(tmp_path))
    texts = ["a red cone", LONG]
    found = load_features(source).prompt_scores(IMAGES, texts)
    torch.testing.assert_close(found.float(), Clip(source)(IMAGES, texts), rtol=1e-4, atol=0)
