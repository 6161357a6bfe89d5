"""Camera conventions against geometry derived by hand."""

import math

import pytest
import torch

from amortized.cameras import (
    SWING_DEG,
    CameraConfig,
    CameraJitter,
    camera_path,
    camera_rays,
    cameras_at,
    cameras_from_uniform,
    jitter_cameras,
    orbit,
    repeat_cameras,
    slice_views,
    take_cameras,
    view_index,
)


def one(azimuth: float, elevation: float, distance: float = 2.0, fovy: float = 60.0):
    values = (azimuth, elevation, distance, fovy)
    azimuth_deg, elevation_deg, distance_, fovy_deg = (
        torch.tensor([[v]], dtype=torch.float64) for v in values
    )
    return cameras_at(
        azimuth_deg=azimuth_deg, elevation_deg=elevation_deg, distance=distance_, fovy_deg=fovy_deg
    )


@pytest.mark.parametrize(
    ("azimuth", "elevation", "position", "right", "up"),
    [
        (0, 0, (2, 0, 0), (0, 1, 0), (0, 0, 1)),  # in front, on +x; its right is +y
        (90, 0, (0, 2, 0), (-1, 0, 0), (0, 0, 1)),
        (180, 0, (-2, 0, 0), (0, -1, 0), (0, 0, 1)),
        (0, 90, (0, 0, 2), (0, 1, 0), (-1, 0, 0)),  # straight above, at the pole
        (0, -90, (0, 0, -2), (0, 1, 0), (1, 0, 0)),
    ],
)
def test_poses_equal_hand_derived(azimuth, elevation, position, right, up):
    c2w = one(azimuth, elevation).c2w[0, 0]
    backward = torch.tensor(position, dtype=torch.float64) / 2
    for column, expected in enumerate((right, up, backward, position)):
        torch.testing.assert_close(
            c2w[:3, column], torch.as_tensor(expected, dtype=torch.float64), atol=1e-12, rtol=0
        )
    assert c2w[3].tolist() == [0, 0, 0, 1]


