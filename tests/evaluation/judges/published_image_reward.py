"""ImageReward's published file: names and shapes, a tiny one with random weights, a forward pass from them.

The pass uses the published names and nothing of transformers, so it checks the conversion and the network.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from amortized.evaluation.judges.convert_image_reward import convert
from amortized.evaluation.judges.image_reward import ImageRewardConfig

WORDS = "a red blue green cube ball cone on the of big small ##s ##ed hat , . '".split()
VOCABULARY = ["[PAD]", "[unused0]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
TINY = ImageRewardConfig(
    image_size=32,
    vision_width=16,
    vision_hidden=32,
    vision_layers=2,
    vision_heads=4,
    vocabulary=len(VOCABULARY) + 2,
    text_width=24,
    text_hidden=48,
    text_layers=2,
    text_heads=4,
    text_positions=40,
    head=(20, 12, 8, 4),
)
CONTRASTIVE = 256  # width of BLIP's projections, which ImageReward does not use
HEAD = (0, 2, 4, 6, 7)  # the layers with weights among mlp.layers, which has dropout after the first three


def linear(name: str, out: int, into: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (out, into), f"{name}.bias": (out,)}


def norm(name: str, width: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def published_shapes(config: ImageRewardConfig) -> dict[str, tuple[int, ...]]:
    """All tensors of the published file."""
    width, text, patch = config.vision_width, config.text_width, config.patch_size
    see, read = "blip.visual_encoder", "blip.text_encoder"
    tokens = (config.image_size // patch) ** 2 + 1
    shapes = {f"{see}.cls_token": (1, 1, width), f"{see}.pos_embed": (1, tokens, width)}
    shapes |= {f"{see}.patch_embed.proj.weight": (width, 3, patch, patch)}
    shapes |= {f"{see}.patch_embed.proj.bias": (width,)} | norm(f"{see}.norm", width)
    for i in range(config.vision_layers):
        block = f"{see}.blocks.{i}"
        shapes |= norm(f"{block}.norm1", width) | norm(f"{block}.norm2", width)
        shapes |= linear(f"{block}.attn.qkv", 3 * width, width) | linear(f"{block}.attn.proj", width, width)
        shapes |= linear(f"{block}.mlp.fc1", config.vision_hidden, width)
        shapes |= linear(f"{block}.mlp.fc2", width, config.vision_hidden)
    shapes |= {f"{read}.embeddings.position_ids": (1, config.text_positions)}
    shapes |= {f"{read}.embeddings.word_embeddings.weight": (config.vocabulary, text)}
    shapes |= {f"{read}.embeddings.position_embeddings.weight": (config.text_positions, text)}
    shapes |= norm(f"{read}.embeddings.LayerNorm", text)
    for i in range(config.text_layers):
        layer = f"{read}.encoder.layer.{i}"
        for attention, source in (("attention", text), ("crossattention", width)):
            shapes |= linear(f"{layer}.{attention}.self.query", text, text)
            shapes |= linear(f"{layer}.{attention}.self.key", text, source)
            shapes |= linear(f"{layer}.{attention}.self.value", text, source)
            shapes |= linear(f"{layer}.{attention}.output.dense", text, text)
            shapes |= norm(f"{layer}.{attention}.output.LayerNorm", text)
        shapes |= linear(f"{layer}.intermediate.dense", config.text_hidden, text)
        shapes |= linear(f"{layer}.output.dense", text, config.text_hidden)
        shapes |= norm(f"{layer}.output.LayerNorm", text)
    shapes |= linear("blip.vision_proj", CONTRASTIVE, width) | linear("blip.text_proj", CONTRASTIVE, text)
    widths = (text, *config.head, 1)
    for number, into, out in zip(HEAD, widths[:-1], widths[1:], strict=True):
        shapes |= linear(f"mlp.layers.{number}", out, into)
    return shapes


def random_state(config: ImageRewardConfig = TINY, seed: int = 0) -> dict[str, Tensor]:
    """Weights that make every part matter: the reward changes with each of them."""
    rng = torch.Generator().manual_seed(seed)
    state = {}
    for name, shape in published_shapes(config).items():
        scale = 1.0 if len(shape) < 2 or "embed" in name else 1.5 / shape[-1] ** 0.5
        state[name] = scale * torch.randn(shape, generator=rng)
        if "orm" in name and name.endswith("weight"):
            state[name] = 1 + 0.3 * state[name]
    state["blip.text_encoder.embeddings.position_ids"] = torch.arange(config.text_positions)[None]
    return state


def make_folder(folder: Path, config: ImageRewardConfig = TINY, seed: int = 0) -> Path:
    """A judge's folder, converted from a tiny published file."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    file, vocabulary = folder.with_name("ImageReward.pt"), folder.with_name("vocab.txt")
    torch.save(random_state(config, seed), file)
    vocabulary.write_text("\n".join(VOCABULARY) + "\n", encoding="utf-8")
    convert(file, folder, vocabulary, config)
    return folder


