"""Batches are pure functions of (seed, step, slot)."""

from collections import Counter

import pytest
import torch

from amortized.cameras import CameraConfig, CameraJitter
from amortized.generation import asset_seed, asset_z, z_of
from amortized.monitoring.monitor import batch_digest
from amortized.rendering import BackgroundConfig, PointLightConfig
from amortized.training.batches import BatchSampler, assign_slots
from amortized.training.prompt_order import Shuffle
from amortized.types import Prompt


def make_sampler(**changes) -> BatchSampler:
    settings = {
        "seed": 3,
        "order": Shuffle(5, 3),
        "steps": 100,
        "views": 2,
        "render_size": 4,
        "num_samples": 3,
        "latent_shape": (4, 2, 2),
        "z_dim": 3,
        "seeds_per_prompt": None,
        "cameras": CameraConfig(),
        "background": BackgroundConfig(kind="random-rgb"),
        "point_light": None,
    }
    return BatchSampler(**{**settings, **changes})


@pytest.mark.parametrize("world_size", [1, 2, 3, 8])
@pytest.mark.parametrize("num_parts", [1, 3])
def test_each_slot_is_assigned_exactly_once(world_size, num_parts):
    assigned = [
        slot
        for rank in range(world_size)
        for part in assign_slots(rank, world_size, num_parts, 2)
        for slot in part
    ]
    assert sorted(assigned) == list(range(world_size * num_parts * 2))


def test_a_batch_equals_its_slots_drawn_one_by_one():
    sampler = make_sampler()
    batch = sampler.draw(4, range(6), 24)
    assert batch.cameras.c2w.shape == (6, 2, 4, 4) and batch.stratification.shape == (6, 2 * 16, 3)
    for slot in range(6):
        one = sampler.draw(4, [slot], 24)
        assert one.prompt_indices == [batch.prompt_indices[slot]]
        assert torch.equal(one.cameras.c2w[0], batch.cameras.c2w[slot])
        assert torch.equal(one.background[0], batch.background[slot])
        assert torch.equal(one.guidance.noise, batch.guidance.noise[2 * slot : 2 * slot + 2])
        assert torch.equal(one.guidance.u_timestep, batch.guidance.u_timestep[2 * slot : 2 * slot + 2])
        assert torch.equal(one.digests[0], batch.digests[slot])


def test_steps_slots_and_seeds_have_different_noise():
    noises = [
        make_sampler(seed=seed).draw(step, [slot], step * 6).guidance.noise
        for seed in (3, 4)
        for step in (0, 1)
        for slot in (0, 1)
    ]
    flat = [tuple(noise.flatten().tolist()) for noise in noises]
    assert len(set(flat)) == 8


def test_draws_have_their_distributions():
    batch = make_sampler(views=4, latent_shape=(4, 16, 16)).draw(0, range(64), 0)
    noise = batch.guidance.noise
    assert noise.mean().abs() < 0.02 and abs(noise.std().item() - 1) < 0.02
    assert 0 <= batch.guidance.u_timestep.min() and batch.guidance.u_timestep.max() < 1
    assert abs(batch.guidance.u_timestep.mean().item() - 0.5) < 0.06
    assert Counter(batch.prompt_indices).most_common(1)[0][1] == 13  # 64 slots over 5 prompts: 12 or 13 each


def test_the_digest_depends_on_every_draw_but_not_on_their_order():
    sampler = make_sampler()
    batch = sampler.draw(2, range(4), 8)
    assert batch_digest(batch.digests) == batch_digest(batch.digests.flip(0))
    for other in (
        sampler.draw(3, range(4), 12),
        make_sampler(seed=9).draw(2, range(4), 8),
        sampler.draw(2, range(1, 5), 8),
        make_sampler(order=Shuffle(6, 3)).draw(2, range(4), 8),
        make_sampler(z_dim=2).draw(2, range(4), 8),
    ):
        assert batch_digest(batch.digests) != batch_digest(other.digests)


def test_z_is_new_at_every_visit_or_one_of_a_few_assets():
    unlimited, few = make_sampler(), make_sampler(seeds_per_prompt=2)
    batch = unlimited.draw(0, range(40), 0)
    assert (
        len({tuple(row) for row in batch.z.tolist()}) == 40 and len(set(batch.guidance.seeds.tolist())) == 1
    )
    batch = few.draw(0, range(40), 0)
    assets = {(tuple(z), int(s)) for z, s in zip(batch.z.tolist(), batch.guidance.seeds[::2], strict=True)}
    assert assets == {(tuple(asset_z(3, k, 3).tolist()), asset_seed(3, k)) for k in range(2)}
    # All views of an asset follow one trajectory.
    assert torch.equal(batch.guidance.seeds[::2], batch.guidance.seeds[1::2])
    assert set(few.draw(7, range(40), 280).guidance.seeds.tolist()) == set(batch.guidance.seeds.tolist())