def test_poses_are_rotations_that_look_at_the_origin():
    u = torch.rand(3, 4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    cameras = cameras_from_uniform(CameraConfig(elevation_deg=(-80, 80)), u)
    rotation, position = cameras.c2w[..., :3, :3], cameras.c2w[..., :3, 3]
    identity = torch.eye(3, dtype=torch.float64).expand(3, 4, 3, 3)
    torch.testing.assert_close(rotation @ rotation.mT, identity)
    torch.testing.assert_close(torch.linalg.det(rotation), torch.ones(3, 4, dtype=torch.float64))
    torch.testing.assert_close(position - cameras.distance[..., None] * rotation[..., 2], 0 * position)
    torch.testing.assert_close(position.norm(dim=-1), cameras.distance)


def test_rays_pass_pixel_centers_from_top_row():
    cameras = one(0, 0, distance=2.0, fovy=90.0)
    rays = camera_rays(cameras, 2, 4)
    assert rays.shape == (1, 2, 4) and rays.origins.shape == rays.directions.shape == (1, 8, 3)
    # At 90 degrees the image plane at distance 1 spans [-1, 1] vertically and [-2, 2] horizontally.
    expected = [(-1.0, y, z) for z in (0.5, -0.5) for y in (-1.5, -0.5, 0.5, 1.5)]
    for direction, point in zip(rays.directions[0], expected, strict=True):
        length = math.sqrt(sum(value**2 for value in point))
        assert direction.tolist() == pytest.approx([value / length for value in point])


def test_rays_are_prompt_then_view_then_row_major():
    cameras = orbit(2, 3, elevation_deg=10, distance=2, fovy_deg=40)
    batched = camera_rays(cameras, 2, 2)
    for prompt in range(2):
        for view in range(3):
            selected = {
                name: value[prompt : prompt + 1, view : view + 1] for name, value in vars(cameras).items()
            }
            single = camera_rays(type(cameras)(**selected), 2, 2)
            rows = slice(4 * view, 4 * view + 4)
            torch.testing.assert_close(batched.directions[prompt, rows], single.directions[0])
            torch.testing.assert_close(batched.origins[prompt, rows], single.origins[0])


def test_sampling_covers_ranges_and_sphere_uniformly():
    u = torch.rand(1, 40_000, 5, generator=torch.Generator().manual_seed(1))
    sphere = cameras_from_uniform(CameraConfig(elevation_deg=(-30, 60), uniform_angle_share=0.0), u)
    angle = cameras_from_uniform(CameraConfig(elevation_deg=(-30, 60), uniform_angle_share=1.0), u)
    # Uniform on the sphere means uniform in sin(elevation).
    assert torch.deg2rad(sphere.elevation_deg).sin().mean().item() == pytest.approx(
        (math.sin(math.radians(-30)) + math.sin(math.radians(60))) / 2, abs=0.01
    )
    assert angle.elevation_deg.mean().item() == pytest.approx(15, abs=0.5)
    for cameras in (sphere, angle):
        assert -30 <= cameras.elevation_deg.min() and cameras.elevation_deg.max() <= 60
        assert 1.0 <= cameras.distance.min() and cameras.distance.max() <= 1.5
        assert 40 <= cameras.fovy_deg.min() and cameras.fovy_deg.max() <= 70
        assert -180 < cameras.azimuth_deg.min() and cameras.azimuth_deg.max() <= 180
        assert cameras.azimuth_deg.mean().abs() < 2


def test_ring_is_evenly_spaced_at_one_elevation():
    u = torch.rand(50, 4, 5, generator=torch.Generator().manual_seed(1))
    ring = cameras_from_uniform(CameraConfig(ring=True, elevation_deg=(0, 30)), u)
    steps = torch.remainder(ring.azimuth_deg - ring.azimuth_deg[:, :1], 360)
    torch.testing.assert_close(steps, torch.tensor([0.0, 90, 180, 270]).expand(50, 4), atol=1e-3, rtol=0)
    for shared in (ring.elevation_deg, ring.distance, ring.fovy_deg):
        assert torch.equal(shared, shared[:, :1].expand(50, 4)) and len(set(shared[:, 0].tolist())) == 50
    independent = cameras_from_uniform(CameraConfig(elevation_deg=(0, 30)), u)
    assert torch.equal(independent.azimuth_deg[:, 0], ring.azimuth_deg[:, 0])  # the first camera is the same


def test_distance_by_field_of_view():
    u = torch.rand(50, 2, 5, generator=torch.Generator().manual_seed(1))
    config = CameraConfig(distance=(0.8, 1.0), fovy_deg=(15, 60), distance_by_fovy=True)
    cameras = cameras_from_uniform(config, u)
    units = cameras.distance * torch.tan(torch.deg2rad(cameras.fovy_deg) / 2)
    assert 0.8 <= units.min() and units.max() <= 1.0 + 1e-6
    assert 1.38 < cameras.distance.min() and cameras.distance.max() < 7.6  # the published range


@pytest.mark.parametrize("by_fovy", [False, True])
def test_the_middle_of_the_ranges_is_a_training_camera(by_fovy: bool):
    config = CameraConfig(distance=(0.8, 1.0), fovy_deg=(15, 60), distance_by_fovy=by_fovy)
    cameras = cameras_from_uniform(config, torch.full((1, 1, 5), 0.5))
    assert config.middle == pytest.approx((cameras.distance.item(), cameras.fovy_deg.item()))


@pytest.mark.parametrize("kind", ["turntable", "orbit", "fixed"])
@pytest.mark.parametrize("num_views", [1, 2, 7, 96])
@pytest.mark.parametrize(("azimuth", "elevation"), [(0.0, 0.0), (170.0, 80.0), (-300.0, -90.0)])
def test_a_path_starts_where_it_should_and_closes(kind, num_views, azimuth, elevation):
    cameras = camera_path(
        kind, num_views, azimuth_deg=azimuth, elevation_deg=elevation, distance=2.5, fovy_deg=40.0
    )
    start = one(azimuth, elevation, 2.5, 40.0)
    torch.testing.assert_close(cameras.c2w[:, :1], start.c2w.float(), rtol=0, atol=1e-5)
    assert cameras.c2w.shape == (1, num_views, 4, 4) and (cameras.fovy_deg == 40).all()
    assert cameras.elevation_deg.abs().max() <= 90
    position = cameras.c2w[0, :, :3, 3].double()
    torch.testing.assert_close(position.norm(dim=-1), torch.full((num_views,), 2.5).double())
    turns = torch.remainder(torch.roll(cameras.azimuth_deg, -1, 1) - cameras.azimuth_deg, 360)
    expected = 0.0 if kind == "fixed" else 360 / num_views % 360
    torch.testing.assert_close(turns, torch.full_like(turns, expected), rtol=0, atol=1e-3)
    swing = cameras.elevation_deg - elevation
    if kind != "orbit":
        assert (swing == 0).all()
    elif num_views == 96:
        limit = min(SWING_DEG, 90 - abs(elevation))
        assert swing.max() == pytest.approx(limit) and swing.min() == pytest.approx(-limit)
        steps = (torch.roll(swing, -1, 1) - swing).abs()  # the step from the last view to the first included
        assert steps.max() <= 2 * math.pi / 96 * limit + 1e-4
        assert (torch.roll(steps, -1, 1) - steps).abs().max() <= (2 * math.pi / 96) ** 2 * limit + 1e-4


def test_a_turntable_is_an_orbit_of_even_steps_and_views_can_be_sliced():
    angles = {"elevation_deg": 20.0, "distance": 2.0, "fovy_deg": 40.0}
    path = camera_path("turntable", 6, azimuth_deg=30.0, **angles)
    ring = orbit(1, 6, start_azimuth_deg=30.0, **angles)
    for name in vars(ring):
        torch.testing.assert_close(getattr(path, name), getattr(ring, name), rtol=0, atol=1e-4)
        part = getattr(slice_views(path, slice(2, 4)), name)
        assert torch.equal(part, getattr(path, name)[:, 2:4])


def test_take_and_repeat_keep_order():
    cameras = orbit(2, 4, elevation_deg=0, distance=1, fovy_deg=40)
    cameras = cameras_at(
        azimuth_deg=cameras.azimuth_deg + torch.tensor([[0.0], [10.0]]),
        elevation_deg=cameras.elevation_deg,
        distance=cameras.distance,
        fovy_deg=cameras.fovy_deg,
    )
    assert repeat_cameras(cameras, 2).azimuth_deg.tolist() == cameras.azimuth_deg.tolist() * 2
    second = take_cameras(cameras, torch.arange(4, 8), 4)
    assert torch.equal(second.c2w, cameras.c2w[1:]) and second.azimuth_deg.shape == (1, 4)
    selected = take_cameras(cameras, torch.tensor([6, 1]), 1)
    assert selected.azimuth_deg.flatten().tolist() == pytest.approx(
        [cameras.azimuth_deg[1, 2].item(), cameras.azimuth_deg[0, 1].item()]
    )


def test_view_index_by_azimuth_and_elevation():
    azimuth = torch.tensor([[0.0, 44, -44, 46, -90, 134, 136, 180, 0]])
    elevation = torch.tensor([[0.0, 0, 0, 0, 0, 0, 0, 60, 61]])
    ones = torch.ones_like(azimuth)
    cameras = cameras_at(azimuth_deg=azimuth, elevation_deg=elevation, distance=ones, fovy_deg=40 * ones)
    assert view_index(cameras)[0].tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 3]


