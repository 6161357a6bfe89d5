"""Run one prompt through each generator at its published size: forward, 4,096 field evaluations, backward.

Each generator runs in a separate process, to measure its peak memory.
"""

from __future__ import annotations

import multiprocessing
import resource
from concurrent.futures import ProcessPoolExecutor

import torch

from amortized.types import TextCondition
from benchmarks.timing import now
from generators import GeneratorConfig
from generators.conv3d import Conv3DConfig
from generators.hyper_ingp import HyperINGPConfig
from generators.triplane_transformer import TriplaneTransformerConfig

TEXT_DIM, NUM_TOKENS, NUM_POINTS = 1024, 77, 4096
SIZES: dict[str, GeneratorConfig] = {
    "Hyper-iNGP": HyperINGPConfig(),
    "3DConv-net, width 1": Conv3DConfig(),
    "3DConv-net, width 1, checkpointed": Conv3DConfig(checkpointing=True),
    "3DConv-net, width 2, checkpointed": Conv3DConfig(width=2.0, checkpointing=True),
    "Triplane-Transformer": TriplaneTransformerConfig(),
    "Triplane-Transformer, checkpointed": TriplaneTransformerConfig(checkpointing=True),
}


def measure(device: torch.device) -> list[dict[str, str | float]]:
    """Return a row per generator."""
    rows: list[dict[str, str | float]] = []
    for name, config in SIZES.items():
        spawn = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(1, mp_context=spawn) as pool:
            rows.append({"generator": name} | pool.submit(once, config, str(device)).result())
    return rows


def once(config: GeneratorConfig, device: str) -> dict[str, float]:
    """Return the parameter count, the times, and the peak memory of the process or the GPU."""
    generator = config.build(TEXT_DIM).to(device)
    text = TextCondition(
        pooled=torch.randn(1, TEXT_DIM, device=device),
        tokens=torch.randn(1, NUM_TOKENS, TEXT_DIM, device=device),
        mask=torch.ones(1, NUM_TOKENS, dtype=torch.bool, device=device),
    )
    points = torch.rand(1, NUM_POINTS, 3, device=device) - 0.5
    start = now()
    sdf, albedo = generator(text).sdf_and_albedo(points)
    middle = now()
    (sdf.sum() + albedo.sum()).backward()
    end = now()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in generator.parameters())
    on_gpu = device.startswith("cuda")
    peak = torch.cuda.max_memory_allocated() / 2**30 if on_gpu else max_resident_gib()
    return {
        "parameters, M": round(sum(p.numel() for p in generator.parameters()) / 1e6, 2),
        "forward, s": round(middle - start, 2),
        "backward, s": round(end - middle, 2),
        "peak, GiB": round(peak, 2),
    }


def max_resident_gib() -> float:
    """Return the peak resident memory of this process, libraries included. Linux reports KiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
