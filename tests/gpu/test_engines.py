"""All hash grid engines agree, forward and backward. Run with `make test ARGS="-m gpu"` on a GPU."""

import pytest
import torch
from safetensors.torch import load, save

from amortized.encodings import HashGrid, HashGridConfig
from amortized.encodings.engines import installed

pytestmark = pytest.mark.gpu
SMALL = {"num_levels": 5, "log2_table_size": 10, "base_resolution": 4, "growth": 1.7}


@pytest.fixture(params=["triton", "tiny-cuda-nn"])
def engine(request: pytest.FixtureRequest, device: torch.device) -> str:
    if device.type != "cuda":
        pytest.skip(f"{request.param} needs a CUDA device")
    if not installed(request.param):
        pytest.skip(f"{request.param} is not installed")
    return request.param


def grid_of(config: HashGridConfig, device: torch.device) -> HashGrid:
    torch.manual_seed(0)
    grid = HashGrid(config)
    torch.nn.init.normal_(grid.table)
    return grid.to(device)


def with_engine(grid: HashGrid, engine: str) -> HashGrid:
    """Return a grid with the same weights and another engine, through a checkpoint."""
    settings = {name: value for name, value in vars(grid.config).items() if name != "engine"}
    other = HashGrid(HashGridConfig(**settings, engine=engine)).to(grid.table.device)
    other.load_state_dict(load(save(grid.state_dict())))
    assert other.engine == engine
    return other


def assert_equal_lookups(one: HashGrid, other: HashGrid, points: torch.Tensor) -> None:
    expected, actual = one(points), other(points)
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-3)
    output_grad = torch.randn_like(expected)
    expected.backward(output_grad)
    actual.backward(output_grad)
    torch.testing.assert_close(other.table.grad, one.table.grad, rtol=1e-3, atol=1e-3)


def test_a_checkpoint_moves_between_engines(engine: str, device: torch.device):
    """At the published size."""
    trained = grid_of(HashGridConfig(engine="torch"), device)
    assert_equal_lookups(trained, with_engine(trained, engine), torch.rand(100_003, 3, device=device))


@pytest.mark.parametrize("features", [1, 2, 4, 8])
def test_every_number_of_features_per_level(engine: str, features: int, device: torch.device):
    grid = grid_of(HashGridConfig(**SMALL, features_per_level=features, engine="torch"), device)
    other = with_engine(grid, engine)
    for num in (1, 257, 4096):
        assert_equal_lookups(grid, other, torch.rand(num, 3, device=device))


def test_gradients_of_two_lookups_add_up(device: torch.device, engine: str):
    grid = with_engine(grid_of(HashGridConfig(**SMALL, engine="torch"), device), engine)
    a, b = torch.rand(2, 1000, 3, device=device)
    grid(torch.cat([a, b])).sum().backward()
    joint_grad = grid.table.grad.clone()
    grid.table.grad = None
    (grid(a).sum() + grid(b).sum()).backward()
    torch.testing.assert_close(grid.table.grad, joint_grad, rtol=1e-3, atol=1e-4)


def test_a_lookup_and_its_gradient_never_wait_for_the_device(engine: str, device: torch.device):
    grid = with_engine(grid_of(HashGridConfig(**SMALL, engine="torch"), device), engine)
    optimizer, points = torch.optim.Adam(grid.parameters(), fused=True), torch.rand(1000, 3, device=device)

    def train_step() -> None:
        grid(points).square().mean().backward()
        optimizer.step()

    train_step()  # compiles kernels and creates the optimizer's state
    torch.cuda.set_sync_debug_mode("error")
    try:
        train_step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_the_torch_engine_equals_plain_indexing(device: torch.device):
    """If points require a gradient, the torch engine indexes under autograd."""
    grid = grid_of(HashGridConfig(**SMALL, engine="torch" if device.type == "cuda" else "auto"), device)
    points = torch.cat([torch.rand(1000, 3), torch.tensor([[0.0, 0.0, 0.0], [1.0, 1.0, 1.0]])]).to(device)
    looked_up, output_grad = grid(points), torch.randn(len(points), grid.config.num_features, device=device)
    (engine_grad,) = torch.autograd.grad(looked_up, grid.table, output_grad)
    indexed = grid(points.requires_grad_())
    (autograd_grad,) = torch.autograd.grad(indexed, grid.table, output_grad)
    torch.testing.assert_close(looked_up, indexed, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(engine_grad, autograd_grad, rtol=1e-4, atol=1e-4)
