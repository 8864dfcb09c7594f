"""The published reward checkpoints without their weights: names, shapes, and what their own code computes.

Written from public definitions: open_clip's ViT, BLIP's vit.py and med.py, ImageReward.py. All of it plain
functions of a state_dict, so that nothing here shares code with what is tested.
"""

import torch
from torch.nn import functional as F

VIT_H_14 = {"width": 1280, "layers": 32, "patch": 14, "px": 224, "dimensions": 1024,
            "text_width": 1024, "text_layers": 24, "vocabulary": 49408, "context": 77}  # fmt: skip
IMAGEREWARD = {"width": 1024, "layers": 24, "patch": 16, "px": 224, "text_width": 768, "text_layers": 12,
               "vocabulary": 30524, "context": 512}  # fmt: skip


def open_clip_shapes(size):
    """Name -> shape of an open_clip model, such as the state_dict in HPS_v2.1_compressed.pt."""
    width, text = size["width"], size["text_width"]
    shapes = {
        "positional_embedding": (size["context"], text),
        "text_projection": (text, size["dimensions"]),
        "logit_scale": (),
        "visual.class_embedding": (width,),
        "visual.positional_embedding": ((size["px"] // size["patch"]) ** 2 + 1, width),
        "visual.proj": (width, size["dimensions"]),
        "visual.conv1.weight": (width, 3, size["patch"], size["patch"]),
        "token_embedding.weight": (size["vocabulary"], text),
    }
    for norm, wide in (("visual.ln_pre", width), ("visual.ln_post", width), ("ln_final", text)):
        shapes |= _linear(norm, wide)
    for prefix, wide, layers in (("visual.", width, size["layers"]), ("", text, size["text_layers"])):
        for layer in range(layers):
            block = f"{prefix}transformer.resblocks.{layer}."
            shapes |= {f"{block}attn.in_proj_weight": (3 * wide, wide), f"{block}attn.in_proj_bias": (3 * wide,)}
            shapes |= _linear(f"{block}attn.out_proj", wide, wide)
            shapes |= _linear(f"{block}mlp.c_fc", 4 * wide, wide) | _linear(f"{block}mlp.c_proj", wide, 4 * wide)
            shapes |= _linear(f"{block}ln_1", wide) | _linear(f"{block}ln_2", wide)
    return shapes


def imagereward_shapes(size):
    """Name -> shape of ImageReward.pt."""
    width, text, vision = size["width"], size["text_width"], "blip.visual_encoder."
    shapes = {
        f"{vision}cls_token": (1, 1, width),
        f"{vision}pos_embed": (1, (size["px"] // size["patch"]) ** 2 + 1, width),
        f"{vision}patch_embed.proj.weight": (width, 3, size["patch"], size["patch"]),
        f"{vision}patch_embed.proj.bias": (width,),
        "blip.text_encoder.embeddings.word_embeddings.weight": (size["vocabulary"], text),
        "blip.text_encoder.embeddings.position_embeddings.weight": (size["context"], text),
        "blip.text_encoder.embeddings.position_ids": (1, size["context"]),
    }
    shapes |= _linear(f"{vision}norm", width) | _linear("blip.text_encoder.embeddings.LayerNorm", text)
    shapes |= _linear("blip.vision_proj", 256, width) | _linear("blip.text_proj", 256, text)
    for layer in range(size["layers"]):
        block = f"{vision}blocks.{layer}."
        shapes |= _linear(f"{block}norm1", width) | _linear(f"{block}norm2", width)
        shapes |= _linear(f"{block}attn.qkv", 3 * width, width) | _linear(f"{block}attn.proj", width, width)
        shapes |= _linear(f"{block}mlp.fc1", 4 * width, width) | _linear(f"{block}mlp.fc2", width, 4 * width)
    for layer in range(size["text_layers"]):
        block = f"blip.text_encoder.encoder.layer.{layer}."
        for attention, keys in (("attention", text), ("crossattention", width)):
            shapes |= _linear(f"{block}{attention}.self.query", text, text)
            shapes |= _linear(f"{block}{attention}.self.key", text, keys)
            shapes |= _linear(f"{block}{attention}.self.value", text, keys)
            shapes |= _linear(f"{block}{attention}.output.dense", text, text)
            shapes |= _linear(f"{block}{attention}.output.LayerNorm", text)
        shapes |= _linear(f"{block}intermediate.dense", 4 * text, text)
        shapes |= _linear(f"{block}output.dense", text, 4 * text) | _linear(f"{block}output.LayerNorm", text)
    return shapes | aesthetic_shapes(text, "mlp.")


def aesthetic_shapes(width=768, prefix=""):
    """Name -> shape of sac+logos+ava1-l14-linearMSE.pth."""
    shapes, widths = {}, (width, 1024, 128, 64, 16, 1)
    for number, before, after in zip((0, 2, 4, 6, 7), widths, widths[1:], strict=False):
        shapes |= _linear(f"{prefix}layers.{number}", after, before)
    return shapes


def on_meta(shapes):
    return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}


def random_state(shapes, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {name: 0.2 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def open_clip_features(state, pixels, tokens, vision_heads, text_heads):
    """Unit vectors of pictures and texts, as open_clip's CLIP.forward."""
    x = F.conv2d(pixels, state["visual.conv1.weight"], stride=state["visual.conv1.weight"].shape[-1])
    x = x.flatten(2).transpose(1, 2)
    first = state["visual.class_embedding"].expand(len(x), 1, -1)
    x = _norm(state, "visual.ln_pre", torch.cat([first, x], 1) + state["visual.positional_embedding"], 1e-5)
    x = _resblocks(state, "visual.transformer.resblocks.", x, vision_heads)
    picture = _norm(state, "visual.ln_post", x[:, 0], 1e-5) @ state["visual.proj"]
    length = tokens.shape[1]
    x = state["token_embedding.weight"][tokens] + state["positional_embedding"][:length]
    mask = torch.full((length, length), -torch.inf).triu(1)
    x = _norm(state, "ln_final", _resblocks(state, "transformer.resblocks.", x, text_heads, mask), 1e-5)
    text = x[torch.arange(len(x)), tokens.argmax(1)] @ state["text_projection"]
    return F.normalize(picture, dim=-1), F.normalize(text, dim=-1)


def imagereward_score(state, pixels, tokens, attention, vision_heads, text_heads, mean, std):
    """ImageReward.score, from prepared pixels and tokens."""
    vision, text = "blip.visual_encoder.", "blip.text_encoder."
    proj = f"{vision}patch_embed.proj."
    x = F.conv2d(pixels, state[proj + "weight"], state[proj + "bias"], stride=state[proj + "weight"].shape[-1])
    x = torch.cat([state[f"{vision}cls_token"].expand(len(x), 1, -1), x.flatten(2).transpose(1, 2)], 1)
    x = x + state[f"{vision}pos_embed"]
    for layer in range(_count(state, f"{vision}blocks.")):
        block = f"{vision}blocks.{layer}."
        qkv = _apply(state, f"{block}attn.qkv", _norm(state, f"{block}norm1", x, 1e-6)).chunk(3, -1)
        x = x + _apply(state, f"{block}attn.proj", _attend(*qkv, vision_heads))
        hidden = F.gelu(_apply(state, f"{block}mlp.fc1", _norm(state, f"{block}norm2", x, 1e-6)))
        x = x + _apply(state, f"{block}mlp.fc2", hidden)
    seen = _norm(state, f"{vision}norm", x, 1e-6)
    places = state[f"{text}embeddings.position_embeddings.weight"][: tokens.shape[1]]
    x = state[f"{text}embeddings.word_embeddings.weight"][tokens] + places
    x = _norm(state, f"{text}embeddings.LayerNorm", x, 1e-12)
    mask = torch.where(attention.bool(), 0.0, -torch.inf)[:, None, None]
    for layer in range(_count(state, f"{text}encoder.layer.")):
        block = f"{text}encoder.layer.{layer}."
        for name, other, hidden_places in (("attention", None, mask), ("crossattention", seen, None)):
            source = x if other is None else other
            query = _apply(state, f"{block}{name}.self.query", x)
            key, value = (_apply(state, f"{block}{name}.self.{kind}", source) for kind in ("key", "value"))
            read = _apply(state, f"{block}{name}.output.dense", _attend(query, key, value, text_heads, hidden_places))
            x = _norm(state, f"{block}{name}.output.LayerNorm", read + x, 1e-12)
        hidden = _apply(state, f"{block}output.dense", F.gelu(_apply(state, f"{block}intermediate.dense", x)))
        x = _norm(state, f"{block}output.LayerNorm", hidden + x, 1e-12)
    score = x[:, 0]
    for number in (0, 2, 4, 6, 7):
        score = _apply(state, f"mlp.layers.{number}", score)
    return (score.squeeze(1) - mean) / std


def _resblocks(state, prefix, x, heads, mask=None):
    for layer in range(_count(state, prefix)):
        block = f"{prefix}{layer}."
        attention = torch.nn.MultiheadAttention(x.shape[-1], heads, batch_first=True)
        own = {name.removeprefix(f"{block}attn."): v for name, v in state.items() if name.startswith(f"{block}attn.")}
        attention.load_state_dict(own)
        normed = _norm(state, f"{block}ln_1", x, 1e-5)
        x = x + attention(normed, normed, normed, attn_mask=mask, need_weights=False)[0]
        hidden = F.gelu(_apply(state, f"{block}mlp.c_fc", _norm(state, f"{block}ln_2", x, 1e-5)))
        x = x + _apply(state, f"{block}mlp.c_proj", hidden)
    return x


def _attend(query, key, value, heads, mask=None):
    split = [x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (query, key, value)]
    scores = split[0] @ split[1].transpose(-1, -2) / split[0].shape[-1] ** 0.5
    weights = (scores if mask is None else scores + mask).softmax(-1)
    return (weights @ split[2]).transpose(1, 2).flatten(2)


def _apply(state, name, x):
    return F.linear(x, state[f"{name}.weight"], state[f"{name}.bias"])


def _norm(state, name, x, eps):
    return F.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"], eps)


def _linear(name, out, into=None):
    return {f"{name}.weight": (out,) if into is None else (out, into), f"{name}.bias": (out,)}


def _count(state, prefix):
    return len({name.removeprefix(prefix).partition(".")[0] for name in state if name.startswith(prefix)})
