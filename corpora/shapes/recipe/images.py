"""Draw the training images of the embedded models from the Shapes world.

The prior (the teacher) and the CLIP (the judge) train on different draws. The teacher's have the light and
camera distance that generators are rendered with; the judge's have random lights, backgrounds, fields of view
and distances.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm

from amortized.cameras import cameras_at
from amortized.files import atomic_path
from amortized.random import derive_seed
from amortized.types import Cameras
from corpora.shapes.grammar import NUM_PAIRS, SIZED_ITEMS, Description, Item, marked, pair, sentence, singles
from corpora.shapes.render import Light, render_truth
from corpora.shapes.scene import truth_of

CORNERED = ("cube", "pyramid", "octahedron")  # all others are solids of revolution about z


@dataclass(frozen=True, kw_only=True)
class DrawConfig:
    """Number of images per kind of scene, and the ranges of cameras, backgrounds and lights."""

    seed: int
    image_size: int = 64  # rendered at 64 x 64 px and averaged down
    views_single: int = 160  # per plain sentence, of 64
    views_cornered: int | None = None  # replaces views_single for shapes with corners
    views_marked: int = 48  # per marked sentence, of 64
    views_sized: int = 16  # per small or large sentence, of 128
    num_pairs: int = 800
    views_pair: int = 8
    distance: tuple[float, float] = (2.54, 2.66)  # low, high of a uniform distribution, as below
    fovy_deg: tuple[float, float] = (38.0, 38.0)
    background: tuple[float, float] = (0.3, 0.95)  # in [0, 1]
    ring: int = 1  # consecutive images that form a ring: one scene, one elevation, evenly spaced azimuths
    colored_background: bool = False  # else gray
    random_light: bool = False


# Half of the teacher's images show shapes with corners: with equal views per shape, the effect of the azimuth
# on corners was too small a part of the loss to be learned (docs/log.md).
TEACHER = DrawConfig(
    seed=1,
    image_size=32,
    views_single=160,
    views_cornered=880,
    views_marked=64,
    views_sized=24,
    num_pairs=1200,
    views_pair=10,
)
JUDGE = DrawConfig(
    seed=2,
    views_single=192,
    views_marked=40,
    views_sized=10,
    num_pairs=1000,
    views_pair=6,
    distance=(2.3, 3.0),
    fovy_deg=(34.0, 42.0),
    background=(0.0, 1.0),
    colored_background=True,
    random_light=True,
)


@dataclass(frozen=True, kw_only=True)
class ImageSet:
    """Images with their scenes (indices of `descriptions`) and camera directions."""

    images: Tensor  # [N, image_size, image_size, 3] uint8
    scene: Tensor  # [N] long
    azimuth_deg: Tensor  # [N] float
    elevation_deg: Tensor  # [N] float
    descriptions: list[Description]


def plan(config: DrawConfig) -> list[tuple[Description, int]]:
    """List scenes with their number of views; pairs are a pseudorandom subset, fixed by the seed."""
    sized = [Description((item,)) for item in SIZED_ITEMS if item.size]
    random = torch.Generator().manual_seed(config.seed)
    pairs = torch.randperm(NUM_PAIRS, generator=random)[: config.num_pairs]
    views_cornered = config.views_single if config.views_cornered is None else config.views_cornered
    return (
        [(d, views_cornered if d.items[0].shape in CORNERED else config.views_single) for d in singles()]
        + [(d, config.views_marked) for d in marked()]
        + [(d, config.views_sized) for d in sized]
        + [(pair(int(i)), config.views_pair) for i in pairs]
    )


def draw(config: DrawConfig, cache: Path | None = None) -> ImageSet:
    """Draw the image set, or load it from `cache`; a function of the config alone.

    A cache of another config is redrawn: using it would silently train on other images.
    """
    scenes = plan(config)
    descriptions = [description for description, _ in scenes]
    if cache is not None and cache.exists() and _cached_config(cache) == repr(config):
        return ImageSet(**load_file(cache), descriptions=descriptions)
    images, scene, azimuth, elevation = [], [], [], []
    for index, (description, num_views) in enumerate(tqdm(scenes, desc="drawing scenes", mininterval=5)):
        truth = truth_of(description)
        random = torch.Generator().manual_seed(derive_seed(config.seed, "views", index))
        for start in range(0, num_views, 32):
            pixels, cameras = _draw_views(config, truth, min(32, num_views - start), random)
            images.append(pixels)
            scene.append(torch.full((len(pixels),), index))
            azimuth.append(cameras.azimuth_deg[0])
            elevation.append(cameras.elevation_deg[0])
    tensors = {
        "images": torch.cat(images),
        "scene": torch.cat(scene),
        "azimuth_deg": torch.cat(azimuth),
        "elevation_deg": torch.cat(elevation),
    }
    if cache is not None:
        with atomic_path(cache) as partial:
            save_file(tensors, partial, metadata={"config": repr(config)})
    return ImageSet(**tensors, descriptions=descriptions)


def _cached_config(cache: Path) -> str | None:
    """The config that a cache was drawn with, as text."""
    with safe_open(cache, "pt") as file:
        return (file.metadata() or {}).get("config")


def _draw_views(config: DrawConfig, truth, num_views: int, random: torch.Generator) -> tuple[Tensor, Cameras]:
    """Render views of a ground truth: images [V, H, W, 3] uint8 and their cameras [1, V]."""

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(1, num_views, generator=random)

    # Three quarters around eye height, the rest from well below and well above. The shares are a choice.
    u = torch.rand(1, num_views, generator=random)
    elevation = torch.where(
        u < 0.74, uniform(-20, 58), torch.where(u < 0.87, uniform(-60, -20), uniform(58, 85))
    )
    azimuth = uniform(-180, 180)
    if config.ring > 1:
        first = torch.arange(num_views) // config.ring * config.ring
        azimuth = azimuth[:, first] + torch.arange(num_views) % config.ring * (360 / config.ring)
        elevation = elevation[:, first]
    cameras = cameras_at(
        azimuth_deg=azimuth,
        elevation_deg=elevation,
        distance=uniform(*config.distance),
        fovy_deg=uniform(*config.fovy_deg),
    )
    low, high = config.background
    channels = 3 if config.colored_background else 1
    background = (low + (high - low) * torch.rand(num_views, channels, generator=random)).expand(num_views, 3)
    light = Light()
    if config.random_light:
        x, y, z = torch.randn(3, generator=random).tolist()
        ambient = 0.2 + 0.3 * torch.rand((), generator=random).item()
        light = Light(direction=(x, y, abs(z) + 0.3), ambient=ambient, diffuse=1 - ambient)
    images = render_truth(
        truth,
        cameras,
        config.image_size,
        light=light,
        background=background,
        supersample=64 // config.image_size,
    )
    return (images * 255).round().to(torch.uint8), cameras


def caption(description: Description, view: str = "", u: float = 1.0) -> str:
    """Caption an image with its sentence and the words of its view.

    A plain single item loses its color word if u < 0.06 and its shape word if u < 0.12, so that the prior
    also learns underspecified prompts.
    """
    item = description.items[0]
    if len(description.items) == 1 and not description.marked and not item.size:
        if u < 0.06:
            description = Description((Item(item.shape, None),))
        elif u < 0.12:
            description = Description((Item(None, item.color),))
    return sentence(description) + view
