"""Between two texts: lines and great circles, exact ends, no jumps, distances that only grow."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from amortized.generation.interpolation import METHODS, between, slerp
from amortized.types import TextCondition
from tests.generators.helpers import in_double, texts
from tests.generators.test_all import TINY, perturbed

S = [0.0, 0.13, 0.5, 0.77, 1.0]


def on_circle(a: list[float], b: list[float], s: float) -> list[float]:
    """The point at s of the angle from a to b in their plane, in plain floats."""
    norm_a, norm_b = math.hypot(*a), math.hypot(*b)
    first = [x / norm_a for x in a]
    along = sum(x * y for x, y in zip(first, b, strict=True))
    across = [y - along * x for x, y in zip(first, b, strict=True)]
    height = math.hypot(*across)
    angle = s * math.atan2(height, along)
    norm = norm_a + s * (norm_b - norm_a)
    return [
        norm * (math.cos(angle) * x + math.sin(angle) * y / height)
        for x, y in zip(first, across, strict=True)
    ]


@pytest.mark.parametrize("width", [2, 3, 16, 1024])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 40.0])
def test_slerp_follows_the_great_circle(width: int, scale: float) -> None:
    a, b = torch.randn(2, 5, width, dtype=torch.float64).unbind()
    b = scale * b
    for s in S:
        expected = [on_circle(*rows, s) for rows in zip(a.tolist(), b.tolist(), strict=True)]
        actual = slerp(a, b, torch.tensor(s, dtype=torch.float64))
        torch.testing.assert_close(actual, torch.tensor(expected, dtype=torch.float64), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("angle", [1e-9, 1e-7, 1e-5, 1e-3, 1.0, 3.0, math.pi - 1e-4])
def test_slerp_is_accurate_at_small_and_wide_angles(angle: float) -> None:
    a = torch.tensor([1.0, 0.0], dtype=torch.float64)
    b = 2 * torch.tensor([math.cos(angle), math.sin(angle)], dtype=torch.float64)
    for s in S:
        x, y = slerp(a, b, torch.tensor(s, dtype=torch.float64)).tolist()
        assert math.hypot(x, y) == pytest.approx(1 + s, rel=1e-9)
        assert math.atan2(y, x) == pytest.approx(s * angle, rel=1e-6)


@pytest.mark.parametrize("b", [[1.0, 2.0], [0.0, 0.0], [-1.0, -2.0]])
def test_rows_without_a_great_circle_are_interpolated_linearly(b: list[float]) -> None:
    """Equal rows, a row of zeros (padding), opposite rows."""
    a, end = torch.tensor([1.0, 2.0]).double(), torch.tensor(b).double()
    for s in S:
        torch.testing.assert_close(slerp(a, end, torch.tensor(s).double()), torch.lerp(a, end, s))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("seed", range(5))
def test_distances_to_the_ends_grow_and_shrink(method: str, seed: int) -> None:
    """For texts at most 90 degrees apart, of any norms. (On a wider circle, the end may be closer.)"""
    random = torch.Generator().manual_seed(seed)
    scale = 10 ** torch.empty(2, 1, 1).uniform_(-1, 1, generator=random)
    ends = texts(2, seed=seed)
    rows = scale * torch.cat([ends.pooled[:, None], ends.tokens], dim=1)
    rows[1] *= (rows[0] * rows[1]).sum(dim=-1, keepdim=True).sign()
    ends = TextCondition(pooled=rows[:, 0], tokens=rows[:, 1:], mask=ends.mask)
    there = between(ends, torch.linspace(0, 1, 25), method)
    for rows in (there.pooled, *there.tokens.unbind(dim=1)[:4]):
        from_first, to_second = ((rows - rows[end]).norm(dim=-1) for end in (0, -1))
        assert (from_first.diff() > 0).all() and (to_second.diff() < 0).all()


def values(generator: torch.nn.Module, text: TextCondition, points: Tensor) -> Tensor:
    """Distances and albedo [P, N, 4] of a generator's scenes, with the same z."""
    num_prompts, z_dim = len(text.pooled), getattr(generator, "z_dim", 0)
    scene = generator(text, torch.linspace(-1, 1, z_dim).double().expand(num_prompts, -1))
    sdf, albedo = scene.sdf_and_albedo(points.expand(num_prompts, -1, -1))
    return torch.cat([sdf[..., None], albedo], dim=-1)


@pytest.mark.parametrize("name", TINY)
@pytest.mark.parametrize("method", METHODS)
def test_the_ends_are_the_prompts_scenes_and_nothing_jumps(name: str, method: str) -> None:
    """Also for texts of different lengths, whose tokens a generator attends to."""
    generator, ends = perturbed(name), in_double(texts(2))
    assert ends.mask.sum(dim=1).tolist() == [5, 4]
    points = torch.rand(1, 60, 3).double() - 0.5
    exact = values(generator, ends, points)
    near = torch.tensor([0.0, 1.0, 1e-7, 1 - 1e-7, 0.5, 0.5 + 1e-7], dtype=torch.float64)
    first, second, after, before, middle, next_to_it = values(
        generator, between(ends, near, method), points
    ).detach()
    torch.testing.assert_close(torch.stack([first, second]), exact.detach(), rtol=0, atol=1e-12)
    for here, there in ((first, after), (second, before), (middle, next_to_it)):
        assert (here - there).abs().max() < 1e-5
    assert (middle - first).abs().mean() > 1e-5 and (middle - second).abs().mean() > 1e-5


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("longer", [0, 1])
def test_a_token_of_one_text_is_the_same_all_along(method: str, longer: int) -> None:
    """Only its weight changes; the other text's padding has no part in it."""
    ends = texts(2)
    rows = [0, 1] if longer == 0 else [1, 0]
    ends = TextCondition(pooled=ends.pooled[rows], tokens=ends.tokens[rows], mask=ends.mask[rows])
    there = between(ends, torch.linspace(0, 1, 5), method)
    torch.testing.assert_close(there.tokens[:, 4], ends.tokens[longer, 4].expand(5, -1))
    share = torch.linspace(0, 1, 5) if longer else torch.linspace(1, 0, 5)
    torch.testing.assert_close(there.mask[:, 4], share)
    assert (there.mask[:, :4] == 1).all()
