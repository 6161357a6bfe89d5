"""The names of tensors in single-file checkpoints, as diffusers and transformers name them."""

from __future__ import annotations

import re

RESNET = {
    "in_layers.0.": "norm1.",
    "in_layers.2.": "conv1.",
    "emb_layers.1.": "time_emb_proj.",
    "out_layers.0.": "norm2.",
    "out_layers.3.": "conv2.",
    "skip_connection.": "conv_shortcut.",
}
OUTER = {
    "time_embed.0.": "time_embedding.linear_1.",
    "time_embed.2.": "time_embedding.linear_2.",
    "label_emb.0.0.": "add_embedding.linear_1.",
    "label_emb.0.2.": "add_embedding.linear_2.",
    "input_blocks.0.0.": "conv_in.",
    "middle_block.0.": "mid_block.resnets.0.",
    "middle_block.1.": "mid_block.attentions.0.",
    "middle_block.2.": "mid_block.resnets.1.",
    "out.0.": "conv_norm_out.",
    "out.2.": "conv_out.",
}
VAE = {
    ".mid.block_1.": ".mid_block.resnets.0.",
    ".mid.block_2.": ".mid_block.resnets.1.",
    ".mid.attn_1.norm.": ".mid_block.attentions.0.group_norm.",
    ".mid.attn_1.q.": ".mid_block.attentions.0.to_q.",
    ".mid.attn_1.k.": ".mid_block.attentions.0.to_k.",
    ".mid.attn_1.v.": ".mid_block.attentions.0.to_v.",
    ".mid.attn_1.proj_out.": ".mid_block.attentions.0.to_out.0.",
    ".norm_out.": ".conv_norm_out.",
    ".nin_shortcut.": ".conv_shortcut.",
    ".downsample.": ".downsamplers.0.",
    ".upsample.": ".upsamplers.0.",
}
OPEN_CLIP = {
    "token_embedding.": "embeddings.token_embedding.",
    "ln_final.": "final_layer_norm.",
    "transformer.resblocks.": "encoder.layers.",
}
OPEN_CLIP_LAYER = {
    ".ln_1.": ".layer_norm1.",
    ".ln_2.": ".layer_norm2.",
    ".attn.": ".self_attn.",
    ".mlp.c_fc.": ".mlp.fc1.",
    ".mlp.c_proj.": ".mlp.fc2.",
}


def unet_name(name: str, layers_per_block: int) -> str:
    """Return the name in UNet2DConditionModel of a tensor of CompVis' UNet; one of neither stays as it is."""
    for old, new in OUTER.items():
        if name.startswith(old):
            return _resnet(new + name.removeprefix(old))
    found = re.fullmatch(r"(input|output)_blocks\.(\d{1,4})\.([012])\.(.+)", name)
    if found is None:
        return name
    side, number, part, rest = found[1], int(found[2]), int(found[3]), found[4]
    block, layer = divmod(number - (side == "input"), layers_per_block + 1)
    group = f"{'down' if side == 'input' else 'up'}_blocks.{block}"
    is_last = layer == layers_per_block
    if is_last and side == "input" and part == 0 and rest.startswith("op."):
        return f"{group}.downsamplers.0.conv.{rest.removeprefix('op.')}"
    if is_last and side == "output" and part > 0 and rest.startswith("conv."):  # after an attention, if any
        return f"{group}.upsamplers.0.{rest}"
    if part == 2:
        return name
    return _resnet(f"{group}.{('resnets', 'attentions')[part]}.{layer}.{rest}")


def _resnet(name: str) -> str:
    if ".resnets." in name:
        for old, new in RESNET.items():
            name = name.replace(f".{old}", f".{new}")
    return name


def vae_name(name: str, num_blocks: int) -> str:
    """Return the name in AutoencoderKL of a tensor of CompVis' VAE; its decoder counts blocks backwards."""
    for old, new in VAE.items():
        name = name.replace(old, new)
    name = re.sub(r"^encoder\.down\.(\d+)\.(block\.)?", r"encoder.down_blocks.\1.\2", name)
    name = re.sub(
        r"^decoder\.up\.(\d{1,4})\.",
        lambda found: f"decoder.up_blocks.{num_blocks - 1 - int(found[1])}.",
        name,
    )
    return re.sub(r"^((?:en|de)coder\.\w+_blocks\.-?\d+)\.block\.", r"\1.resnets.", name)


def open_clip_name(name: str) -> str:
    """Return the name in CLIPTextModel of a tensor of open_clip's text model, without "text_model."."""
    if name == "positional_embedding":
        return "embeddings.position_embedding.weight"
    for old, new in OPEN_CLIP.items():
        if name.startswith(old):
            name = new + name.removeprefix(old)
    if name.startswith("encoder.layers."):
        for old, new in OPEN_CLIP_LAYER.items():
            name = name.replace(old, new)
    return name
