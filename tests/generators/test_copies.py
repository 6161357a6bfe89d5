"""An object copied out of a generator into an INGP: the same images, and what cannot be copied."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from amortized.encodings import HashGridConfig
from amortized.rendering import RendererConfig
from generators.conv3d import Conv3DConfig
from generators.copies import copy_object, obstacles
from generators.hyper_ingp import HyperINGPConfig
from generators.ingp import INGPConfig
from tests.generators.helpers import TEXT_DIM, in_double, perturb, texts
from tests.rendering.scenes import front_camera, render_on_black
from tests.rendering.scenes import in_double as cameras_in_double

GRID = HashGridConfig(num_levels=3, log2_table_size=9, base_resolution=4, growth=1.6)
OPENING = replace(GRID, open_levels=(0.0, 2.0, 3.0, 1.0))
SHARED = ("hidden", "include_position", "shared_width", "sphere_radius", "bounding_radius")
SOURCES = {
    "plain": HyperINGPConfig(grid=GRID, hidden=(8,), hyper_hidden=8),
    "positions, radii": HyperINGPConfig(
        grid=GRID, hidden=(8,), hyper_hidden=8, include_position=True, sphere_radius=0.4, bounding_radius=0.8
    ),
    "shared layer": HyperINGPConfig(
        grid=GRID, hidden=(8, 6), hyper_hidden=8, include_position=True, shared_width=5
    ),
    "no hidden layer": HyperINGPConfig(grid=GRID, hidden=(), hyper_hidden=8, shared_width=5),
    "tokens, z": HyperINGPConfig(grid=GRID, hidden=(8,), hyper_hidden=8, text="tokens", z_dim=3),
    "closed levels": HyperINGPConfig(grid=OPENING, hidden=(8,), hyper_hidden=8),
    "object": INGPConfig(grid=GRID, hidden=(8,), bias=True, shared_width=5),
    "object, density": INGPConfig(grid=GRID, hidden=(8,), geometry="density", bounding_radius=2.0),
}


def target_config(source: HyperINGPConfig | INGPConfig, **changes) -> INGPConfig:
    """The settings of an object with the sizes of a source."""
    if isinstance(source, INGPConfig):
        return replace(source, **{"grid": GRID, **changes})
    sizes = {name: getattr(source, name) for name in SHARED}
    return INGPConfig(**{"grid": GRID, **sizes, **changes})


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("name", SOURCES)
def test_a_copied_object_looks_the_same(name: str, bias: bool):
    torch.manual_seed(0)
    source = perturb(SOURCES[name].build(TEXT_DIM), by=0.3).double()
    config = target_config(SOURCES[name], **({"bias": True} if bias else {}))
    target = config.build(TEXT_DIM).double()
    # The z of the text matters too.
    z = torch.randn(1, 3).double() if getattr(source, "z_dim", 0) else None
    scene = source(in_double(texts(1)), z)
    assert obstacles(source, target) == []
    copy_object(source, scene, target)
    copy = target(in_double(texts(1, seed=8)))  # of another text, which it does not use
    camera = cameras_in_double(front_camera())
    config = RendererConfig(num_coarse=24, num_fine=8)
    looks = [render_on_black(one, camera, 12, config, sharpness=200.0) for one in (scene, copy)]
    assert looks[0].rgb.max() > 0.1  # there is something to see
    # Rounding alone, magnified by the sharpness: in float32 a thousandfold.
    torch.testing.assert_close(looks[0].rgb, looks[1].rgb, rtol=0, atol=1e-12)
    with torch.no_grad():
        target.head_rgb[-1].weight += 0.1
    changed = render_on_black(copy, camera, 12, config, sharpness=200.0)
    again = render_on_black(source(in_double(texts(1)), z), camera, 12, config, sharpness=200.0)
    assert not torch.equal(changed.rgb, looks[1].rgb) and torch.equal(again.rgb, looks[0].rgb)


def test_each_prompt_has_its_own_copy():
    torch.manual_seed(0)
    source = perturb(SOURCES["shared layer"].build(TEXT_DIM), by=0.3).double()
    points = torch.rand(1, 50, 3).double() - 0.5
    batch = source(in_double(texts(3)))
    for row in range(3):
        target = target_config(SOURCES["shared layer"]).build(TEXT_DIM).double()
        copy_object(source, batch.select(row), target)
        expected = batch.sdf(points.expand(3, -1, -1))[row]
        torch.testing.assert_close(target(in_double(texts(1))).sdf(points)[0], expected, rtol=0, atol=1e-12)


DIFFERENT = {
    "hidden": ((9,), "generator.hidden=[8]"),
    "include_position": (True, "generator.include_position=false"),
    "shared_width": (5, "generator.shared_width=null"),
    "sphere_radius": (0.3, "generator.sphere_radius=0.5"),
    "bounding_radius": (0.9, "generator.bounding_radius=1.0"),
    "geometry": ("density", "generator.geometry=sdf"),
    "grid": (replace(GRID, base_resolution=5), "generator.grid.base_resolution=4"),
}


@pytest.mark.parametrize("setting", DIFFERENT)
def test_other_sizes_are_named_with_the_values_to_set(setting: str):
    value, expected = DIFFERENT[setting]
    source = SOURCES["plain"].build(TEXT_DIM)
    target = target_config(SOURCES["plain"], **{setting: value}).build(TEXT_DIM)
    assert obstacles(source, target) == [expected]


def test_sources_that_cannot_be_copied():
    sizes = {"resolution": 8, "base_channels": 6, "num_features": 4, "z_dim": 3, "style_dim": 8}
    conv = Conv3DConfig(**sizes, hidden=(8,)).build(TEXT_DIM)
    assert obstacles(conv, INGPConfig(grid=GRID).build(TEXT_DIM)) == ["generator.name"]
    with_bias = SOURCES["object"].build(TEXT_DIM)
    without = target_config(SOURCES["object"], bias=False).build(TEXT_DIM)
    assert obstacles(with_bias, without) == ["generator.bias=true"]
    density = SOURCES["object, density"].build(TEXT_DIM)
    other = target_config(SOURCES["object, density"], blob_scale=20.0).build(TEXT_DIM)
    assert obstacles(density, other) == ["generator.blob_scale=10.0"]
    # A target that opens its levels only later cannot show the object at the start.
    opening = target_config(SOURCES["plain"], grid=OPENING).build(TEXT_DIM)
    assert obstacles(SOURCES["plain"].build(TEXT_DIM), opening) == ["generator.grid.open_levels=null"]
    assert obstacles(SOURCES["closed levels"].build(TEXT_DIM), opening) == []
