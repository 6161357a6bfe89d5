"""Training steps on fake CUDA tensors: devices and types fit, and the host waits once a step at most.

Nothing is computed on the GPU, so that any machine with a C++ compiler runs them. What numbers come out is
for `tests/gpu`.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from amortized.guidance import METHODS
from benchmarks.sd_steps import TINY, TINY_RUN

ROOT = Path(__file__).resolve().parents[2]
MOST_WAITS = 1  # for the number of rays to render, which shapes tensors

SMALL_RUN = ("corpus=shapes16", *TINY_RUN)
LEARNED = {"lods-embedding": ("null", "prompt-nulls", "adapter"), "lods-lora": ("lora",), "vsd": ("lora",)}


def case(name: str, *overrides: str, generator: str = "hyper-ingp", views: int = 1) -> dict:
    """A small run of one prompt; with 4 views, of a multi-view prior."""
    return {
        "name": name,
        "preset": "hyper-ingp-sd21.yaml" if views == 1 else "hyper-ingp-mvdream.yaml",
        "prior": "tiny-sd" if views == 1 else "tiny-mvdream",
        "overrides": [f"generator.name={generator}", *TINY[generator], *SMALL_RUN, *overrides],
    }


def method_cases() -> list[dict]:
    found = []
    for method in METHODS:
        for kind in LEARNED.get(method, (None,)):
            own = [f"guidance.method={method}"] + ([] if kind is None else [f"guidance.learned.kind={kind}"])
            found.append(case(" ".join(filter(None, (method, kind))), *own))
    return found


def batch_cases() -> list[dict]:
    found = []
    for method in ("asd", "sdi", "dsd", "lods-lora"):
        own = f"guidance.method={method}"
        found.append(case(f"{method} four views", own, views=4))
        found.append(case(f"{method} three prompts", own, "trainer.prompts_per_process=3"))
    return found


def option_cases() -> list[dict]:
    image = ("guidance.method=sdi", "guidance.residual=image")
    options = {
        "residual=image": image,
        "residual=image float32": (*image, "prior.dtype=float32"),
        "bfloat16 prior": ("prior.dtype=bfloat16",),
        "float32 prior": ("prior.dtype=float32",),
        "no perp-neg": ("views.perp_neg=false",),
        "numbered directions": ("views.perp_neg=false", "views.direction_step_deg=10"),
        "negatives": ("views.negatives=[ugly]", "views.negative_weights=[-1]"),
        "accumulation": ("trainer.gradient_accumulation_steps=2",),
        "average and clipping": ("trainer.ema_decay=0.99", "optimizer.clip_norm=1", "optimizer.name=adamw"),
        "adan": ("optimizer.name=adan", "optimizer.betas=[0.98, 0.92, 0.99]"),
        "shading": ("renderer.shading.kind=lambert",),
        "all regularizers": (
            "losses.orient=1", "losses.z_variance=1", "losses.opacity_floor=1", "losses.opacity_cap=1",
            "losses.inside=1",
        ),
        "the field looked at first": ("renderer.lattice=0",),
        "one pass": ("renderer.num_fine=0",),
        "torch's lookup": ("generator.grid.engine=torch",),
        "tokens and z": ("generator.text=tokens", "generator.z_dim=4", "trainer.seeds_per_prompt=2"),
        "hash surroundings": ("environment.name=hash",),
        "shared surroundings": ("environment.name=sh",),
        "two views a prompt": ("trainer.views_per_prompt=2", "trainer.prompts_per_process=2"),
    }  # fmt: skip
    return [case(name, *overrides) for name, overrides in options.items()]


def generator_cases() -> list[dict]:
    found = []
    for generator in TINY:
        for precision, prompts in (("float32", 1), ("bfloat16", 2)):
            own = [f"trainer.precision={precision}", f"trainer.prompts_per_process={prompts}"]
            name = f"{generator} {precision} P={prompts}"
            found.append(case(name, *own, generator=generator))
            if generator != "hyper-ingp":
                own.append("generator.checkpointing=true")
                found.append(case(f"{name} checkpointed", *own, generator=generator))
    return found


GROUPS = {
    "methods": method_cases,
    "batches": batch_cases,
    "options": option_cases,
    "generators": generator_cases,
}
# A forward pass of each of two parts; and, without a lattice, a cut to the rays that hit the bounding ball.
TWICE = ("accumulation", "the field looked at first")


def run(cases: list[dict]) -> list[dict]:
    if shutil.which("g++") is None:
        pytest.skip("the fake GPU needs a C++ compiler")
    done = subprocess.run(
        [sys.executable, "-m", "tests.fake_cuda.run"], cwd=ROOT, input=json.dumps(cases), capture_output=True,
        text=True, timeout=280,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


@pytest.mark.parametrize("group", GROUPS)
def test_steps_fit_the_device_and_wait_once(group: str):
    cases = GROUPS[group]()
    found = run(cases)
    assert [one["name"] for one in found] == [one["name"] for one in cases]
    broken = {one["name"]: one["error"] for one in found if "error" in one}
    assert not broken, json.dumps(broken, indent=1)
    waiting = {
        one["name"]: one["waits"]
        for one in found
        if sum(times for *_, times in one["waits"]) > MOST_WAITS + (one["name"] in TWICE)
    }
    assert not waiting, json.dumps(waiting, indent=1)
    assert all(one["operations"] > 300 and one["flops"] > 0 and one["peak"] > 0 for one in found)


WAITING = """
import torch
from benchmarks.fake_gpu.machine import FakeGPU
from benchmarks.fake_gpu.pretend import pretend

pretend()
gpu = FakeGPU(integer=7)
host = torch.arange(4.0)
with gpu, gpu.section("all"):
    a = torch.randn(4, 4, device="cuda", requires_grad=True)
    sent = host.pin_memory().to("cuda", non_blocking=True)  # no wait
    loss = (a @ sent[:, None]).sum()
    loss.backward()
    assert not gpu.waits, gpu.waits
    assert a.grad.device.type == "cuda" and gpu.costs["all"].flops == 2 * 2 * 16
    assert int(a.long().sum()) == 7 and loss.item() == 0.5
    host.to("cuda"), host.to("cuda", non_blocking=True), a.new_tensor([1.0])
    a.detach().cpu(), a.detach().tolist()
    a[torch.tensor([1, 2])], a[a[:, 0] > 0], (a > 0).nonzero()
    try:
        a + host
    except Exception as error:
        assert "device" in str(error).lower(), error
    else:
        raise AssertionError("tensors of two devices were added")
kinds = {}
for (kind, place), times in gpu.waits.items():
    kinds[kind] = kinds.get(kind, 0) + times
assert kinds == {"read": 3, "to GPU": 3, "to CPU": 1, "index": 1, "shape": 2}, gpu.waits
held = gpu.live
del a, sent, loss
assert gpu.live < held
"""


def test_the_fake_gpu_sees_every_kind_of_wait():
    if shutil.which("g++") is None:
        pytest.skip("the fake GPU needs a C++ compiler")
    done = subprocess.run(
        [sys.executable, "-c", WAITING], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr[-3000:]
