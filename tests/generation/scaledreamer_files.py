"""State dicts with the names and shapes that ScaleDreamer's modules print, and random values."""

from __future__ import annotations

import torch
from torch import Tensor

Shapes = dict[str, tuple[int, ...]]
SPACE, TABLE = "geometry.space_generator.", "encoding.encoding.encoding.params"


def hyper_ingp(text: int = 1024, hyper: int = 64, hidden: int = 64) -> Shapes:
    """The sizes of hash tables are always the published ones."""
    shapes: Shapes = {f"geometry.{TABLE}": (12_599_920,), f"background.{TABLE}": (131_072,)}
    for part, outputs in (
        ("geometry", 2 * 32 * hidden + 4 * hidden),
        ("background", 32 * hidden + 3 * hidden),
    ):
        shapes |= {f"{part}.hypernet.layers.0.weight": (hyper, text)}
        shapes |= {f"{part}.hypernet.layers.1.{kind}": (hyper,) for kind in ("weight", "bias")}
        shapes |= {f"{part}.hypernet.layers.3.weight": (outputs, hyper)}
        shapes |= {f"{part}.hypernet.layers.3.bias": (outputs,)}
    return shapes | common()


def conv3d_net(
    width: float = 1,
    text: int = 1024,
    z: int = 64,
    style: int = 256,
    base: int = 512,
    features: int = 32,
    resolution: int = 128,
    hidden: tuple[int, ...] = (64,),
) -> Shapes:
    shapes: Shapes = {}
    for name, shape in {
        "layers.0": (style, z),
        "layers.1": (style, style),
        "embed": (style, style + text),
    }.items():
        shapes |= {f"{SPACE}mapping.{name}.weight": shape, f"{SPACE}mapping.{name}.bias": (style,)}
    shapes |= {f"{SPACE}mapping.w_avg": (style,), f"{SPACE}synthesis.first_block.const": (base, 4, 4, 4)}

    def conv(name: str, inputs: int, outputs: int, side: int) -> Shapes:
        return {
            f"{name}.affine.weight": (inputs, style),
            f"{name}.affine.bias": (inputs,),
            f"{name}.weight": (outputs, inputs, 3, 3, 3),
            f"{name}.bias": (outputs,),
            f"{name}.noise_strength": (1,),
            f"{name}.noise_const": (side, side, side),
        }

    def to_rgb(name: str, inputs: int) -> Shapes:
        sizes = {"affine.weight": (inputs, style), "affine.bias": (inputs,)}
        sizes |= {"weight": (features, inputs, 1, 1, 1), "bias": (features,)}
        return {f"{name}.{part}": shape for part, shape in sizes.items()}

    first = f"{SPACE}synthesis.first_block"
    shapes |= conv(f"{first}.conv1", base, base, 4) | to_rgb(f"{first}.torgb", base)
    side, before, number = 8, base, 0
    while side <= resolution:
        after = base if side <= 16 else int(base * width * 16 / side)
        block = f"{SPACE}synthesis.blocks.{number}"
        shapes |= conv(f"{block}.conv0", before, after, side) | conv(f"{block}.conv1", after, after, side)
        shapes |= to_rgb(f"{block}.torgb", after)
        shapes |= {f"{block}.const_bias": (after, side, side, side)} if side < resolution else {}
        side, before, number = 2 * side, after, number + 1
    return shapes | heads(features, hidden) | sphere() | common()


def triplane_transformer(
    text: int = 1024,
    width: int = 768,
    side: int = 32,
    layers: int = 12,
    channels: int = 32,
    hidden: tuple[int, ...] = (64, 64),
) -> Shapes:
    shapes: Shapes = {f"{SPACE}pos_embed": (1, 3 * side**2, width)}
    for layer in range(layers):
        name = f"{SPACE}layers.{layer}"
        for norm in ("norm1", "norm2", "norm3"):
            shapes |= {f"{name}.{norm}.{kind}": (width,) for kind in ("weight", "bias")}
        for attention, context in (("cross_attn", text), ("self_attn", width)):
            shapes |= {f"{name}.{attention}.to_q.weight": (width, width)}
            shapes |= {f"{name}.{attention}.to_{part}.weight": (width, context) for part in "kv"}
            shapes |= {f"{name}.{attention}.to_out.0.weight": (width, width)}
            shapes |= {f"{name}.{attention}.to_out.0.bias": (width,)}
        shapes |= {f"{name}.mlp.0.weight": (4 * width, width), f"{name}.mlp.0.bias": (4 * width,)}
        shapes |= {f"{name}.mlp.3.weight": (width, 4 * width), f"{name}.mlp.3.bias": (width,)}
    shapes |= {f"{SPACE}norm.{kind}": (width,) for kind in ("weight", "bias")}
    shapes |= {f"{SPACE}deconv.weight": (width, channels, 2, 2)}
    return shapes | heads(3 * channels, hidden) | sphere() | common()


def heads(features: int, hidden: tuple[int, ...]) -> Shapes:
    return mlp("geometry.sdf_network", (features, *hidden, 1)) | mlp(
        "geometry.feature_network", (features, *hidden, 3)
    )


def sphere() -> Shapes:
    """The background of spherical harmonics."""
    return {f"background.{TABLE}": (0,)} | mlp("background.network", (9, 16, 16, 3))


def mlp(name: str, widths: tuple[int, ...]) -> Shapes:
    return {f"{name}.layers.{2 * i}.weight": (widths[i + 1], widths[i]) for i in range(len(widths) - 1)}


def common() -> Shapes:
    return {"geometry.bbox": (2, 3), "renderer.bbox": (2, 3), "renderer.variance._inv_std": ()}


def state_of(shapes: Shapes, device: str = "cpu", seed: int = 0) -> dict[str, Tensor]:
    """Random values of such sizes that each part matters, no noise, the box [-2, 2] and sharpness 30."""
    random = torch.Generator().manual_seed(seed)
    state = {}
    for name, shape in shapes.items():
        if device == "meta":
            state[name] = torch.empty(shape, device="meta")
            continue
        scale = 1.0 if len(shape) < 2 or "synthesis" in name or "mapping" in name else shape[-1] ** -0.5
        value = scale * torch.randn(shape, generator=random)
        state[name] = value + (1 if "norm" in name and name.endswith("weight") else 0)
        if name.endswith("noise_strength"):
            state[name] = torch.zeros(shape)
    box = torch.tensor([[-2.0] * 3, [2.0] * 3])
    return state | {
        "geometry.bbox": box,
        "renderer.bbox": box.clone(),
        "renderer.variance._inv_std": torch.tensor(0.340119),
    }


SMALL = {
    "hyper-ingp": lambda: hyper_ingp(text=32, hyper=6, hidden=5),
    "3dconv-net": lambda: conv3d_net(
        1, text=32, z=5, style=6, base=4, features=3, resolution=32, hidden=(7,)
    ),
    "3dconv-net of width 2": lambda: conv3d_net(
        2, text=32, z=5, style=6, base=4, features=3, resolution=32, hidden=(7,)
    ),
    "triplane-transformer": lambda: triplane_transformer(
        text=32, width=32, side=3, layers=2, channels=4, hidden=(7, 5)
    ),
}