def test_azimuth_wraps():
    cameras = one(270.0, 0.0)
    assert cameras.azimuth_deg.item() == -90 and one(-180.0, 0.0).azimuth_deg.item() == 180


def test_orbit_does_not_repeat_first_camera():
    cameras = orbit(1, 8, elevation_deg=0, distance=1, fovy_deg=40)
    assert len({round(value) for value in cameras.azimuth_deg[0].tolist()}) == 8


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"distance": (2.0, 1.0)}, r"^distance must be \[low, high\]"),
        ({"distance": (0.0, 1.0)}, "^distance must be positive"),
        ({"fovy_deg": (0.0, 40.0)}, r"^fovy_deg must lie in \(0, 180\)"),
        ({"elevation_deg": (-95.0, 40.0)}, r"^elevation_deg must lie in \[-90, 90\]"),
        ({"uniform_angle_share": 1.5}, r"^uniform_angle_share must lie in \[0, 1\]"),
        ({"distance": ((1.0, 3.0), 2.0)}, r"^distance must be \[low, high\] with low <= high"),
        ({"distance": ((0.5, 1.0, 3.0, 0.6, 1.0, 0.7), 2.0)}, r"^distance must be \[low, high\]"),
        ({"fovy_deg": (40.0, (60.0, 200.0))}, r"^fovy_deg must lie in \(0, 180\)"),
        ({"azimuth_deg": ((1.0, 2.0, 3.0), 180.0)}, "^azimuth_deg: a schedule is a number"),
        ({"ring": True, "jitter": CameraJitter(up=0.1)}, "^jitter would take the views off their ring"),
    ],
)
def test_bad_ranges_raise(changes, message):
    with pytest.raises(ValueError, match=message):
        CameraConfig(**changes)


