"""Choosing a run's device, and the message if that fails; no CUDA device is needed."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch

import evaluate
import train
from amortized import devices
from amortized.devices import ALLOCATOR_VARIABLES
from amortized.parallel import join_world
from amortized.priors import PriorConfig, load_prior
from benchmarks.__main__ import main as bench_main

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def gpus(monkeypatch):
    """A function that simulates a number of GPUs and returns the list of devices set as current."""
    for name in ("LOCAL_RANK", "RANK", "WORLD_SIZE", "CUDA_VISIBLE_DEVICES", *ALLOCATOR_VARIABLES):
        monkeypatch.setenv(name, "")  # so that monkeypatch restores it even if the code sets it
        monkeypatch.delenv(name)

    def simulate(count: int) -> list[torch.device]:
        chosen: list[torch.device] = []
        monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
        monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
        return chosen

    yield simulate
    torch.set_float32_matmul_precision("highest")


@pytest.mark.parametrize(
    ("device", "environment", "expected"),
    [
        ("auto", {}, "cuda:0"),
        ("cuda", {}, "cuda:0"),
        ("cuda:1", {}, "cuda:1"),
        ("cuda", {"LOCAL_RANK": "1"}, "cuda:1"),
        ("auto", {"LOCAL_RANK": "1"}, "cuda:1"),
        ("cuda:1", {"LOCAL_RANK": "0", "WORLD_SIZE": "1"}, "cuda:1"),  # one process, started by a launcher
        ("cpu", {"LOCAL_RANK": "1"}, "cpu"),
    ],
)
def test_the_configured_device_is_used(gpus, monkeypatch, device, environment, expected):
    chosen = gpus(2)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with join_world(device) as world:
        assert str(world.device) == expected
    assert chosen == ([] if expected == "cpu" else [torch.device(expected)])


@pytest.mark.parametrize(
    ("count", "device", "environment", "sentence"),
    [
        (2, "cuda:3", {}, "device=cuda:3, but this machine has 2 CUDA devices: set device=cuda:0 or cuda:1"),
        (8, "cuda:8", {}, "device=cuda:8, but this machine has 8 CUDA devices: set device=cuda:0 to cuda:7"),
        (
            1,
            "cuda:1",
            {"CUDA_VISIBLE_DEVICES": "5"},
            "device=cuda:1, but this machine has 1 CUDA device (CUDA_VISIBLE_DEVICES=5): set device=cuda:0",
        ),
        (
            4,
            "cuda:1",
            {"LOCAL_RANK": "0", "WORLD_SIZE": "2"},
            "device=cuda:1 is one GPU, but there are 2 processes: set device=cuda to give each the GPU of "
            "its LOCAL_RANK",
        ),
        (
            2,
            "auto",
            {"LOCAL_RANK": "3", "WORLD_SIZE": "4"},
            "device=auto with LOCAL_RANK=3, but this machine has 2 CUDA devices: start at most one process "
            "per GPU, or set device=cpu",
        ),
        (
            1,
            "gpu0",
            {},
            "device must be auto, cpu, cuda or cuda:N, got 'gpu0'; this machine has 1 CUDA device",
        ),
        (
            1,
            "meta",
            {},
            "device must be auto, cpu, cuda or cuda:N, got 'meta'; this machine has 1 CUDA device",
        ),
    ],
)
def test_an_unusable_device_gives_one_sentence(gpus, monkeypatch, count, device, environment, sentence):
    gpus(count)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError) as error, join_world(device):
        pass
    assert str(error.value) == sentence


def test_the_denoiser_device_is_checked_before_anything_is_loaded(gpus):
    gpus(1)
    for device, sentence in (
        ("cuda:1", "denoiser_device=cuda:1, but this machine has 1 CUDA device: set .*=cuda:0"),
        ("gpu", "denoiser_device must be cpu, cuda or cuda:N, got 'gpu'"),
    ):
        with pytest.raises(ValueError, match=f"prior.{sentence}"):
            load_prior(PriorConfig(path="checkpoints/shapes-prior", denoiser_device=device))


@pytest.mark.parametrize("variable", [None, *ALLOCATOR_VARIABLES])
def test_the_allocator_uses_expandable_segments_unless_the_environment_configures_it(
    gpus, monkeypatch, variable
):
    gpus(1)
    if variable is not None:
        monkeypatch.setenv(variable, "max_split_size_mb:64")
    with join_world("cuda"):
        settings = {name: os.environ[name] for name in ALLOCATOR_VARIABLES if name in os.environ}
    assert settings == (
        {ALLOCATOR_VARIABLES[0]: "expandable_segments:True"}
        if variable is None
        else {variable: "max_split_size_mb:64"}
    )


@pytest.mark.parametrize("setting", ["device", "prior.denoiser_device"])
@pytest.mark.parametrize(
    "name", ["xpu", "mps", "gpu0", "meta", "", "CUDA", "cuda:", "cuda:-1", "cuda:x", "c" * 5000]
)
def test_other_devices_are_one_sentence_that_names_the_setting_and_what_is_here(gpus, setting, name):
    gpus(0)
    with pytest.raises(ValueError) as caught:
        devices.parse_device(setting, name)
    message = str(caught.value)
    assert message.startswith(f"{setting} must be cpu, cuda or cuda:N, got '{name[:77]}")
    assert message.endswith("this machine has a CPU and no CUDA device") and len(message) < 250


def test_an_index_of_the_cpu_is_ignored():
    assert devices.parse_device("device", "cpu:7") == torch.device("cpu")


ONLY_CUDA = """
import os, torch
from amortized.parallel import join_world
torch.cuda.set_device = lambda device: None
torch.cuda.is_available, torch.cuda.device_count = lambda: True, lambda: 1
with join_world("cpu"):
    print(torch.backends.cuda.matmul.fp32_precision, "PYTORCH_ALLOC_CONF" in os.environ)
