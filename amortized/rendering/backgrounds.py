"""Plain background colors of training images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from amortized.config import check


@dataclass(frozen=True, kw_only=True)
class BackgroundConfig:
    """One color per image. With random colors, an object cannot blend into its background."""

    kind: Literal["fixed", "random-gray", "random-rgb"] = "fixed"
    color: tuple[float, float, float] = (1.0, 1.0, 1.0)  # RGB in [0, 1], for kind=fixed
    low: float = 0.0  # the random kinds are uniform in [low, high]
    high: float = 1.0
    environment_share: float = 0.8  # share of images that show the learned environment, if there is one

    def __post_init__(self) -> None:
        check(self, "color", "low", "high", "environment_share", at_least=0, at_most=1)
        if self.low > self.high:
            raise ValueError(f"low must be at most high, got {self.low} and {self.high}")


def background_from_uniform(config: BackgroundConfig, u: Tensor) -> Tensor:
    """Return colors [P, V, 3] in [0, 1] from uniform numbers u [P, V, 3] in [0, 1). A pure function."""
    if config.kind == "fixed":
        return u.new_tensor(config.color).expand_as(u)
    values = config.low + (config.high - config.low) * u
    return values if config.kind == "random-rgb" else values[..., :1].expand_as(u)


def check_images(num_prompts: int, background: Tensor, sizes: tuple[int, int, int, int]) -> None:
    """Raise ValueError unless a scene of `num_prompts` and the background fit images of `sizes`.

    sizes: P, V, H, W.
    """
    if num_prompts != sizes[0]:
        raise ValueError(f"render: the scene has {num_prompts} prompts, but the cameras {sizes[0]}")
    if min(sizes) < 1:
        raise ValueError(f"render: P, V, height and width must each be at least 1, got {list(sizes)}")
    if background.shape != (*sizes[:2], 3):
        raise ValueError(
            f"render: background must be one color per image, {[*sizes[:2], 3]}, got {list(background.shape)}"
        )
