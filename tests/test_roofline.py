"""The lower bound of a step, from counted FLOPs and bytes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from amortized.training.metering import Cost
from benchmarks import roofline, sd_steps, sizes

ROOT = Path(__file__).resolve().parents[1]


def cost(flops: float, traffic: float, operations: int, single: float = 0.0) -> Cost:
    return Cost(flops=flops, flops_float32=single, traffic=traffic, operations=operations)


def test_parts_do_not_overlap_and_sum_to_the_step():
    counted = {
        "step": cost(100, 1000, 50),
        "render": cost(10, 100, 5),
        "guidance": cost(60, 500, 20),
        "denoiser": cost(55, 450, 15),
        "backward": cost(20, 200, 10),
    }
    parts = roofline.by_part(counted)
    assert {name: (c["flops"], c["traffic"], c["operations"]) for name, c in parts.items()} == {
        "render": (10, 100, 5),
        "denoiser": (55, 450, 15),
        "guidance": (5, 50, 5),
        "backward": (20, 200, 10),
        "rest": (10, 200, 15),
    }


def test_a_floor_is_the_longer_of_compute_and_memory_time():
    parts = {
        "half": {"flops": 8e12, "flops_float32": 0.0, "traffic": 1e9},
        "single": {"flops": 8e12, "flops_float32": 4e12, "traffic": 1e9},
        "bytes": {"flops": 8e9, "flops_float32": 0.0, "traffic": 6e12},
    }
    assert roofline.floor_seconds(parts, tflops=800.0, tbps=3.0) == pytest.approx(
        {"half": 0.01, "single": 0.015, "bytes": 2.0}
    )


def test_every_case_of_the_steps_is_counted():
    names = dict(zip(sd_steps.PRESETS, roofline.PRESETS, strict=True))
    measured = {(names[case.prior], case.generator, case.prompts) for case in sd_steps.cases((1, 4, 8))}
    assert measured == set(roofline.cases((1, 4, 8)))


COUNTED = """
import json
from benchmarks import roofline
from benchmarks.fake_gpu.pretend import pretend

pretend()
print(json.dumps(roofline.count("sd21", "hyper-ingp", 2)))
"""


def flops_of_unet() -> float:
    """FLOPs of one image, layer by layer.

    Two per weight and output position; in attention, two per token pair and channel for the scores, and again
    for the weighted sum.
    """
    with torch.device("meta"):
        unet = sizes.SD21.networks()["unet"]()
    flops = []

    def layer(module: nn.Module, inputs: tuple, out: torch.Tensor) -> None:
        flops.append(2.0 * module.weight.numel() * out.numel() / module.weight.shape[0])

    def attention(module: nn.Module, inputs: tuple, keywords: dict, out: torch.Tensor) -> None:
        queries, text = inputs[0].shape[1], keywords.get("encoder_hidden_states")
        keys = queries if text is None else text.shape[1]
        flops.append(2 * 2.0 * queries * keys * module.inner_dim)

    for name, module in unet.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.register_forward_hook(layer)
        elif name.endswith(("attn1", "attn2")):
            module.register_forward_hook(attention, with_kwargs=True)
    tensors = (torch.empty(shape, device="meta") for shape in ((1, 4, 64, 64), (1,), (1, 77, 1024)))
    unet(*tensors)
    return sum(flops)


@pytest.mark.slow
def test_stable_diffusion_at_its_published_size():
    """Weights and UNet FLOPs equal an independent count, layer by layer."""
    command = [sys.executable, "-c", COUNTED]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200)
    if "needs a C++ compiler" in done.stderr:
        pytest.skip("the fake GPU needs a C++ compiler")
    assert done.returncode == 0, done.stderr[-2000:]
    counted = json.loads(done.stdout.splitlines()[-1])
    parts, gib = counted["parts"], 2**30
    # 866 + 84 + 340 M weights of 2 bytes; Hyper-iNGP's 12.95 M of 4, with two moments.
    weights = (865.91e6 + 83.65e6 + 340.39e6) * 2 + 12.95e6 * 4 * 3
    assert counted["memory before, GiB"] * gib == pytest.approx(weights, rel=0.02)
    # Two prompts, five branches each: Perp-Neg's four and the one at t'.
    assert parts["denoiser"]["flops"] == pytest.approx(10 * flops_of_unet(), rel=1e-3)
    # The encoder's backward pass costs as much as its forward pass: weights are frozen.
    assert parts["backward"]["flops"] == pytest.approx(parts["encode"]["flops"], rel=0.1)
    assert counted["host waits"] == 1 and 5 < counted["memory, GiB"] < 8
