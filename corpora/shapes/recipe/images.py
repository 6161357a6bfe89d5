"""Training images for the embedded models, drawn from the Shapes world.

The prior (the teacher) and the CLIP (the judge) see different draws: the teacher always the light
and camera distance that a generator is rendered with, the judge random lights, backgrounds, fields
of view and distances.
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
    """How many images of what, seen how."""

    seed: int
    image_size: int = 64  # each pixel the mean of what 64 x 64 pixels show there
    views_single: int = 160  # per plain sentence, of 64
    views_cornered: int | None = None  # instead, where the shape has corners
    views_marked: int = 48  # per marked sentence, of 64
    views_sized: int = 16  # per small or large sentence, of 128
    num_pairs: int = 800
    views_pair: int = 8
    distance: tuple[float, float] = (2.54, 2.66)
    fovy_deg: tuple[float, float] = (38.0, 38.0)
    background: tuple[float, float] = (0.3, 0.95)
    ring: int = 1  # so many neighboring images show one scene at one elevation, evenly around it
    colored_background: bool = False
    random_light: bool = False


# Half of the teacher's images are of what has corners: with as many views of each shape, what the azimuth
# does to a corner was too small a part of the loss to be learned.
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
    """Images with what they show, a scene of `descriptions`, and from where."""

    images: Tensor  # [N, image_size, image_size, 3] uint8
    scene: Tensor  # [N] long
    azimuth_deg: Tensor  # [N] float
    elevation_deg: Tensor  # [N] float
    descriptions: list[Description]


def plan(config: DrawConfig) -> list[tuple[Description, int]]:
    """Scenes and the number of views of each. Pairs are a fixed pseudo-random subset."""
    sized = [Description((item,)) for item in SIZED_ITEMS if item.size]
    random = torch.Generator().manual_seed(config.seed)
    pairs = torch.randperm(NUM_PAIRS, generator=random)[: config.num_pairs]
    more = config.views_single if config.views_cornered is None else config.views_cornered
    return (
        [(d, more if d.items[0].shape in CORNERED else config.views_single) for d in singles()]
        + [(d, config.views_marked) for d in marked()]
        + [(d, config.views_sized) for d in sized]
        + [(pair(int(i)), config.views_pair) for i in pairs]
    )


def draw(config: DrawConfig, cache: Path | None = None) -> ImageSet:
    """Draw (or load from `cache`) the whole image set; a function of the config alone.

    A cache that another config made is drawn anew: it would train on other images without a word.
    """
    scenes = plan(config)
    descriptions = [description for description, _ in scenes]
    if cache is not None and cache.exists() and _made_by(cache) == repr(config):
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
    stored = {
        "images": torch.cat(images),
        "scene": torch.cat(scene),
        "azimuth_deg": torch.cat(azimuth),
        "elevation_deg": torch.cat(elevation),
    }
    if cache is not None:
        with atomic_path(cache) as partial:
            save_file(stored, partial, metadata={"config": repr(config)})
    return ImageSet(**stored, descriptions=descriptions)


def _made_by(cache: Path) -> str | None:
    with safe_open(cache, "pt") as file:
        return (file.metadata() or {}).get("config")


def _draw_views(config: DrawConfig, truth, num_views: int, random: torch.Generator) -> tuple[Tensor, Cameras]:
    def between(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(1, num_views, generator=random)

    # Three quarters from about eye height, the rest from well below and well above.
    which = torch.rand(1, num_views, generator=random)
    elevation = torch.where(
        which < 0.74, between(-20, 58), torch.where(which < 0.87, between(-60, -20), between(58, 85))
    )
    azimuth = between(-180, 180)
    if config.ring > 1:
        first = torch.arange(num_views) // config.ring * config.ring
        azimuth = azimuth[:, first] + torch.arange(num_views) % config.ring * (360 / config.ring)
        elevation = elevation[:, first]
    cameras = cameras_at(
        azimuth_deg=azimuth,
        elevation_deg=elevation,
        distance=between(*config.distance),
        fovy_deg=between(*config.fovy_deg),
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


def caption(description: Description, seen: str = "", u: float = 1.0) -> str:
    """The sentence of an image, with words for the view; a small u leaves a word of a single item open."""
    item = description.items[0]
    if len(description.items) == 1 and not description.marked and not item.size:
        if u < 0.06:
            description = Description((Item(item.shape, None),))
        elif u < 0.12:
            description = Description((Item(None, item.color),))
    return sentence(description) + seen
