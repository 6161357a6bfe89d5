"""What is seen where the object is not."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

KINDS = ("fixed", "random-grey", "random-rgb")


@dataclass(frozen=True, kw_only=True)
class BackgroundConfig:
    """One plain colour per image. Random ones keep an object from hiding in its background."""

    kind: str = "fixed"  # one of KINDS
    colour: tuple[float, float, float] = (1.0, 1.0, 1.0)  # of kind "fixed", RGB in [0, 1]
    low: float = 0.0  # random kinds draw uniformly from [low, high]
    high: float = 1.0
    own_share: float = 0.8  # of images show the scene's own background instead, where it has one

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"background kind must be one of {', '.join(KINDS)}, got {self.kind!r}")
        if not all(0 <= value <= 1 for value in self.colour):
            raise ValueError(f"background colour must lie in [0, 1], got {list(self.colour)}")
        if not 0 <= self.low <= self.high <= 1:
            raise ValueError(f"background must satisfy 0 <= low <= high <= 1, got {self.low} and {self.high}")
        if not 0 <= self.own_share <= 1:
            raise ValueError(f"background own_share must lie in [0, 1], got {self.own_share}")


def background_from_uniform(config: BackgroundConfig, u: Tensor) -> Tensor:
    """Colours [P, V, 3] in [0, 1] from uniform numbers u [P, V, 3]: a pure function."""
    if config.kind == "fixed":
        return u.new_tensor(config.colour).expand_as(u)
    values = config.low + (config.high - config.low) * u
    return values if config.kind == "random-rgb" else values[..., :1].expand_as(u)
