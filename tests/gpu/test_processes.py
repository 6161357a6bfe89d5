"""A process group of one process, with NCCL on a GPU, under every strategy. `make test ARGS="-m gpu"`."""

import importlib.util
import json
import os
import subprocess
import sys

import pytest
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from amortized.parallel import World
from tests.tiny_sd import make_tiny_sd
from tests.training.toy import log_lines

pytestmark = pytest.mark.gpu


def launch(folder, world: World, settings: dict) -> None:
    # conftest.py sets DS_ACCELERATOR=cpu for the other tests.
    environment = {key: value for key, value in os.environ.items() if key != "DS_ACCELERATOR"}
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=1"]
    launcher.append("--local-addr=127.0.0.1")  # without a network the host name may not resolve
    worker = ["-m", "tests.training.toy", str(folder), json.dumps(settings), world.device.type]
    done = subprocess.run([*launcher, *worker], env=environment, capture_output=True, text=True, timeout=80)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2", "zero1", "zero2", "zero3"])
def test_a_single_process_trains_with_every_strategy(world: World, tmp_path, strategy: str):
    if world.device.type != "cuda":
        pytest.skip("on a CPU the slow tests launch processes")
    if strategy.startswith("zero") and importlib.util.find_spec("deepspeed") is None:
        pytest.skip("deepspeed is not installed")
    launch(tmp_path, world, {"steps": 3, "strategy": strategy})
    assert log_lines(tmp_path)[-1]["step"] == 3


def test_a_run_with_a_sharded_denoiser_trains(world: World, tmp_path):
    prior = make_tiny_sd(tmp_path / "prior")
    launch(
        tmp_path / "run", world, {"steps": 3, "strategy": "fsdp2", "shard_prior": True, "prior": str(prior)}
    )
    assert log_lines(tmp_path / "run")[-1]["step"] == 3


def test_collectives_of_one_process_and_ddp(world: World):
    """The collectives of a step and of a checkpoint work in a group of one."""
    device, backend = world.device, "nccl" if world.device.type == "cuda" else "gloo"
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    try:
        values = torch.arange(4.0, device=device)
        dist.all_reduce(values)
        (gathered,) = parts = [torch.empty_like(values)]
        dist.all_gather(parts, values)
        assert values.tolist() == gathered.tolist() == [0, 1, 2, 3]
        objects: list[object] = [None]
        dist.all_gather_object(objects, {"a": 1})
        assert objects == [{"a": 1}]
        dist.barrier()
        layer = torch.nn.Linear(4, 1, bias=False).to(device)
        DistributedDataParallel(layer)(values[None]).sum().backward()
        assert layer.weight.grad.tolist() == [[0, 1, 2, 3]]
    finally:
        dist.destroy_process_group()