def test_each_image_has_its_key_and_prompt():
    sampler = make_sampler()
    draws = sampler.draw(1, range(6), 6).guidance
    assert len(set(draws.keys.tolist())) == 12
    assert torch.equal(sampler.draw(1, [4], 6).guidance.keys, draws.keys[8:10])
    assert draws.prompts.tolist() == [i for i in sampler.draw(1, range(6), 6).prompt_indices for _ in "ab"]
    assert (
        0 <= draws.u_learned.min() and draws.u_learned.max() < 1 and len(set(draws.u_learned.tolist())) == 12
    )


def test_z_for_inference_is_that_of_an_asset_or_depends_on_the_prompt():
    prompts = [Prompt(id=name, text=name) for name in "ab"]
    z = z_of(prompts, 3, 5, None)
    assert torch.equal(z[1:], z_of(prompts[1:], 3, 5, None)) and not torch.equal(z[0], z[1])
    assert not torch.equal(z, z_of(prompts, 3, 5, None, number=1))
    for number in range(3):
        expected = asset_z(5, number % 2, 3)
        assert torch.equal(z_of(prompts, 3, 5, 2, number), torch.stack([expected, expected]))


JITTER = CameraConfig(jitter=CameraJitter(position=0.1, center=0.2, up=0.02))
LIGHT = PointLightConfig(start=0.0, share=0.9)


@pytest.mark.parametrize("changes", [{"cameras": JITTER}, {"point_light": LIGHT}])
def test_optional_draws_change_no_other_draw(changes):
    plain, changed = make_sampler().draw(4, range(6), 24), make_sampler(**changes).draw(4, range(6), 24)
    for name in ("background", "show_environment", "stratification", "z"):
        assert torch.equal(getattr(plain, name), getattr(changed, name)), name
    for name, value in vars(plain.guidance).items():
        assert torch.equal(value, getattr(changed.guidance, name)), name
    assert torch.equal(plain.cameras.azimuth_deg, changed.cameras.azimuth_deg)
    assert torch.equal(plain.cameras.c2w, changed.cameras.c2w) == ("cameras" not in changes)
    assert plain.lights is None and not torch.equal(plain.digests, changed.digests)


def test_jitter_and_lights_of_a_batch_equal_those_of_its_slots():
    sampler = make_sampler(cameras=JITTER, point_light=LIGHT)
    batch = sampler.draw(4, range(6), 24)
    for slot in range(6):
        one = sampler.draw(4, [slot], 24)
        assert torch.equal(one.cameras.c2w[0], batch.cameras.c2w[slot])
        assert torch.equal(one.digests[0], batch.digests[slot])
        for name, value in vars(batch.lights).items():
            assert one.lights is None or torch.equal(getattr(one.lights, name)[0], value[slot])
    assert not torch.equal(sampler.draw(5, range(6), 30).cameras.c2w, batch.cameras.c2w)


@pytest.mark.parametrize("step", [0, 39, 40, 99])
def test_the_number_of_rays_follows_the_render_size(step):
    """All that is drawn before the stratification is that of a run with a fixed size."""
    scheduled, fixed = make_sampler(render_size=(4, 0.4, 6)), make_sampler()
    batch, plain = scheduled.draw(step, range(3), 3 * step), fixed.draw(step, range(3), 3 * step)
    size = 4 if step < 40 else 6
    assert batch.stratification.shape == (3, 2 * size**2, 3)
    assert torch.equal(batch.cameras.c2w, plain.cameras.c2w)
    assert torch.equal(batch.guidance.noise, plain.guidance.noise)
    assert torch.equal(batch.z, plain.z) and torch.equal(batch.digests, plain.digests)


def test_unstratified_rays_draw_nothing():
    assert make_sampler(num_samples=0).draw(0, range(3), 0).stratification is None


def test_camera_ranges_follow_the_step():
    sampler = make_sampler(cameras=CameraConfig(distance=((5.0, 3.0), (5.0, 3.0))))
    for step in (0, 50, 100):
        distance = sampler.draw(step, range(4), 4 * step).cameras.distance
        torch.testing.assert_close(distance, torch.full_like(distance, 5 - 2 * step / 100))
