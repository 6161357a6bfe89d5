"""ScaleDreamer's three fields and two backgrounds in numpy, float64, from tensors under the published names.

Points [N, 3] lie in the box [-2, 2], directions [N, 3] have unit length, z [Z] and the text's vectors belong
to one prompt.
"""

from __future__ import annotations

import itertools
import math
import struct
from typing import Any

import numpy as np

Array = Any  # np.ndarray
SPACE, TABLE = "geometry.space_generator.", "encoding.encoding.encoding.params"
RADIUS = 2.0


def hyper_ingp(state: dict[str, Array], points: Array, pooled: Array) -> tuple[Array, Array]:
    """Signed distances [N] and colors [N, 3]."""
    features = hash_grid(state[f"geometry.{TABLE}"], (points / RADIUS + 1) / 2, 1.447269237440378)
    flat = hypernet(state, "geometry", pooled)
    hidden = len(flat) // 68
    parts = np.split(flat, np.cumsum([32 * hidden, hidden, 32 * hidden]))
    sdf = relu(features @ parts[0].reshape(32, hidden)) @ parts[1].reshape(hidden, 1)
    rgb = relu(features @ parts[2].reshape(32, hidden)) @ parts[3].reshape(hidden, 3)
    return sdf[:, 0] + np.linalg.norm(points, axis=1) - 0.5, sigmoid(rgb)


def hash_background(state: dict[str, Array], directions: Array, pooled: Array) -> Array:
    features = hash_grid(state[f"background.{TABLE}"], (directions + 1) / 2, 1.0)
    flat = hypernet(state, "background", pooled)
    hidden = len(flat) // 35
    return sigmoid(
        relu(features @ flat[: 32 * hidden].reshape(32, hidden)) @ flat[32 * hidden :].reshape(hidden, 3)
    )


def hypernet(state: dict[str, Array], part: str, pooled: Array) -> Array:
    layer = {name: state[f"{part}.hypernet.layers.{name}"] for name in ("0.weight", "3.weight", "3.bias")}
    norm = f"{part}.hypernet.layers.1"
    x = layer_norm(layer["0.weight"] @ pooled, state[f"{norm}.weight"], state[f"{norm}.bias"], 1e-5)
    return layer["3.weight"] @ (x * sigmoid(x)) + layer["3.bias"]


