"""An out-of-memory error in any stage of a run becomes one sentence with the stage and a remedy."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from pathlib import Path

import pytest
import torch

import evaluate
import generators
import train
from amortized import memory_errors
from amortized.commands.compose import RunConfig
from amortized.memory_errors import OTHER_STAGE, STAGES, out_of_memory_message
from tests.tiny_sd import make_tiny_sd

ROOT = Path(__file__).resolve().parents[1]
CUDA = (
    "CUDA out of memory. Tried to allocate 2.50 GiB. GPU 1 has a total capacity of 79.15 GiB of which "
    "1.06 GiB is free. Including non-PyTorch memory, this process has 78.08 GiB memory in use. Of the "
    "allocated memory 76.00 GiB is allocated by PyTorch, and 1.20 GiB is reserved by PyTorch but unallocated."
)
NUMBERS = "on cuda:1: 2.50 GiB requested, 1.06 GiB of 79.15 GiB free, this process uses 78.08 GiB"
CPU = (
    "[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to "
    "allocate 400000000000 bytes. Error code 12 (Cannot allocate memory)"
)


@pytest.fixture(scope="module")
def prior(tmp_path_factory) -> str:
    return str(make_tiny_sd(tmp_path_factory.mktemp("prior"), prediction_type="v_prediction"))


def arguments(prior: str, output: Path) -> list[str]:
    """Arguments of train.py for a run of two small steps."""
    small = (
        "steps=2 prompts_per_process=2 render_size=16 preview_prompts=1 preview_every=2 checkpoint_every=2"
    )
    sizes = [f"trainer.{setting}" for setting in small.split()]
    return ["configs/quickstart.yaml", f"prior={prior}", f"output={output}", "device=cpu", *sizes]


@pytest.fixture(scope="module")
def trained(prior, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "run"
    assert train.main(arguments(prior, folder)) == 0
    return folder


def run_out(*_: object, **__: object) -> None:
    raise torch.OutOfMemoryError(CUDA)


def error_line(main: Callable[[list[str]], int], arguments: list[str], capsys) -> str:
    """Run a command that must fail with status 1, and return the only error line."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as exited:
        main(arguments)
    assert exited.value.code == 1
    lines = [line for line in capsys.readouterr().err.splitlines() if "error:" in line]
    assert len(lines) == 1
    return lines[0][lines[0].index(f"{main.__module__}.py") :]  # a progress bar may precede it


@pytest.mark.parametrize(
    ("target", "stage", "remedy"),
    [
        ("amortized.priors.networks.load_weights", "loading the prior", "prior.dtype=float16"),
        ("amortized.conditioning.cached_encoder.move_rows", "encoding texts", "prior.text_on_cpu=true"),
        ("generators.hyper_ingp.split_mlp_weights", "the generator", "generator.checkpointing=true"),
        ("amortized.rendering.renderer.camera_rays", "the render", "trainer.render_size"),
        (
            "amortized.priors.autoencoder.Autoencoder._moments",
            "the prior's image encoder (VAE)",
            "prior.offload=true",
        ),
        (
            "amortized.priors.stable_diffusion.StableDiffusionPrior._run_unet",
            "the denoiser",
            "distributed.shard_prior=true",
        ),
        ("amortized.encodings.hash_grid._Lookup.backward", "the backward pass", "bfloat16"),
        ("torch.optim.Adam.step", "the optimizer's step", "distributed.strategy=fsdp2"),
        (
            "amortized.checkpointing.checkpoints.DefaultStager.stage",
            "the copy of a checkpoint",
            "fewer processes",
        ),
    ],
)
def test_each_stage_of_training_is_named(monkeypatch, capsys, prior, tmp_path, target, stage, remedy):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(target, run_out)
    line = error_line(train.main, arguments(prior, tmp_path), capsys)
    assert line.startswith(f"train.py: error: out of memory in {stage} {NUMBERS}; ")
    assert remedy in line


@pytest.mark.parametrize(
    ("target", "stage", "remedy"),
    [
        ("amortized.rendering.renderer.camera_rays", "a render of the evaluation", "renderer.chunk"),
        ("amortized.evaluation.clip.ClipScorer.preprocess", "the judge's CLIP", "evaluation.clip"),
        ("amortized.evaluation.evaluator.score_truths", "the evaluation", "evaluation.grid"),
    ],
)
def test_each_stage_of_evaluation_is_named(monkeypatch, capsys, trained, target, stage, remedy):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(target, run_out)
    line = error_line(evaluate.main, [str(trained), "--limit", "1"], capsys)
    assert line.startswith(f"evaluate.py: error: out of memory in {stage} {NUMBERS}; ") and remedy in line


def test_running_out_of_main_memory_while_loading_the_prior(monkeypatch, capsys, prior, tmp_path):
    """It is not reported as a folder that cannot be loaded."""

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError(CPU)

    monkeypatch.chdir(ROOT)
    monkeypatch.setattr("amortized.priors.networks.load_weights", fail)
    line = error_line(train.main, arguments(prior, tmp_path), capsys)
    assert re.search(
        r"out of memory in loading the prior on main memory: 372.53 GiB requested, .* GiB of .* GiB free; ",
        line,
    )


def test_real_errors_of_torch_and_numpy():
    """Allocations of 2^50 numbers fail on every machine."""
    np = pytest.importorskip("numpy")
    for make in (lambda: torch.empty(2**50), lambda: np.empty(2**50)):
        with pytest.raises((RuntimeError, MemoryError)) as failed:
            make()
        assert re.match(
            r"out of memory in the run on main memory: [\d.]+ \w+ requested",
            out_of_memory_message(failed.value) or "",
        )


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (RuntimeError("CUDA error: out of memory"), "out of memory in the run on the GPU"),
        (
            RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling"),
            "out of memory in the run on the",
        ),
        (MemoryError(), "out of memory in the run on main memory"),
    ],
)
def test_errors_of_other_types_are_recognized(error, expected):
    assert (out_of_memory_message(error) or "").startswith(expected)


def test_other_errors_have_no_message():
    assert out_of_memory_message(RuntimeError("shapes differ")) is None
    assert out_of_memory_message(ValueError("trainer.steps must be at least 1")) is None


def settings_of(owner: type, prefix: str = "") -> set[str]:
    """Return the dotted names of a config's settings."""
    names = set()
    for field in fields(owner):
        names.add(prefix + field.name)
        inner = field.default_factory() if callable(field.default_factory) else None
        if is_dataclass(inner):
            names |= settings_of(type(inner), f"{prefix}{field.name}.")
    return names


def test_remedies_name_existing_settings():
    from amortized.priors import PriorConfig

    known = settings_of(RunConfig) | settings_of(PriorConfig, "prior.")
    known |= {
        f"generator.{name}" for config in generators.GENERATORS.values() for name in settings_of(config)
    }
    for stage in (*STAGES, OTHER_STAGE):
        named = re.findall(
            r"\b(?:trainer|prior|renderer|evaluation|distributed|generator|text)\.\w+", stage.remedy
        )
        assert named and set(named) <= known, (stage.name, set(named) - known)
    assert memory_errors.PROJECT == ROOT