def test_ranges_grow_over_the_run():
    """At each time of the run the cameras are those of a fixed range, interpolated by hand."""
    config = CameraConfig(
        distance=((5.2, 3.5), (5.5, 5.0)),
        fovy_deg=((0.2, 18.0, 9.0, 0.6), 34.0),
        azimuth_deg=((-80.0, -180.0), (80.0, 180.0)),
    )
    u = torch.rand(2, 50, 5, generator=torch.Generator().manual_seed(2))
    for progress in (0.0, 0.2, 0.35, 0.5, 0.6, 1.0):
        part = min(max((progress - 0.2) / 0.4, 0.0), 1.0)
        fixed = CameraConfig(
            distance=(5.2 - 1.7 * progress, 5.5 - 0.5 * progress),
            fovy_deg=(18.0 - 9.0 * part, 34.0),
            azimuth_deg=(-80.0 - 100.0 * progress, 80.0 + 100.0 * progress),
        )
        cameras, expected = cameras_from_uniform(config, u, progress), cameras_from_uniform(fixed, u)
        for name, value in vars(cameras).items():
            torch.testing.assert_close(value, getattr(expected, name), rtol=1e-5, atol=1e-4)
    assert config.middle == pytest.approx((4.25, 21.5))  # at the end of the run


def jittered(jitter: CameraJitter, elevation: float = 20.0, count: int = 4000):
    generator = torch.Generator().manual_seed(5)
    u = torch.rand(1, count, 3, generator=generator, dtype=torch.float64)
    noise = torch.randn(1, count, 6, generator=generator, dtype=torch.float64)
    start = repeat_cameras(one(30.0, elevation), count)
    start = take_cameras(start, torch.arange(count), count)
    return start, jitter_cameras(start, jitter, u, noise), u, noise


@pytest.mark.parametrize("elevation", [-90.0, -20.0, 0.0, 70.0, 90.0])
def test_no_jitter_changes_no_camera(elevation):
    start, cameras, _, _ = jittered(CameraJitter(), elevation, count=3)
    torch.testing.assert_close(cameras.c2w, start.c2w, rtol=0, atol=1e-7)


def test_a_jittered_camera_looks_from_its_place_at_its_center_with_its_up():
    """Each pose is compared with one derived by Gram-Schmidt, and the noise with its distribution."""
    start, cameras, u, noise = jittered(CameraJitter(position=0.1, center=0.2, up=0.02))
    position, center, up = cameras.c2w[..., :3, 3], 0.2 * noise[..., :3], 0.02 * noise[..., 3:]
    shift = position - start.c2w[..., :3, 3]
    torch.testing.assert_close(shift, 0.2 * (u - 0.5))
    assert shift.abs().max() <= 0.1 and shift.std() == pytest.approx(0.1 / math.sqrt(3), rel=0.03)
    forward = center - position
    forward = forward / forward.norm(dim=-1, keepdim=True)
    torch.testing.assert_close(-cameras.c2w[..., :3, 2], forward)
    up = up + torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64)
    up = up - (up * forward).sum(-1, keepdim=True) * forward
    torch.testing.assert_close(cameras.c2w[..., :3, 1], up / up.norm(dim=-1, keepdim=True))
    rotation = cameras.c2w[..., :3, :3]
    torch.testing.assert_close(torch.linalg.det(rotation), torch.ones(1, 4000, dtype=torch.float64))
    assert torch.equal(cameras.azimuth_deg, start.azimuth_deg)
    assert torch.equal(cameras.distance, start.distance)