def hash_grid(table: Array, points: Array, growth: float) -> Array:
    """16 levels of 2 features from resolution 16, with at most 2^19 rows: [N, 32] at points in [0, 1]."""

    def float32(number: float) -> float:
        return struct.unpack("f", struct.pack("f", number))[0]

    features, offset = np.zeros((len(points), 32)), 0
    for level in range(16):
        power = float32(2 ** float32(level * float32(math.log2(float32(growth)))))
        scale = float32(float32(power * 16) - 1)
        resolution = math.ceil(scale) + 1
        size = min(-(-(resolution**3) // 8) * 8, 2**19)
        for row, point in enumerate(points):
            position = [float(x) * scale + 0.5 for x in point]
            cell = [math.floor(x) for x in position]
            for corner in itertools.product((0, 1), repeat=3):
                x, y, z = (c + d for c, d in zip(cell, corner, strict=True))
                index = x + resolution * (y + resolution * z)
                if resolution**3 > 2**19:
                    index = (x ^ (y * 2654435761) ^ (z * 805459861)) % 2**32
                weight = math.prod(
                    p - c if d else 1 - p + c for p, c, d in zip(position, cell, corner, strict=True)
                )
                start = 2 * (offset + index % size)
                features[row, 2 * level : 2 * level + 2] += weight * table[start : start + 2]
        offset += size
    return features


def conv3d_net(state: dict[str, Array], points: Array, pooled: Array, z: Array) -> tuple[Array, Array]:
    """Signed distances [N] and colors [N, 3], without noise."""
    style = z / np.sqrt(np.mean(z**2) + 1e-8)
    for number in (0, 1):
        layer = f"{SPACE}mapping.layers.{number}."
        style = leaky(dense(style, state[f"{layer}weight"], state[f"{layer}bias"]))
    embed = f"{SPACE}mapping.embed."
    style = dense(np.concatenate([style, pooled]), state[f"{embed}weight"], state[f"{embed}bias"])
    synthesis = f"{SPACE}synthesis."
    x = style_conv(state, f"{synthesis}first_block.conv1.", state[f"{synthesis}first_block.const"], style)
    volume = to_rgb(state, f"{synthesis}first_block.torgb.", x, style)
    for number in itertools.count():
        block = f"{synthesis}blocks.{number}."
        if f"{block}conv1.weight" not in state:
            break
        x = style_conv(state, f"{block}conv0.", x, style, grow=True)
        x = x + state.get(f"{block}const_bias", 0)
        x = style_conv(state, f"{block}conv1.", x, style)
        volume = upsample(volume) + to_rgb(state, f"{block}torgb.", x, style)
    features = interpolate(volume, points[:, ::-1] / RADIUS)  # the volume's axes are z, y, x
    sdf, rgb = (network(state, f"geometry.{name}_network", features) for name in ("sdf", "feature"))
    return sdf[:, 0] + np.linalg.norm(points, axis=1) - 0.8, sigmoid(rgb)


def style_conv(state: dict[str, Array], name: str, x: Array, style: Array, grow: bool = False) -> Array:
    weight = state[f"{name}weight"]
    scale = dense(style, state[f"{name}affine.weight"], state[f"{name}affine.bias"])
    weight = weight * scale[None, :, None, None, None]
    weight = weight / np.sqrt(np.sum(weight**2, axis=(1, 2, 3, 4), keepdims=True) + 1e-8)
    padded = np.pad(x, [(0, 0), (1, 1), (1, 1), (1, 1)])
    side, y = x.shape[1], 0
    for i, j, k in itertools.product(range(3), repeat=3):
        part = padded[:, i : i + side, j : j + side, k : k + side]
        y = y + np.tensordot(weight[:, :, i, j, k], part, axes=1)
    y = upsample(y) if grow else y
    return np.clip(leaky(y + state[f"{name}bias"][:, None, None, None]), -256, 256)


def to_rgb(state: dict[str, Array], name: str, x: Array, style: Array) -> Array:
    scale = dense(style, state[f"{name}affine.weight"], state[f"{name}affine.bias"]) / math.sqrt(len(x))
    weight = state[f"{name}weight"][:, :, 0, 0, 0] * scale
    return np.tensordot(weight, x, axes=1) + state[f"{name}bias"][:, None, None, None]


def upsample(x: Array) -> Array:
    """Twice the side, linearly along each axis, corners on corners."""
    side = x.shape[1]
    position = np.arange(2 * side) * (side - 1) / (2 * side - 1)
    matrix = np.maximum(0, 1 - np.abs(position[:, None] - np.arange(side)))
    for axis in (1, 2, 3):
        x = np.moveaxis(np.tensordot(matrix, x, axes=(1, axis)), 0, axis)
    return x


def triplane_transformer(state: dict[str, Array], points: Array, tokens: Array) -> tuple[Array, Array]:
    """Signed distances [N] and colors [N, 3]; all tokens [L, D] count, padding too."""
    x = state[f"{SPACE}pos_embed"][0]
    for layer in itertools.count():
        name = f"{SPACE}layers.{layer}."
        if f"{name}norm1.weight" not in state:
            break

        def norm(x: Array, number: int, name: str = name) -> Array:
            return layer_norm(x, state[f"{name}norm{number}.weight"], state[f"{name}norm{number}.bias"], 1e-6)

        x = x + attention(state, f"{name}cross_attn.", norm(x, 1), tokens)
        normed = norm(x, 2)
        x = x + attention(state, f"{name}self_attn.", normed, normed)
        hidden = norm(x, 3) @ state[f"{name}mlp.0.weight"].T + state[f"{name}mlp.0.bias"]
        hidden = hidden * 0.5 * (1 + np.vectorize(math.erf)(hidden / math.sqrt(2)))
        x = x + hidden @ state[f"{name}mlp.3.weight"].T + state[f"{name}mlp.3.bias"]
    x = layer_norm(x, state[f"{SPACE}norm.weight"], state[f"{SPACE}norm.bias"], 1e-6)
    side = math.isqrt(len(x) // 3)
    # Each token makes 2 x 2 cells of each channel.
    cells = np.einsum("prcw,wfab->pfracb", x.reshape(3, side, side, -1), state[f"{SPACE}deconv.weight"])
    planes = cells.reshape(3, -1, 2 * side, 2 * side)
    x, y, z = (points / RADIUS).T
    # Columns first in the name of a plane: the rows of xy run along y.
    rows_and_columns = [np.stack(pair, axis=1) for pair in ((y, x), (z, x), (y, z))]
    parts = [interpolate(plane, where) for plane, where in zip(planes, rows_and_columns, strict=True)]
    features = np.concatenate(parts, axis=1)
    sdf, rgb = (network(state, f"geometry.{name}_network", features) for name in ("sdf", "feature"))
    return sdf[:, 0] + np.linalg.norm(points, axis=1) - 0.8, 1.002 * sigmoid(rgb) - 0.001


def attention(state: dict[str, Array], name: str, x: Array, context: Array, heads: int = 16) -> Array:
    query, key, value = (
        source @ state[f"{name}to_{part}.weight"].T
        for part, source in (("q", x), ("k", context), ("v", context))
    )
    query, key, value = (y.reshape(len(y), heads, -1).transpose(1, 0, 2) for y in (query, key, value))
    logits = query @ key.transpose(0, 2, 1) / math.sqrt(query.shape[-1])
    shares = np.exp(logits - logits.max(axis=-1, keepdims=True))
    shares = shares / shares.sum(axis=-1, keepdims=True)
    out = (shares @ value).transpose(1, 0, 2).reshape(len(x), -1)
    return out @ state[f"{name}to_out.0.weight"].T + state[f"{name}to_out.0.bias"]


def sphere_background(state: dict[str, Array], directions: Array) -> Array:
    """Outputs [N, 3] before the sigmoid; harmonics with the Condon-Shortley phase, as in tiny-cuda-nn."""
    x, y, z = directions.T
    harmonics = [
        0.28209479177387814 * np.ones_like(x),
        -0.48860251190291987 * y,
        0.48860251190291987 * z,
        -0.48860251190291987 * x,
        1.0925484305920792 * x * y,
        -1.0925484305920792 * y * z,
        0.94617469575755997 * z * z - 0.31539156525251999,
        -1.0925484305920792 * x * z,
        0.54627421529603959 * (x * x - y * y),
    ]
    return network(state, "background.network", np.stack(harmonics, axis=1))


def network(state: dict[str, Array], name: str, x: Array) -> Array:
    """A ReLU MLP without biases."""
    for number in itertools.count():
        x = x @ state[f"{name}.layers.{2 * number}.weight"].T
        if f"{name}.layers.{2 * number + 2}.weight" not in state:
            return x
        x = relu(x)
    raise AssertionError


def interpolate(values: Array, positions: Array) -> Array:
    """Linear in cells [C, R, ...] whose centers lie at -1 + 1/R, ..., 1 - 1/R; zero outside: [N, C]."""
    side = values.shape[1]
    out = np.zeros((len(positions), len(values)))
    for row, position in enumerate(positions):
        index = ((position + 1) * side - 1) / 2
        low = np.floor(index).astype(int)
        for corner in itertools.product((0, 1), repeat=len(low)):
            cell = low + corner
            if np.all((cell >= 0) & (cell < side)):
                weight = np.prod(np.where(corner, index - low, 1 - index + low))
                out[row] += weight * values[(slice(None), *cell)]
    return out


def dense(x: Array, weight: Array, bias: Array) -> Array:
    return weight @ x / math.sqrt(len(x)) + bias


def layer_norm(x: Array, weight: Array, bias: Array, epsilon: float) -> Array:
    centered = x - x.mean(axis=-1, keepdims=True)
    return centered / np.sqrt(np.mean(centered**2, axis=-1, keepdims=True) + epsilon) * weight + bias


def leaky(x: Array) -> Array:
    return math.sqrt(2) * np.where(x > 0, x, 0.2 * x)


def relu(x: Array) -> Array:
    return np.maximum(x, 0)


def sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))