with join_world("cuda"):
    print(torch.backends.cuda.matmul.fp32_precision)
    # torch.compile reads these; each raises if old and new settings are mixed.
    print(torch.get_float32_matmul_precision(), torch.backends.cuda.matmul.allow_tf32)
    print(getattr(torch._C, "_accelerator_getAllocatorSettings", lambda: os.environ["PYTORCH_ALLOC_CONF"])())
"""


def test_float32_products_use_tf32_on_cuda_without_a_warning():
    """And the allocator reads the variable although it is set after the import of torch."""
    clean = {
        name: value for name, value in os.environ.items() if name not in (*ALLOCATOR_VARIABLES, "LOCAL_RANK")
    }
    done = subprocess.run(
        [sys.executable, "-W", "error::UserWarning", "-c", ONLY_CUDA],
        cwd=ROOT,
        env=clean,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.splitlines() == ["none False", "tf32", "high True", "expandable_segments:True"]


@pytest.mark.parametrize("device", ["cuda", "cuda:1"])
@pytest.mark.parametrize("name", ["train.py", "evaluate.py", "benchmarks"])
def test_every_command_reports_a_missing_driver_in_one_sentence(
    gpus, monkeypatch, capsys, tmp_path, name, device
):
    def init() -> None:
        raise RuntimeError("Found no NVIDIA driver on your system. Please check\nthat you have one")

    gpus(0)
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(torch.cuda, "init", init)
    arguments = ["configs/quickstart.yaml", f"output={tmp_path}", f"device={device}"]
    if name == "evaluate.py":
        run = tmp_path / "run"
        run.mkdir()
        (run / "config.yaml").write_text((ROOT / arguments[0]).read_text())
        arguments = [str(run), f"device={device}"]
    main = {"train.py": train.main, "evaluate.py": evaluate.main, "benchmarks": bench_main}[name]
    with pytest.raises(SystemExit) as exited:
        main(arguments)
    assert exited.value.code == 2
    prefix = "python -m benchmarks" if name == "benchmarks" else name
    assert capsys.readouterr().err.splitlines() == [
        f"{prefix}: error: device={device}, but PyTorch finds no CUDA device (Found no NVIDIA driver on your "
        "system): install a matching driver, or set device=cpu"
    ]


def test_the_real_driver_message_of_this_machine():
    expectation = (
        nullcontext() if torch.cuda.is_available() else pytest.raises(ValueError, match=r"finds no CUDA")
    )
    with expectation:
        devices.parse_device("device", "cuda")
