"""A toy world for the evaluation tests: colored balls with closed-form ground truth."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from amortized.cameras import camera_rays
from amortized.evaluation.truth import TruthScene
from amortized.types import Cameras, Prompt, Render, Scene

COLORS = {"red": (0.9, 0.1, 0.1), "green": (0.1, 0.7, 0.2), "blue": (0.1, 0.2, 0.9)}
GRAY = 0.5


@dataclass(frozen=True)
class Ball:
    """Ground truth: one ball, with a white mark of radius 0.15 on the given sides."""

    radius: float = 0.5
    center: tuple[float, float, float] = (0.0, 0.0, 0.0)
    albedo: tuple[float, float, float] = COLORS["red"]
    marked: tuple[int, ...] = ()  # quarter turns: 0 front, 1 left, 2 back, 3 right
    kind: str = "ball"

    @property
    def front_mark(self) -> tuple[float, float, float] | None:
        return (self.radius, 0.0, 0.0) if self.marked else None

    def sdf(self, points: Tensor) -> Tensor:
        return (points - points.new_tensor(self.center)).norm(dim=-1) - self.radius

    def color(self, points: Tensor) -> Tensor:
        albedo = points.new_tensor(self.albedo).expand(points.shape).clone()
        spots = ((1, 0, 0), (0, 1, 0), (-1, 0, 0), (0, -1, 0))
        for quarter in self.marked:
            spot = self.radius * points.new_tensor(spots[quarter])
            albedo[(points - spot).norm(dim=-1) < 0.15] = 1.0
        return albedo


@dataclass(frozen=True)
class BallScene:
    """A scene of P balls: row p of the points queries ball p."""

    balls: tuple[Ball, ...]
    bounding_radius: float = 0.9

    @property
    def num_prompts(self) -> int:
        return len(self.balls)

    def sdf(self, points: Tensor) -> Tensor:
        assert points.shape[0] == len(self.balls)
        assert points.norm(dim=-1).max() <= self.bounding_radius + 1e-5, "queried outside the bounding ball"
        return torch.stack([ball.sdf(row) for ball, row in zip(self.balls, points, strict=True)])

    def sdf_and_albedo(self, points: Tensor) -> tuple[Tensor, Tensor]:
        radiance = [ball.color(row) for ball, row in zip(self.balls, points, strict=True)]
        return self.sdf(points), torch.stack(radiance)

    def select(self, index: int) -> BallScene:
        return BallScene((self.balls[index],), self.bounding_radius)


def render_balls(scene: Scene, cameras: Cameras, height: int, width: int) -> Render:
    """Unshaded images by exact intersection of rays with balls at the origin."""
    balls = (scene.truth,) if isinstance(scene, TruthScene) else scene.balls
    rays = camera_rays(cameras, height, width)
    images, hits = [], []
    for ball, origins, directions in zip(balls, rays.origins, rays.directions, strict=True):
        along = -(origins * directions).sum(-1)
        root = ball.radius**2 - origins.square().sum(-1) + along**2
        hit = root > 0
        surface = origins + (along - root.clamp(min=0).sqrt())[:, None] * directions
        images.append(torch.where(hit[:, None], ball.color(surface), torch.tensor(GRAY)))
        hits.append(hit)
    shape = (len(balls), *rays.shape)
    opacity = torch.stack(hits).float().reshape(shape)
    return Render(rgb=torch.stack(images).reshape(*shape, 3), opacity=opacity, depth=opacity)


class MeanColorScorer:
    """A stand-in for CLIP: embeds an image as its center's color, and a text as the color it names."""

    def encode_images(self, images: Tensor) -> Tensor:
        side = images.shape[1]
        center = images[:, side // 2 - 1 : side // 2 + 1, side // 2 - 1 : side // 2 + 1].mean(dim=(1, 2))
        return torch.nn.functional.normalize(center, dim=-1)

    def encode_texts(self, texts: list[str]) -> Tensor:
        named = [next((c for word, c in COLORS.items() if word in t.lower()), (1, 1, 1)) for t in texts]
        return torch.nn.functional.normalize(torch.tensor(named, dtype=torch.float32), dim=-1)


class Toys:
    """The namespace that the fixture `toys` hands to tests."""

    Ball, BallScene, MeanColorScorer = Ball, BallScene, MeanColorScorer
    COLORS, GRAY = COLORS, GRAY
    render = staticmethod(render_balls)

    @staticmethod
    def truth(prompt: Prompt) -> Ball | None:
        """The ball that a prompt describes; None if it names no color."""
        color = next((word for word in COLORS if word in prompt.text), None)
        if color is None:
            return None
        big = "big" in prompt.text
        return Ball(
            radius=0.6 if big else 0.4,
            albedo=COLORS[color],
            kind="big" if big else "small",
            marked=(0,) if "dot" in prompt.text else (),
        )


@pytest.fixture(scope="session")
def toys() -> type[Toys]:
    return Toys
