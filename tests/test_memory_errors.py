"""Running out of memory in any part of a run is one sentence that names the part and what helps."""

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
from amortized.cli import one_sentence_errors
from amortized.memory_errors import ELSEWHERE, PARTS, out_of_memory_message
from tests.tiny_sd import make_tiny_sd

ROOT = Path(__file__).resolve().parents[1]
CUDA = (
    "CUDA out of memory. Tried to allocate 2.50 GiB. GPU 1 has a total capacity of 79.15 GiB of which "
    "1.06 GiB is free. Including non-PyTorch memory, this process has 78.08 GiB memory in use. Of the "
    "allocated memory 76.00 GiB is allocated by PyTorch, and 1.20 GiB is reserved by PyTorch but unallocated."
)
NUMBERS = "on cuda:1: 2.50 GiB asked for, 1.06 GiB of 79.15 GiB free, this process holds 78.08 GiB"
CPU = (
    "[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to "
    "allocate 400000000000 bytes. Error code 12 (Cannot allocate memory)"
)


@pytest.fixture(scope="module")
def prior(tmp_path_factory) -> str:
    return str(make_tiny_sd(tmp_path_factory.mktemp("prior"), prediction_type="v_prediction"))


def words(prior: str, output: Path) -> list[str]:
    small = (
        "steps=2 prompts_per_process=2 render_size=16 preview_prompts=1 preview_every=2 checkpoint_every=2"
    )
    sizes = [f"trainer.{word}" for word in small.split()]
    return ["configs/quickstart.yaml", f"prior={prior}", f"output={output}", "device=cpu", *sizes]


@pytest.fixture(scope="module")
def trained(prior, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "run"
    assert train.main(words(prior, folder)) == 0
    return folder


def lacking(*_: object, **__: object) -> None:
    raise torch.OutOfMemoryError(CUDA)


def said_by(main: Callable[[list[str]], int], arguments: list[str], capsys) -> str:
    capsys.readouterr()
    with pytest.raises(SystemExit) as left:
        main(arguments)
    assert left.value.code == 1
    told = [line for line in capsys.readouterr().err.splitlines() if "error:" in line]
    assert len(told) == 1
    return told[0][told[0].index(f"{main.__module__}.py") :]  # a progress bar stands before it


@pytest.mark.parametrize(
    ("place", "part", "help"),
    [
        ("diffusers.UNet2DConditionModel.from_pretrained", "loading the prior", "prior.dtype=float16"),
        ("transformers.CLIPTextModel.forward", "encoding texts", "prior.text_on_cpu=true"),
        ("generators.hyper_ingp.split_mlp_weights", "the generator", "generator.checkpointing=true"),
        ("amortized.rendering.renderer.camera_rays", "the render", "trainer.render_size"),
        ("diffusers.AutoencoderKL.encode", "the prior's image encoder (VAE)", "prior.offload=true"),
        ("diffusers.UNet2DConditionModel.forward", "the denoiser", "distributed.shard_prior=true"),
        ("amortized.encodings.hash_grid._Lookup.backward", "the backward pass", "bfloat16"),
        ("torch.optim.Adam.step", "the optimizer's step", "distributed.strategy=fsdp2"),
        ("amortized.training.saving.DefaultStager.stage", "the copy of a checkpoint", "fewer processes"),
    ],
)
def test_each_part_of_a_training_is_named(monkeypatch, capsys, prior, tmp_path, place, part, help):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(place, lacking)
    told = said_by(train.main, words(prior, tmp_path), capsys)
    assert told.startswith(f"train.py: error: out of memory in {part} {NUMBERS}; ")
    assert help in told


@pytest.mark.parametrize(
    ("place", "part", "help"),
    [
        ("amortized.rendering.renderer.camera_rays", "a render of the evaluation", "renderer.chunk"),
        ("amortized.evaluation.clip.ClipScorer.preprocess", "the judge's CLIP", "evaluation.clip"),
        ("amortized.evaluation.evaluator.score_truths", "the evaluation", "evaluation.grid"),
    ],
)
def test_each_part_of_an_evaluation_is_named(monkeypatch, capsys, trained, place, part, help):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(place, lacking)
    told = said_by(evaluate.main, [str(trained), "--limit", "1"], capsys)
    assert told.startswith(f"evaluate.py: error: out of memory in {part} {NUMBERS}; ") and help in told


def test_main_memory_that_runs_out_while_the_prior_is_read(monkeypatch, capsys, prior, tmp_path):
    """It is no folder that cannot be loaded."""

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError(CPU)

    monkeypatch.chdir(ROOT)
    monkeypatch.setattr("diffusers.UNet2DConditionModel.from_pretrained", fail)
    told = said_by(train.main, words(prior, tmp_path), capsys)
    assert re.search(
        r"out of memory in loading the prior on main memory: 372.53 GiB asked for, .* GiB of .* GiB free; ",
        told,
    )


def test_what_this_machine_says():
    """A real failure of PyTorch's and of numpy's."""
    np = pytest.importorskip("numpy")
    for make in (lambda: torch.empty(2**50), lambda: np.empty(2**50)):
        with pytest.raises((RuntimeError, MemoryError)) as failed:
            make()
        assert re.match(
            r"out of memory in the run on main memory: [\d.]+ \w+ asked for",
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
def test_errors_of_other_types(error, expected):
    assert (out_of_memory_message(error) or "").startswith(expected)


def test_other_errors_are_none():
    assert out_of_memory_message(RuntimeError("shapes differ")) is None
    assert out_of_memory_message(ValueError("trainer.steps must be at least 1")) is None
    with pytest.raises(RuntimeError, match="shapes differ"), one_sentence_errors("train.py"):
        raise RuntimeError("shapes differ")


def settings_of(owner: type, prefix: str = "") -> set[str]:
    """Dotted names of a config's settings."""
    found = set()
    for field in fields(owner):
        found.add(prefix + field.name)
        inner = field.default_factory() if callable(field.default_factory) else None
        if is_dataclass(inner):
            found |= settings_of(type(inner), f"{prefix}{field.name}.")
    return found


def test_what_helps_are_settings():
    from amortized.priors import PriorConfig

    known = settings_of(train.RunConfig) | settings_of(PriorConfig, "prior.")
    known |= {
        f"generator.{name}"
        for config in map(generators.config_class, generators.GENERATORS)
        for name in settings_of(config)
    }
    for part in (*PARTS, ELSEWHERE):
        named = re.findall(
            r"\b(?:trainer|prior|renderer|evaluation|distributed|generator|text)\.\w+", part.helps
        )
        assert named and set(named) <= known, (part.name, set(named) - known)
    assert memory_errors.ROOT == ROOT
