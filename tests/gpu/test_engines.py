"""A hash grid trained with one engine reads alike in the others. `make test ARGS="-m gpu"` on a GPU."""

import pytest
import torch
from safetensors.torch import load, save

from amortized.encodings import HashGrid, HashGridConfig
from amortized.encodings.engines import installed

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("engine", ["triton", "tiny-cuda-nn"])
def test_a_checkpoint_moves_between_engines(engine: str):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    if not installed(engine):
        pytest.skip(f"{engine} is not installed")
    torch.manual_seed(0)
    trained = HashGrid(HashGridConfig(engine="torch")).cuda()
    torch.nn.init.normal_(trained.table)
    other = HashGrid(HashGridConfig(engine=engine)).cuda()
    other.load_state_dict(load(save(trained.state_dict())))
    assert other.engine == engine
    points = torch.rand(100_003, 3, device="cuda")
    expected, got = trained(points), other(points)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-3)
    seed = torch.randn_like(expected)
    expected.backward(seed)
    got.backward(seed)
    torch.testing.assert_close(other.table.grad, trained.table.grad, rtol=1e-3, atol=1e-3)
