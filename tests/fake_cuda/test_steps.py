"""Training steps on fake CUDA tensors: devices and dtypes match, and the host waits at most once per step.

Fake tensors have no values, so any machine with a C++ compiler runs these tests. `tests/gpu` checks values.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from amortized.commands.compose import RunConfig
from amortized.config import largest_of, load_config
from amortized.guidance import METHODS
from benchmarks.sd_steps import TINY, TINY_RUN

ROOT = Path(__file__).resolve().parents[2]
MAX_WAITS = 1  # for the number of rays to render, which determines shapes

SMALL_RUN = ("corpus=shapes16", *TINY_RUN)
LEARNED = {"lods-embedding": ("null", "prompt-nulls", "adapter"), "lods-lora": ("lora",), "vsd": ("lora",)}


def case(name: str, *overrides: str, generator: str = "hyper-ingp", views: int = 1) -> dict:
    """Return a small run of one prompt; with 4 views, its prior is a multi-view one."""
    return {
        "name": name,
        "preset": "published/asd-sd-hyper-ingp-mg15.yaml" if views == 1 else "hyper-ingp-mvdream.yaml",
        "prior": "tiny-sd" if views == 1 else "tiny-mvdream",
        "overrides": [f"generator.name={generator}", *TINY.get(generator, ()), *SMALL_RUN, *overrides],
    }


def method_cases() -> list[dict]:
    cases = []
    for method in METHODS:
        cases += [
            case(f"{method} {kind}", f"guidance.method={method}", f"guidance.learned.kind={kind}")
            for kind in LEARNED.get(method, ())
        ] or [case(method, f"guidance.method={method}")]
    return cases


def batch_cases() -> list[dict]:
    cases = []
    for method in ("asd", "sdi", "dsd", "lods-lora"):
        override = f"guidance.method={method}"
        cases.append(case(f"{method} four views", override, views=4))
        cases.append(case(f"{method} three prompts", override, "trainer.prompts_per_process=3"))
    return cases


def option_cases() -> list[dict]:
    image_residual = ("guidance.method=sdi", "guidance.residual=image")
    options = {
        "residual=image": image_residual,
        "residual=image float32": (*image_residual, "prior.dtype=float32"),
        "bfloat16 prior": ("prior.dtype=bfloat16",),
        "float32 prior": ("prior.dtype=float32",),
        "no perp-neg": ("views.perp_neg=false",),
        "numbered directions": ("views.perp_neg=false", "views.direction_step_deg=10"),
        "negatives": ("views.negatives=[ugly]", "views.negative_weights=[-1]"),
        "accumulation": ("trainer.gradient_accumulation_steps=2",),
        "ema and clipping": ("trainer.ema_decay=0.99", "optimizer.clip_norm=1", "optimizer.name=adamw"),
        "adan": ("optimizer.name=adan", "optimizer.betas=[0.98, 0.92, 0.99]"),
        "shading": ("renderer.shading.kind=lambert",),
        "point light, jitter, midpoints, render sizes": (
            *("renderer.point_light.start=0", "renderer.point_light.share=1", "renderer.stratified=false"),
            *("cameras.jitter.position=0.1", "trainer.render_size=[16,0.5,24]"),
            *("views.perp_neg=false", "views.interpolate=true"),
        ),
        "all regularizers": (
            "losses.convex=1",
            "losses.tv=1",
            "losses.orient=1",
            "losses.z_variance=1",
            "losses.opacity_floor=1",
            "losses.opacity_cap=1",
            "losses.inside=1",
        ),
        "no lattice": ("renderer.lattice=0",),
        "no fine pass": ("renderer.num_fine=0",),
        "eikonal at samples": ("losses.eikonal_samples=true", "renderer.even_share=0.663"),
        "torch engine": ("generator.grid.engine=torch",),
        "tokens and z": ("generator.text=tokens", "generator.z_dim=4", "trainer.seeds_per_prompt=2"),
        "hash environment": ("environment.name=hash",),
        "spherical harmonics environment": ("environment.name=sh",),
        "two views per prompt": ("trainer.views_per_prompt=2", "trainer.prompts_per_process=2"),
    }
    return [case(name, *overrides) for name, overrides in options.items()]


def generator_cases() -> list[dict]:
    cases = []
    for generator in TINY:
        for precision, prompts in (("float32", 1), ("bfloat16", 2)):
            overrides = [f"trainer.precision={precision}", f"trainer.prompts_per_process={prompts}"]
            name = f"{generator} {precision} P={prompts}"
            cases.append(case(name, *overrides, generator=generator))
            if generator != "hyper-ingp":
                overrides.append("generator.checkpointing=true")
                cases.append(case(f"{name} checkpointing", *overrides, generator=generator))
    ingp = ("prompt=a cube", "generator.name=ingp", "generator.grid.open_levels=[1, 2]")
    cases.append(case("ingp sdf", *ingp, "losses.orient=1"))
    density = ("generator.geometry=density", "losses.eikonal=0", "environment.name=shared-hash")
    cases.append(case("ingp density", *ingp, *density, "losses.orient=1"))
    splats = ("prompt=a cube", "losses.eikonal=0", "trainer.ema_decay=null", "environment.name=sh")
    cases.append(case("splats", *splats, "trainer.views_per_prompt=3", generator="splats"))
    return cases


def published_cases(of_one_object: bool) -> list[dict]:
    """Every published run, of one object or of a corpus, at its full size and largest resolution."""
    cases = []
    for path in sorted((ROOT / "configs/published").glob("*.yaml")):
        config = load_config(RunConfig, path)
        if (config.prompt is not None) != of_one_object:
            continue
        # Each forward pass waits once, and again without a lattice.
        waits = config.trainer.gradient_accumulation_steps * (1 if config.renderer.lattice else 2)
        cases.append(
            {
                "name": path.stem,
                "preset": f"published/{path.name}",
                "prior": "mvdream" if "-mv-" in path.stem else "sd21",
                "overrides": [
                    f"trainer.render_size={largest_of(config.trainer.render_size)}",
                    "corpus=shapes16",
                ],
                "max_waits": waits,
            }
        )
    return cases


GROUPS = {
    "published": lambda: published_cases(True),
    "published corpora": lambda: published_cases(False),
    "methods": method_cases,
    "batches": batch_cases,
    "options": option_cases,
    "generators": generator_cases,
}
# Accumulation has two forward passes. Without a lattice, the renderer first drops the rays that miss the
# bounding ball. Either waits once more.
WAIT_TWICE = ("accumulation", "no lattice")


def run(*command: str, stdin: str = "", timeout: int) -> str:
    """Run Python in a separate process and return its output; skips the test without a C++ compiler."""
    if shutil.which("g++") is None:
        pytest.skip("the fake GPU needs a C++ compiler")
    result = subprocess.run(
        [sys.executable, *command], cwd=ROOT, input=stdin, capture_output=True, text=True, timeout=timeout
    )
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout


# More prompts and views, and larger sizes, take the same way through the code: run by the slow suite.
SLOW = ("batches", "published", "published corpora")
ORDINARY = [pytest.param(group, marks=[pytest.mark.slow] if group in SLOW else []) for group in GROUPS]


@pytest.mark.parametrize("group", ORDINARY)
def test_steps_run_on_device_and_wait_once(group: str):
    cases = GROUPS[group]()
    output = run("-m", "tests.fake_cuda.run", stdin=json.dumps(cases), timeout=280)
    results = [json.loads(line) for line in output.splitlines() if line.startswith("{")]
    assert [result["name"] for result in results] == [case["name"] for case in cases]
    errors = {result["name"]: result["error"] for result in results if "error" in result}
    assert not errors, json.dumps(errors, indent=1)
    allowed = {
        case["name"]: case.get("max_waits", MAX_WAITS + (case["name"] in WAIT_TWICE)) for case in cases
    }
    too_many = {
        result["name"]: result["waits"]
        for result in results
        if sum(count for *_, count in result["waits"]) > allowed[result["name"]]
    }
    assert not too_many, json.dumps(too_many, indent=1)
    assert all(result["operations"] > 300 for result in results)
    assert all(result["flops"] > 0 and result["peak"] > 0 for result in results)


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
        raise AssertionError("added tensors of two devices")
kinds = {}
for (kind, place), count in gpu.waits.items():
    kinds[kind] = kinds.get(kind, 0) + count
assert kinds == {"read": 3, "to GPU": 3, "to CPU": 1, "index": 1, "shape": 2}, gpu.waits
live_before = gpu.live
del a, sent, loss
assert gpu.live < live_before
"""


def test_fake_gpu_detects_every_kind_of_wait():
    run("-c", WAITING, timeout=120)
