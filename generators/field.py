"""The scene that every generator returns: point features and two heads on top of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from amortized.config import check
from amortized.types import TextCondition

MAX_SIZE, MAX_LAYERS = 2**17, 64  # of one size of a generator; their product is compared with the memory


@dataclass(frozen=True, eq=False)
class PerPrompt:
    """A function x [P, N, ...] => [P, N, ...] that reads tensors of each prompt, its `rows` [P, ...].

    Unlike a closure over the same tensors, it can be restricted to one prompt.
    """

    function: Callable[..., Tensor]  # called as function(x, *rows)
    rows: Sequence[Tensor]  # each [P, ...]

    def __call__(self, x: Tensor) -> Tensor:
        """Return the function's values at x [P, N, ...]."""
        return self.function(x, *self.rows)


def of_prompt(function: Callable[[Tensor], Tensor], index: int) -> Callable[[Tensor], Tensor]:
    """Return the function of prompt `index`: one that is not `PerPrompt` is the same for all."""
    if not isinstance(function, PerPrompt):
        return function
    return PerPrompt(function.function, [rows[index : index + 1] for rows in function.rows])


@dataclass(frozen=True, kw_only=True, eq=False)
class FeatureField:
    """P objects, a `Scene`. Holds the autograd graph of the generator call.

        sdf(x) = head_sdf(f(x)) + |x| - sphere_radius       albedo(x) = sigmoid(head_rgb(f(x)))

    Heads start near zero, so every prompt starts as a mid-gray ball. A function is either the same for all
    prompts, or a `PerPrompt`. See `colors_of` for `rgb_padding`.
    """

    features: Callable[[Tensor], Tensor]  # points [P, N, 3] in the unit ball => [P, N, F]
    head_sdf: Callable[[Tensor], Tensor]  # [P, N, F] => [P, N, 1]
    head_rgb: Callable[[Tensor], Tensor]  # [P, N, F] => [P, N, 3]
    num_prompts: int
    sphere_radius: float
    bounding_radius: float
    rgb_padding: float | None = None

    def sdf(self, points: Tensor) -> Tensor:
        """Return signed distances [P, N] at points [P, N, 3]."""
        return self._sdf(points, self.features(points / self.bounding_radius))

    def sdf_and_albedo(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Return signed distances [P, N] and albedo [P, N, 3] in (0, 1), from the same features."""
        features = self.features(points / self.bounding_radius)
        return self._sdf(points, features), colors_of(self.head_rgb(features), self.rgb_padding)

    def select(self, index: int) -> FeatureField:
        """Return the scene of prompt `index` alone. Raises IndexError unless 0 <= index < P."""
        if not 0 <= index < self.num_prompts:
            raise IndexError(f"select: the scene has {self.num_prompts} prompts, got index {index}")
        return replace(
            self,
            features=of_prompt(self.features, index),
            head_sdf=of_prompt(self.head_sdf, index),
            head_rgb=of_prompt(self.head_rgb, index),
            num_prompts=1,
        )

    def _sdf(self, points: Tensor, features: Tensor) -> Tensor:
        """Return signed distances [P, N] at points [P, N, 3] with features [P, N, F]."""
        sphere = torch.linalg.vector_norm(points, dim=-1) - self.sphere_radius
        return sphere + self.head_sdf(features).squeeze(-1)


def colors_of(raw: Tensor, padding: float | None) -> Tensor:
    """Return colors in (0, 1), or in (-padding, 1 + padding), of raw outputs of any shape.

    With a padding, black and white are reached without a saturated sigmoid (mip-NeRF, arXiv 2103.13415).
    """
    colors = torch.sigmoid(raw)
    return colors if padding is None else colors * (1 + 2 * padding) - padding


def check_sizes(config: Any, *names: str) -> None:
    """Raise ValueError unless the named sizes are at least 1 and the initial sphere is in the bounding ball.

    config: a generator's settings, with `sphere_radius` and `bounding_radius`. A tuple counts by its items.
    """
    check(config, *names, at_least=1, limit=MAX_SIZE)
    for name in names:
        value = getattr(config, name)
        if isinstance(value, tuple) and len(value) > MAX_LAYERS:
            raise ValueError(f"{name} must have at most {MAX_LAYERS} layers, got {len(value)}")
    check(config, "bounding_radius", limit=1000)
    if not 0 < config.sphere_radius < config.bounding_radius:
        raise ValueError(
            f"sphere_radius must lie between 0 and bounding_radius {config.bounding_radius}, "
            f"got {config.sphere_radius}"
        )


def checked_tokens(text: TextCondition) -> tuple[Tensor, Tensor]:
    """Return tokens [P, L, D] and their mask [P, L], as PyTorch's attention takes it.

    It is bool, or for weights their logarithm, to be added to the logits. Raises ValueError if the mask does
    not fit.
    """
    tokens, mask = text.tokens, text.mask
    fits = mask is not None and mask.shape == tokens.shape[:2]
    if not fits or not (mask.dtype == torch.bool or mask.is_floating_point()):
        got = "none" if mask is None else f"{mask.dtype} {list(mask.shape)}"
        raise ValueError(f"tokens {list(tokens.shape)} need a bool mask {list(tokens.shape[:2])}, got {got}")
    return tokens, mask if mask.dtype == torch.bool else mask.log()


def checked_z(z: Tensor | None, num_prompts: int, z_dim: int, like: Tensor) -> Tensor:
    """Return z [P, z_dim] with the device and dtype of `like`, or zeros if z is None.

    Raises ValueError if z has another shape.
    """
    if z is None:
        return like.new_zeros(num_prompts, z_dim)
    if z.shape != (num_prompts, z_dim):
        raise ValueError(f"z must be [P, z_dim] = {[num_prompts, z_dim]}, got {list(z.shape)}")
    return z.to(like)
