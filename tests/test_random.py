"""Counter-based randomness."""

import torch

from amortized.random import derive_seed, generator_for, normal, uniform


def test_seeds_never_change():
    # Golden values: changing them changes every run.
    assert derive_seed(0, "slot", 3, 1) == derive_seed(0, "slot", 3, 1)
    assert derive_seed(1) == 4259241206155935355
    assert derive_seed("a", 2) != derive_seed("a2") != derive_seed("a", "2", "")


def test_draws_depend_only_on_their_key():
    first = normal((3, 4), 5, "noise")
    uniform((7,), 1)
    torch.randn(10)
    assert torch.equal(first, normal((3, 4), 5, "noise"))
    assert not torch.equal(first, normal((3, 4), 6, "noise"))
    assert torch.equal(first, torch.randn(3, 4, generator=generator_for(5, "noise")))


def test_neighboring_keys_are_uncorrelated():
    rows = torch.stack([normal((256,), 0, step) for step in range(64)])
    correlation = torch.corrcoef(rows) - torch.eye(64)
    assert correlation.abs().max() < 0.35