# ---- the forward pass -----------------------------------------------------------------------------


def attend(query: Tensor, key: Tensor, value: Tensor, heads: int, mask: Tensor | None = None) -> Tensor:
    """Attention [N, L, D] of queries [N, L, D]; `mask` [N, T] has 0 at keys that nobody sees."""

    def split(x: Tensor) -> Tensor:
        return x.reshape(*x.shape[:2], heads, -1).transpose(1, 2)

    query, key, value = split(query), split(key), split(value)
    scores = query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5
    if mask is not None:
        scores = scores.masked_fill(mask[:, None, None] == 0, float("-inf"))
    return (scores.softmax(-1) @ value).transpose(1, 2).flatten(2)


def reward_of(state: dict[str, Tensor], config: ImageRewardConfig, pixels: Tensor, ids: Tensor, mask: Tensor):
    """Standardized rewards [N] of pixels [N, 3, H, W] and token ids [N, L]."""

    def dense(name: str, x: Tensor) -> Tensor:
        return F.linear(x, state[f"{name}.weight"], state[f"{name}.bias"])

    def normed(name: str, x: Tensor, eps: float) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"], eps)

    see, read = "blip.visual_encoder", "blip.text_encoder"
    proj = f"{see}.patch_embed.proj"
    x = F.conv2d(pixels, state[f"{proj}.weight"], state[f"{proj}.bias"], stride=config.patch_size)
    x = torch.cat([state[f"{see}.cls_token"].expand(len(x), -1, -1), x.flatten(2).transpose(1, 2)], 1)
    x = x + state[f"{see}.pos_embed"]
    for i in range(config.vision_layers):
        block = f"{see}.blocks.{i}"
        qkv = dense(f"{block}.attn.qkv", normed(f"{block}.norm1", x, 1e-6)).chunk(3, dim=-1)
        x = x + dense(f"{block}.attn.proj", attend(*qkv, config.vision_heads))
        hidden = dense(f"{block}.mlp.fc1", normed(f"{block}.norm2", x, 1e-6))
        x = x + dense(f"{block}.mlp.fc2", F.gelu(hidden))
    image = normed(f"{see}.norm", x, 1e-6)

    embeddings = f"{read}.embeddings"
    y = state[f"{embeddings}.word_embeddings.weight"][ids]
    y = y + state[f"{embeddings}.position_embeddings.weight"][: ids.shape[1]]
    y = normed(f"{embeddings}.LayerNorm", y, 1e-12)
    for i in range(config.text_layers):
        layer = f"{read}.encoder.layer.{i}"
        for name, source, hidden_from in (("attention", y, mask), ("crossattention", image, None)):
            own = f"{layer}.{name}"
            source = y if name == "attention" else source
            parts = [dense(f"{own}.self.query", y)]
            parts += [dense(f"{own}.self.{part}", source) for part in ("key", "value")]
            seen = dense(f"{own}.output.dense", attend(*parts, config.text_heads, hidden_from))
            y = normed(f"{own}.output.LayerNorm", seen + y, 1e-12)
        hidden = F.gelu(dense(f"{layer}.intermediate.dense", y))
        y = normed(f"{layer}.output.LayerNorm", dense(f"{layer}.output.dense", hidden) + y, 1e-12)
    z = y[:, 0]
    for number in HEAD:
        z = dense(f"mlp.layers.{number}", z)
    return (z[:, 0] - config.reward_mean) / config.reward_std
