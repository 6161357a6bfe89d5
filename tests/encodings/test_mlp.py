"""Batched per-prompt MLPs against one MLP per prompt."""

import pytest
import torch

from amortized.encodings import batched_mlp, num_mlp_weights, split_mlp_weights


@pytest.mark.parametrize("widths", [(5, 3), (5, 7, 1), (5, 7, 6, 3)])
def test_equals_one_mlp_per_prompt(widths: tuple[int, ...]):
    torch.manual_seed(0)
    flat = torch.randn(3, num_mlp_weights(widths), dtype=torch.float64, requires_grad=True)
    x = torch.randn(3, 11, 5, dtype=torch.float64, requires_grad=True)
    weights = split_mlp_weights(flat, widths)
    assert [tuple(layer.shape[1:]) for layer in weights] == list(zip(widths[:-1], widths[1:], strict=True))
    out = batched_mlp(x, *weights)
    expected = []
    for p in range(3):
        y, start = x[p], 0
        for i, (a, b) in enumerate(zip(widths[:-1], widths[1:], strict=True)):
            y = y @ flat[p, start : start + a * b].reshape(a, b)
            y = y.relu() if i < len(widths) - 2 else y
            start += a * b
        expected.append(y)
    expected = torch.stack(expected)
    torch.testing.assert_close(out, expected)
    seed = torch.randn_like(out)
    for actual, wanted in zip(
        torch.autograd.grad(out, (flat, x), seed, retain_graph=True),
        torch.autograd.grad(expected, (flat, x), seed),
        strict=True,
    ):
        torch.testing.assert_close(actual, wanted)


def test_weight_counts():
    assert num_mlp_weights((32, 64, 1)) == 2048 + 64
    assert num_mlp_weights((32, 64, 3)) == 2048 + 192
