"""The hash grid against published sizes, hand-computed rows and a slow point-by-point reference."""

import ctypes
import ctypes.util
import itertools
import math

import pytest
import torch

from amortized.encodings import HashGrid, HashGridConfig
from amortized.encodings import hash_grid as module

SMALL = HashGridConfig(
    num_levels=4, features_per_level=4, log2_table_size=11, base_resolution=4, growth=10 ** (1 / 3)
)


def random_grid(config: HashGridConfig) -> HashGrid:
    grid = HashGrid(config)
    torch.manual_seed(1)
    with torch.no_grad():
        grid.table.normal_()
    return grid.double()


def float32(number: float) -> float:
    """Round a number to float32."""
    return ctypes.c_float(number).value


def reference(grid: HashGrid, points: torch.Tensor) -> torch.Tensor:
    """Return features [N, L * F] of points [N, 3], one by one."""
    table = grid.table.tolist()
    return torch.tensor(
        [reference_point(grid.config, table, point) for point in points.tolist()], dtype=torch.float64
    )


def reference_point(config: HashGridConfig, table: list[list[float]], point: list[float]) -> list[float]:
    """Return the features of one point in plain Python, by the published rules."""
    features: list[float] = []
    offset = 0
    for level in range(config.num_levels):
        power = float32(2 ** float32(level * float32(math.log2(float32(config.growth)))))
        scale = float32(float32(power * config.base_resolution) - 1)
        resolution = math.ceil(config.base_resolution * config.growth**level - 1 - 1e-6) + 1
        size = min((resolution**3 + 7) // 8 * 8, 2**config.log2_table_size)
        position = [x * scale + 0.5 for x in point]
        cell = [math.floor(x) for x in position]
        total = [0.0] * config.features_per_level
        for corner in itertools.product((0, 1), repeat=3):
            x, y, z = (c + d for c, d in zip(cell, corner, strict=True))
            if resolution**3 <= 2**config.log2_table_size:
                row = x + y * resolution + z * resolution**2
            else:
                row = (x * 1 ^ y * 2654435761 ^ z * 805459861) % 2**32
            weight = math.prod(
                p - c if d else 1 - (p - c) for p, c, d in zip(position, cell, corner, strict=True)
            )
            for k in range(config.features_per_level):
                total[k] += weight * table[offset + row % size][k]
        features += total
        offset += size
    return features


def test_published_parameter_count():
    levels = module.grid_levels(HashGridConfig())
    assert levels[-1].offset + levels[-1].size == 12_599_920 // 2
    assert [level.resolution for level in levels[:3]] == [16, 24, 34]
    assert levels[-1].resolution == 4096
    assert [level.dense for level in levels[:6]] == [True] * 5 + [False]  # 71^3 <= 2^19 < 102^3
    assert all(level.offset % 8 == 0 for level in levels)


def test_scales_are_those_of_a_c_program_in_float32():
    """tiny-cuda-nn's exp2f(level * log2f(growth)) * base - 1; a C library may be off by one float32."""
    assert module.grid_levels(HashGridConfig())[-1].scale == 4094.99853515625
    library = ctypes.CDLL(ctypes.util.find_library("m"))
    exp2f, log2f = library.exp2f, library.log2f
    for function in (exp2f, log2f):
        function.restype, function.argtypes = ctypes.c_float, [ctypes.c_float]
    for growth in (1.0, 1.3819, 1.4473, 1.447269237440378, 1.71, 2.0, 10 ** (1 / 3)):
        for number, level in enumerate(module.grid_levels(HashGridConfig(growth=growth, num_levels=12))):
            expected = float32(exp2f(number * log2f(growth)) * 16) - 1
            assert level.scale == pytest.approx(expected, rel=2**-23)
            assert level.scale == float32(level.scale)


def test_rounded_scales_change_no_table():
    """Tables of earlier exports fit: resolutions come from the scale that is not rounded."""
    for growth in (1.25, 1.5, 1.71, 2 ** (1 / 2), 5 ** (1 / 3), 256 ** (1 / 15)):
        config = HashGridConfig(num_levels=16, growth=growth)
        for number, level in enumerate(module.grid_levels(config)):
            exact = 16 * growth**number - 1
            assert level.resolution == math.ceil(exact - 1e-6) + 1
            assert level.scale == pytest.approx(exact, rel=4e-6)


def test_table_initialization():
    table = HashGrid(SMALL).table
    assert table.dtype == torch.float32
    assert table.abs().max() <= 1e-4
    assert table.std().item() == pytest.approx(1e-4 / math.sqrt(3), rel=0.05)


def test_rows_equal_hand_computed():
    dense = module.GridLevel(scale=7.0, resolution=8, offset=100, size=512)
    # 0.5 * 7 + 0.5 = 4.0: corners 4 and 5, all weight on the lower one; z varies slowest.
    rows, weights = module.corners(torch.tensor([[0.5], [0.5], [0.5]]), dense)
    assert rows[0].item() == 100 + 4 + 4 * 8 + 4 * 64
    assert rows[1].item() == rows[0].item() + 1  # x is the fastest corner
    assert rows[7].item() == 100 + 5 + 5 * 8 + 5 * 64
    assert weights[:, 0].tolist() == [1, 0, 0, 0, 0, 0, 0, 0]
    hashed = module.GridLevel(scale=39.0, resolution=40, offset=8, size=2**15)
    rows, _ = module.corners(torch.tensor([[0.25], [0.5], [1.0]]), hashed)  # cells 10, 20, 39
    assert rows[0].item() == 8 + ((10 ^ 20 * 2654435761 ^ 39 * 805459861) & 0x7FFF)
    assert rows[7].item() == 8 + ((11 ^ 21 * 2654435761 ^ 40 * 805459861) & 0x7FFF)


@pytest.mark.parametrize("through_points", [False, True])
def test_equals_reference(through_points: bool):
    grid = random_grid(SMALL)
    assert [level.dense for level in grid.levels] == [True, True, False, False]
    points = torch.rand(40, 3, dtype=torch.float64)
    points[:3] = torch.tensor([[0.0, 0.0, 0.0], [1.0, 1.0, 1.0], [0.0, 1.0, 0.5]])
    expected = reference(grid, points)
    features = grid(points.requires_grad_(through_points))
    torch.testing.assert_close(features, expected, rtol=0, atol=1e-12)


def test_published_levels_equal_reference():
    """Large tables and coordinates up to 4096: int32 products must wrap as uint32."""
    torch.manual_seed(0)
    config = HashGridConfig(features_per_level=1, log2_table_size=14)
    grid = random_grid(config)
    points = torch.rand(11, 3, dtype=torch.float64)
    expected = reference(grid, points)
    torch.testing.assert_close(grid(points), expected, rtol=0, atol=1e-12)


def test_table_gradient_equals_autograd_and_adjoint(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "CPU_CHUNK", 7)  # several chunks, the last one short
    grid = random_grid(SMALL)
    points = torch.rand(2, 15, 3, dtype=torch.float64)
    seed = torch.randn(2, 15, 16, dtype=torch.float64)
    (fast,) = torch.autograd.grad(grid(points), grid.table, seed)
    (plain,) = torch.autograd.grad(grid(points.requires_grad_()), grid.table, seed)
    torch.testing.assert_close(fast, plain, rtol=1e-12, atol=1e-12)
    # Features are linear in the table, so <grid(x; v), seed> = <v, gradient> for any table v.
    with torch.no_grad():
        grid.table.copy_(direction := torch.randn_like(grid.table))
        product = (grid(points) * seed).sum()
    torch.testing.assert_close((direction * fast).sum(), product, rtol=1e-12, atol=1e-12)


def test_point_gradient_equals_finite_differences():
    grid = random_grid(SMALL)
    points = 0.1 + 0.8 * torch.rand(20, 3, dtype=torch.float64)
    seed = torch.randn(20, 16, dtype=torch.float64)
    (gradient,) = torch.autograd.grad((grid(points.requires_grad_()) * seed).sum(), points)
    step = 1e-7
    for axis in range(3):
        offset = step * torch.eye(3, dtype=torch.float64)[axis]
        with torch.no_grad():
            slope = ((grid(points + offset) - grid(points - offset)) * seed).sum(dim=-1) / (2 * step)
        torch.testing.assert_close(gradient[:, axis], slope, rtol=1e-5, atol=1e-5)


def test_float32_and_points_outside_box():
    grid = random_grid(SMALL)
    points = torch.rand(100, 3)
    exact = grid(points.double())
    torch.testing.assert_close(grid.float()(points), exact.float(), rtol=0, atol=1e-4)
    outside = torch.tensor([[-0.3, 0.5, 2.0]])
    assert torch.equal(grid(outside), grid(outside.clamp(0, 1)))
    assert grid(torch.empty(2, 0, 3)).shape == (2, 0, 16)


@pytest.mark.parametrize(
    ("setting", "value"),
    [("num_levels", 0), ("features_per_level", 0), ("log2_table_size", 2), ("growth", 0.5)],
)
def test_bad_sizes_raise(setting: str, value: float):
    with pytest.raises(ValueError, match=setting):
        HashGridConfig(**{setting: value})


@pytest.mark.parametrize("through_points", [False, True])
def test_levels_open_over_the_training_and_closed_ones_get_no_gradient(through_points: bool):
    """The published schedule: 8 of 16 levels, one more every 500 of 10,000 steps from step 2,000."""
    config = HashGridConfig(
        num_levels=16, log2_table_size=6, base_resolution=2, growth=1.3, open_levels=(0.2, 8, 16, 0.6)
    )
    grid, points = random_grid(config), torch.rand(30, 3, dtype=torch.float64)
    whole = random_grid(HashGridConfig(**{**vars(config), "open_levels": None}))(points)
    for step in (0, 1999, 2000, 2499, 2500, 4321, 5999, 6000, 9999):
        grid.set_progress(step / 10_000)
        is_open = min(8 + max(step - 2000, 0) // 500, 16)
        features = grid(points.requires_grad_(through_points))
        expected = whole.clone()
        expected[:, is_open * config.features_per_level :] = 0
        torch.testing.assert_close(features, expected, rtol=0, atol=1e-12)
        (gradient,) = torch.autograd.grad(features.sum(), grid.table)
        for number, level in enumerate(grid.levels):
            rows = gradient[level.offset : level.offset + level.size]
            assert (rows.abs().sum() > 0) == (number < is_open)


def test_open_levels_are_stored_and_a_grid_without_them_stores_nothing():
    grid = random_grid(HashGridConfig(**{**vars(SMALL), "open_levels": (1.0, 4.0)}))
    grid.set_progress(0.7)
    restored = HashGrid(grid.config).double()
    restored.load_state_dict(grid.state_dict())
    points = torch.rand(5, 3, dtype=torch.float64)
    assert restored.num_open.item() == 3 and torch.equal(restored(points), grid(points))
    assert list(HashGrid(SMALL).state_dict()) == ["table"]
