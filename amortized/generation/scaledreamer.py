"""The structure of a ScaleDreamer checkpoint, from its names and shapes.

What no shape says is that of the published runs: the levels of hash grids, the number of attention heads, the
radius of the initial sphere, the cameras.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from torch import Tensor

from amortized.cameras import CameraConfig
from generators import GeneratorConfig
from generators.conv3d import Conv3DConfig
from generators.environment import EnvironmentConfig, HashEnvironmentConfig, SHEnvironmentConfig
from generators.hyper_ingp import HyperINGPConfig
from generators.triplane_transformer import TriplaneTransformerConfig

SD_CAMERAS = CameraConfig(distance=(1.0, 1.5), fovy_deg=(40, 70), elevation_deg=(-10, 45))
MV_CAMERAS = CameraConfig(
    ring=True, distance=(0.8, 1.0), distance_by_fovy=True, fovy_deg=(15, 60), elevation_deg=(0, 30)
)
GRID = HyperINGPConfig().grid  # the default is the published one
RGB_PADDING = 0.001  # of the Triplane-Transformer and its background

SPACE, TABLE = "geometry.space_generator.", "encoding.encoding.encoding.params"
BOX = "geometry.bbox"
ENVIRONMENT = {"surroundings.head.": "background.network.layers."}
HEADS = {
    "generator.head_sdf.": "geometry.sdf_network.layers.",
    "generator.head_rgb.": "geometry.feature_network.layers.",
}


@dataclass(frozen=True, kw_only=True)
class Structure:
    """The generator in a checkpoint, and where its tensors are: a prefix of our names to a published one."""

    generator: GeneratorConfig
    environment: EnvironmentConfig
    text_dim: int
    places: Mapping[str, str]
    cameras: CameraConfig = SD_CAMERAS
    prior: str = "Stable Diffusion 2.1-base"

    def __post_init__(self) -> None:
        if self.text_dim < 1:
            raise ValueError("its layers leave no width for the text")

    def published_name(self, name: str) -> str:
        """The published name of one of our tensors."""
        prefix = next(prefix for prefix in self.places if name.startswith(prefix))
        return self.places[prefix] + name.removeprefix(prefix)


def structure_of(state: Mapping[str, Tensor]) -> Structure:
    """The structure of a state dict with the published names. Raises ValueError for any other."""
    kinds = {
        f"geometry.{TABLE}": _hyper_ingp,
        f"{SPACE}synthesis.first_block.const": _conv3d_net,
        f"{SPACE}pos_embed": _triplane_transformer,
    }
    for name, structure in kinds.items():
        if name in state:
            return structure(state, _radius(state))
    raise ValueError(
        "it has no Hyper-iNGP, 3DConv-net or Triplane-Transformer under ScaleDreamer's names "
        f"({', '.join(kinds)})"
    )


def _hyper_ingp(state: Mapping[str, Tensor], radius: float) -> Structure:
    hyper_hidden, text_dim = shape_in(state, "geometry.hypernet.layers.0.weight", 2)
    num_weights, _ = shape_in(state, "geometry.hypernet.layers.3.weight", 2)
    background_hidden, _ = shape_in(state, "background.hypernet.layers.0.weight", 2)
    background_weights, _ = shape_in(state, "background.hypernet.layers.3.weight", 2)
    return Structure(
        generator=HyperINGPConfig(
            grid=GRID,
            hidden=(num_weights // (GRID.num_features + 1 + GRID.num_features + 3),),
            hyper_hidden=hyper_hidden,
            sphere_radius=0.5,
            bounding_radius=radius,
        ),
        environment=HashEnvironmentConfig(
            grid=replace(GRID, growth=1.0),  # as published: all levels have resolution 16
            hidden=background_weights // (GRID.num_features + 3),
            hyper_hidden=background_hidden,
        ),
        text_dim=text_dim,
        places={
            "generator.grid.table": f"geometry.{TABLE}",
            "generator.hypernet.": "geometry.hypernet.layers.",
            "surroundings.grid.table": f"background.{TABLE}",
            "surroundings.hypernet.": "background.hypernet.layers.",
        },
    )


def _conv3d_net(state: Mapping[str, Tensor], radius: float) -> Structure:
    channels = shape_in(state, f"{SPACE}synthesis.first_block.const", 4)[0]
    style_dim, z_dim = shape_in(state, f"{SPACE}mapping.layers.0.weight", 2)
    joined = shape_in(state, f"{SPACE}mapping.embed.weight", 2)[1]
    blocks = f"{SPACE}synthesis.blocks."
    num_blocks = _count(state, blocks + "{}.conv1.weight")
    resolution = 4 << min(num_blocks, 20)  # more is refused by the config
    finest = shape_in(state, f"{blocks}{num_blocks - 1}.conv1.weight", 5)[0] if num_blocks else 0
    places = HEADS | ENVIRONMENT
    places |= {"generator.mapping.": f"{SPACE}mapping.layers.", "generator.join.": f"{SPACE}mapping.embed."}
    places |= {
        "generator.constant": f"{SPACE}synthesis.first_block.const",
        "generator.stages.0.keep.": f"{SPACE}synthesis.first_block.conv1.",
        "generator.stages.0.project.": f"{SPACE}synthesis.first_block.torgb.",
    }
    for number in range(num_blocks):
        stage, block = f"generator.stages.{number + 1}.", f"{blocks}{number}."
        places |= {
            f"{stage}grow.": f"{block}conv0.",
            f"{stage}volume": f"{block}const_bias",
            f"{stage}keep.": f"{block}conv1.",
            f"{stage}project.": f"{block}torgb.",
        }
    return Structure(
        generator=Conv3DConfig(
            resolution=resolution,
            base_channels=channels,
            width=finest * resolution / (16 * channels) if resolution > 16 and channels else 1.0,
            num_features=shape_in(state, f"{SPACE}synthesis.first_block.torgb.weight", 5)[0],
            z_dim=z_dim,
            style_dim=style_dim,
            hidden=_hidden(state, "geometry.sdf_network.layers."),
            sphere_radius=0.8,
            bounding_radius=radius,
        ),
        environment=SHEnvironmentConfig(hidden=_hidden(state, "background.network.layers.")),
        text_dim=joined - style_dim,
        places=places,
    )


def _triplane_transformer(state: Mapping[str, Tensor], radius: float) -> Structure:
    _, num_tokens, width = shape_in(state, f"{SPACE}pos_embed", 3)
    num_layers = _count(state, SPACE + "layers.{}.norm1.weight")
    places = HEADS | ENVIRONMENT
    places |= {
        "generator.tokens": f"{SPACE}pos_embed",
        "generator.norm.": f"{SPACE}norm.",
        "generator.to_planes.": f"{SPACE}deconv.",
    }
    parts = {"text_norm.": "norm1.", "norm.": "norm2.", "mlp_norm.": "norm3."}
    parts |= {"mlp.0.": "mlp.0.", "mlp.2.": "mlp.3."}  # between them is a dropout of nothing
    for ours, published in (("text_attention", "cross_attn"), ("attention", "self_attn")):
        parts |= {f"{ours}.{part}.": f"{published}.to_{part[0]}." for part in ("query", "key", "value")}
        parts |= {f"{ours}.out.": f"{published}.to_out.0."}
    for layer in range(num_layers):
        places |= {
            f"generator.layers.{layer}.{ours}": f"{SPACE}layers.{layer}.{published}"
            for ours, published in parts.items()
        }
    return Structure(
        generator=TriplaneTransformerConfig(
            plane_tokens=math.isqrt(num_tokens // 3),
            width=width,
            num_layers=num_layers,
            num_heads=16,
            plane_channels=shape_in(state, f"{SPACE}deconv.weight", 4)[1],
            hidden=_hidden(state, "geometry.sdf_network.layers."),
            attention_bias=True,
            attend_padding=True,
            rgb_padding=RGB_PADDING,
            sphere_radius=0.8,
            bounding_radius=radius,
        ),
        environment=SHEnvironmentConfig(
            hidden=_hidden(state, "background.network.layers."), rgb_padding=RGB_PADDING
        ),
        text_dim=shape_in(state, f"{SPACE}layers.0.cross_attn.to_k.weight", 2)[1],
        places=places,
        cameras=MV_CAMERAS,
        prior="MVDream (sd-v2.1-base-4view)",
    )


def shape_in(state: Mapping[str, Tensor], name: str, num_dims: int) -> tuple[int, ...]:
    """The shape of a tensor. Raises ValueError if it is missing or has another number of dimensions."""
    if name not in state:
        raise ValueError(f"{name} is missing")
    shape = tuple(state[name].shape)
    if len(shape) != num_dims:
        raise ValueError(f"{name} has the shape {list(shape)}, expected {num_dims} dimensions")
    return shape


def _count(state: Mapping[str, Tensor], pattern: str) -> int:
    """How many names there are, numbered from 0."""
    return next(number for number in range(len(state) + 1) if pattern.format(number) not in state)


def _hidden(state: Mapping[str, Tensor], layers: str) -> tuple[int, ...]:
    """The hidden widths of an MLP, whose linear layers have even numbers."""
    num_layers = next(n for n in range(len(state) + 1) if f"{layers}{2 * n}.weight" not in state)
    return tuple(shape_in(state, f"{layers}{2 * n}.weight", 2)[0] for n in range(num_layers - 1))


def _radius(state: Mapping[str, Tensor]) -> float:
    """Half the side of the box around the origin in which the field was trained."""
    shape_in(state, BOX, 2)
    low, high = state[BOX].double().tolist() if state[BOX].shape == (2, 3) else ([], [])
    if not high or high != [high[0]] * 3 or low != [-high[0]] * 3 or not 0 < high[0] < math.inf:
        raise ValueError(f"{BOX} is not a cube around the origin")
    return high[0]
