"""Moved splats look like those they share a place with, and their number never exceeds the cap."""

from __future__ import annotations

from math import comb

import pytest
import torch

from amortized.splats import RelocationConfig, noisy_means, relocate, relocate_and_grow, rotation_matrices
from amortized.splats.relocation import grow, opacities_of, share_place, shared_opacity_and_scale, strays
from tests.splats import made


@pytest.mark.parametrize("copies", [2, 3, 5, 20, 51])
@pytest.mark.parametrize("opacity", [0.02, 0.3, 0.9, 0.999])
def test_copies_in_one_place_cover_what_one_did(copies: int, opacity: float):
    """In the center, and integrated along a line: to 1e-6. Plain clones cover much more."""
    one = {name: value[:1] for name, value in made.cloud(2).items()}
    one["logits"] = torch.logit(torch.tensor([opacity]).double())
    one["log_scales"] = torch.full((1, 3), -1.0).double()
    x = torch.linspace(-8, 8, 20_001).double()
    before = made.coverage(one["logits"], one["log_scales"][:, 0], x)
    source = torch.zeros(copies, dtype=torch.int64)
    change = share_place(one, source)
    after = made.coverage(change.parameters["logits"], change.parameters["log_scales"][:, 0], x)
    assert abs(after[10_000] - before[10_000]) < 1e-6
    assert abs(after.sum() / before.sum() - 1) < 1e-6
    clones = made.coverage(one["logits"][source], one["log_scales"][source, 0], x)
    assert clones.sum() / before.sum() > 1.2 and change.fresh.all()


def test_shared_scales_equal_the_published_double_sum():
    """Equation 9, term by term in Python's integers."""
    for number in (1, 2, 7, 51):
        for opacity in (0.1, 0.5, 0.95):
            shared, factor = shared_opacity_and_scale(
                torch.tensor([opacity], dtype=torch.float64), torch.tensor([number])
            )
            o = 1 - (1 - opacity) ** (1 / number)
            terms = [
                comb(i - 1, k) * (-1) ** k * o ** (k + 1) / (k + 1) ** 0.5
                for i in range(1, number + 1)
                for k in range(i)
            ]
            assert shared.item() == pytest.approx(o, rel=1e-12)
            assert factor.item() == pytest.approx(opacity / sum(terms), rel=1e-9)


@pytest.mark.parametrize("seed", range(4))
def test_dead_splats_move_onto_living_ones(seed: int):
    parameters = made.cloud(200, seed=seed)
    dead = torch.rand(200, generator=torch.Generator().manual_seed(seed)) < 0.3
    parameters["logits"][dead] = -9.0
    change = relocate(parameters, dead, torch.Generator().manual_seed(seed))
    assert len(change.source) == 200
    alive = ~dead
    assert alive[change.source].all() and torch.equal(change.source[alive], alive.nonzero().squeeze(1))
    torch.testing.assert_close(change.parameters["means"], parameters["means"][change.source])
    shared = torch.bincount(change.source, minlength=200)[change.source] > 1
    assert torch.equal(change.fresh, shared) and shared[dead].all()
    for name, value in change.parameters.items():
        assert torch.equal(value[~shared], parameters[name][change.source][~shared])
    again = relocate(parameters, dead, torch.Generator().manual_seed(seed))
    assert torch.equal(again.source, change.source)


def test_opaque_splats_are_copied_more_often():
    parameters = made.cloud(2)
    parameters["logits"] = torch.logit(torch.tensor([0.9, 0.1]).double())
    change = grow(parameters, 1000, 0.005, torch.Generator().manual_seed(0))
    assert 0.87 < (change.source[2:] == 0).double().mean() < 0.93


def test_an_object_of_faint_splats_does_not_vanish():
    """Nearly all are below the threshold: only a quarter moves, the faintest, so most of the light stays."""
    parameters = made.cloud(400)
    rng = torch.Generator().manual_seed(0)
    parameters["logits"] = torch.logit(0.02 + 0.04 * torch.rand(400, generator=rng, dtype=torch.float64))
    config = RelocationConfig(cap=400, min_opacity=0.055, growth=0)
    change = relocate_and_grow(parameters, config, 1.0, torch.Generator().manual_seed(0))
    before, after = (torch.sigmoid(p["logits"]).sum() for p in (parameters, change.parameters))
    assert after > 0.7 * before
    moved = change.source != torch.arange(400)
    assert moved.sum() <= 100 and parameters["logits"][moved].max() < parameters["logits"].median()


def test_if_all_are_dead_nothing_moves():
    parameters = made.cloud(20)
    rng = torch.Generator().manual_seed(0)
    change = relocate(parameters, torch.ones(20, dtype=torch.bool), rng)
    assert torch.equal(change.source, torch.arange(20)) and not change.fresh.any()
    parameters["logits"].fill_(-20)
    change = relocate_and_grow(parameters, RelocationConfig(), 1.0, rng)
    assert torch.equal(change.source, torch.arange(20))


@pytest.mark.parametrize(("cap", "start"), [(150, 100), (101, 100), (100, 100), (100, 130), (1, 1)])
def test_the_cap_is_never_exceeded(cap: int, start: int):
    config, rng = RelocationConfig(cap=cap), torch.Generator().manual_seed(0)
    parameters = made.cloud(start)
    for _ in range(20):
        before = len(parameters["logits"])
        parameters = relocate_and_grow(parameters, config, 1.0, rng).parameters
        assert before <= len(parameters["logits"]) <= max(cap, start)
    assert len(parameters["logits"]) == max(cap, start)
    assert all(value.isfinite().all() and len(value) == max(cap, start) for value in parameters.values())


def test_floaters_and_splats_outside_the_ball_are_stray():
    parameters = made.cloud(300)
    parameters["means"][7] = torch.tensor([0.0, 0.0, 0.95])
    parameters["means"][8:12] = torch.tensor([0.0, 1.2, 0.0])  # together, but outside
    parameters["means"][12] = torch.nan
    assert strays(parameters, 1.0).nonzero().squeeze(1).tolist() == [7, 8, 9, 10, 11, 12]
    change = relocate_and_grow(parameters, RelocationConfig(cap=300), 1.0, torch.Generator().manual_seed(0))
    assert change.parameters["means"].norm(dim=-1).max() < 0.6


def test_noise_moves_transparent_splats_along_their_axes():
    parameters = {name: value.repeat_interleave(4000, 0) for name, value in made.cloud(2).items()}
    parameters["logits"][:4000], parameters["logits"][4000:] = -9.0, 2.0
    moves = noisy_means(parameters, 3.0, torch.Generator().manual_seed(0)) - parameters["means"]
    assert moves[4000:].abs().max() < 1e-12
    axes = rotation_matrices(parameters["quaternions"][0]) * parameters["log_scales"][0].exp()
    strength = 3.0 * torch.sigmoid(-100 * (opacities_of(parameters)[0] - 0.005))
    expected = axes @ axes.T * strength
    expected = expected @ expected
    assert (torch.cov(moves[:4000].T) - expected).norm() < 0.1 * expected.norm()
