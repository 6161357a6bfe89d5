"""Splats of one object for tests."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from amortized.splats import NAMES, Parameters, ball, coefficients_of, scene_of
from amortized.types import SplatScene


def cloud(count: int, *, seed: int = 0) -> Parameters:
    """Return splats of random shape, opacity and color in a ball of radius 0.5, in float64."""
    rng = torch.Generator().manual_seed(seed)
    parameters = {name: value.double() for name, value in ball(count, 0.5, rng).items()}
    for name, by in (("quaternions", 1.0), ("log_scales", 0.3), ("logits", 1.5), ("colors", 0.8)):
        parameters[name] += by * torch.randn(parameters[name].shape, generator=rng, dtype=torch.float64)
    return parameters


def filled_ball(radius: float, rgb: tuple[float, float, float]) -> SplatScene:
    """Return one ball as a lattice of round splats, whose density is about 0.9 inside."""
    axis = torch.linspace(-radius, radius, 2 * round(radius / 0.05) + 1)
    points = torch.cartesian_prod(axis, axis, axis)
    points = points[points.norm(dim=-1) <= radius]
    parameters = {
        "means": points,
        "quaternions": torch.tensor([1.0, 0.0, 0.0, 0.0]).repeat(len(points), 1),
        "log_scales": torch.full_like(points, 0.03).log(),
        "logits": torch.full((len(points),), -0.5),
        "colors": coefficients_of(torch.tensor(rgb).expand(len(points), 3)),
    }
    return scene_of(parameters, 1.0)


def trained(
    parameters: Parameters, kind: type[torch.optim.Optimizer], **settings
) -> tuple[dict, torch.optim.Optimizer]:
    """Return parameters of an optimizer that has made two steps, so that every row has moments, and it."""
    variables = {name: nn.Parameter(parameters[name].clone()) for name in NAMES}
    optimizer = kind([{"params": [value], "lr": 0.01} for value in variables.values()], **settings)
    for step in range(2):
        step_once(variables, optimizer, step)
    return variables, optimizer


def step_once(variables: dict[str, nn.Parameter], optimizer: torch.optim.Optimizer, step: int) -> None:
    """Make a step with a gradient that depends on each row's values only."""
    for value in variables.values():
        value.grad = torch.sin((step + 1) * value.detach()) + 0.1
    optimizer.step()


def coverage(logits: Tensor, log_scales: Tensor, x: Tensor) -> Tensor:
    """Return the coverage [X] along a line through the center of round splats [N] in one place."""
    alphas = torch.sigmoid(logits) * torch.exp(-(x[:, None] ** 2) / (2 * log_scales.exp() ** 2))
    return 1 - (1 - alphas).prod(dim=1)
