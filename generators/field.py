"""What every generator ends in: features of a point, and two heads that read them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from amortized.types import TextCondition


@dataclass(frozen=True, kw_only=True, eq=False)
class FeatureField:
    """P objects; a `Scene`. Holds the graph of the call that made it.

        sdf(x) = head_sdf(f(x)) + |x| - sphere_radius       albedo(x) = sigmoid(head_rgb(f(x)))

    Heads start near zero, so that every prompt starts as a mid-grey ball.
    """

    features: Callable[[Tensor], Tensor]  # points [P, N, 3] in the unit ball to [P, N, F]
    head_sdf: Callable[[Tensor], Tensor]  # [P, N, F] to [P, N, 1]
    head_rgb: Callable[[Tensor], Tensor]  # [P, N, F] to [P, N, 3]
    sphere_radius: float
    bounding_radius: float

    def sdf(self, points: Tensor) -> Tensor:
        """Signed distance [P, N] at points [P, N, 3]."""
        return self._sdf(points, self.features(points / self.bounding_radius))

    def sdf_and_albedo(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Signed distance [P, N] and albedo [P, N, 3] in (0, 1), from one lookup."""
        features = self.features(points / self.bounding_radius)
        return self._sdf(points, features), torch.sigmoid(self.head_rgb(features))

    def _sdf(self, points: Tensor, features: Tensor) -> Tensor:
        start = torch.linalg.vector_norm(points, dim=-1) - self.sphere_radius
        return start + self.head_sdf(features).squeeze(-1)


def check_sizes(hidden: tuple[int, ...], sphere_radius: float, bounding_radius: float, **counts: int) -> None:
    """Raise ValueError, naming the setting, where a generator of these sizes cannot be built."""
    for name, value in counts.items():
        if value < 1:
            raise ValueError(f"generator {name} must be at least 1, got {value}")
    if min(hidden, default=1) < 1:
        raise ValueError(f"generator hidden widths must be at least 1, got {list(hidden)}")
    if not 0 < sphere_radius < bounding_radius:
        raise ValueError(
            f"generator sphere_radius must lie between 0 and bounding_radius {bounding_radius}, "
            f"got {sphere_radius}"
        )


def checked_tokens(text: TextCondition) -> tuple[Tensor, Tensor]:
    """Tokens [P, L, D] and their mask [P, L]; raises ValueError where they do not belong together."""
    tokens, mask = text.tokens, text.mask
    if mask is None or mask.shape != tokens.shape[:2] or mask.dtype != torch.bool:
        got = "none" if mask is None else f"{mask.dtype} {list(mask.shape)}"
        raise ValueError(f"tokens {list(tokens.shape)} need a bool mask {list(tokens.shape[:2])}, got {got}")
    return tokens, mask


def checked_z(z: Tensor | None, num_prompts: int, z_dim: int, like: Tensor) -> Tensor:
    """z [P, z_dim] with the device and type of `like`; zeros where there is none.

    Raises ValueError where it has another shape.
    """
    if z is None:
        return like.new_zeros(num_prompts, z_dim)
    if z.shape != (num_prompts, z_dim):
        raise ValueError(f"z must be [P, z_dim] = {[num_prompts, z_dim]}, got {list(z.shape)}")
    return z.to(like)
