"""Which device a process computes on, looked for before anything is put there."""

from __future__ import annotations

import os

import torch

# What PyTorch reads its allocator's settings from; where the second is set, it counts on CUDA.
ALLOCATOR = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")


def local_device(name: str) -> torch.device:
    """The device of this process as the setting `device` has it; of CUDA's with an index.

    "auto" is CUDA where there is one. The index is the one asked for, or else LOCAL_RANK, so that a second
    machine does not ask for a ninth GPU. Raises ValueError where there is no such device, or one is asked
    for by several processes.
    """
    asked = name
    if name == "auto":
        asked = "cuda" if torch.cuda.is_available() else "cpu"
    device = parse_device("device", asked, others="auto, ")
    if device.type != "cuda":
        return device
    num_processes = int(os.environ.get("WORLD_SIZE", 1))
    if device.index is not None and num_processes > 1:
        raise ValueError(
            f"device={name} is one GPU, for {num_processes} processes: set device=cuda, and each "
            "takes that of its LOCAL_RANK"
        )
    index = int(os.environ.get("LOCAL_RANK", 0)) if device.index is None else device.index
    if index >= torch.cuda.device_count():
        raise ValueError(
            f"device={name} in a machine's process {index + 1}, but it has {_devices()}: start no more "
            "processes than that, or set device=cpu"
        )
    return torch.device("cuda", index)


def configure_cuda(device: torch.device) -> None:
    """Make a GPU this process', and set what is the same for all that it computes there.

    Its memory is held in segments that grow, unless the environment says how: sizes that differ from step
    to step, as the renderer's do, then leave no holes. Products of float32 matrices are taken in TF32.
    """
    if not any(name in os.environ for name in ALLOCATOR):
        os.environ[ALLOCATOR[0]] = "expandable_segments:True"  # read when memory is first asked for
    # Not torch.backends.cuda.matmul.fp32_precision: in torch 2.11 to 2.15 torch.compile fails after it.
    torch.set_float32_matmul_precision("high")
    torch.cuda.set_device(device)


def parse_device(setting: str, name: str, *, others: str = "") -> torch.device:
    """The device that a setting names: cpu, cuda, or one of the machine's by its index.

    Raises ValueError where there is no such device; `others` are further names that the setting takes.
    """
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise ValueError(f"{setting} must be {others}cpu, cuda or cuda:N, got '{name}'")
    if device.type == "cpu":
        return device
    if not torch.cuda.is_available():
        raise ValueError(
            f"{setting}={name}, but PyTorch finds no CUDA device{_reason()}, or set {setting}=cpu"
        )
    count = torch.cuda.device_count()
    if device.index is not None and device.index >= count:
        known = ["cuda:0", *[f"cuda:{count - 1}"][: count - 1]]
        there = (" or " if count == 2 else " to ").join(known)
        raise ValueError(f"{setting}={name}, but this machine has {_devices()}: set {setting}={there}")
    return device


def _devices() -> str:
    count, shown = torch.cuda.device_count(), os.environ.get("CUDA_VISIBLE_DEVICES")
    limited = "" if shown is None else f" (CUDA_VISIBLE_DEVICES={shown})"
    return f"{count} CUDA device{'s' if count != 1 else ''}{limited}"


def _reason() -> str:
    """Why there is no CUDA device, as far as PyTorch knows, and what to do."""
    if torch.version.cuda is None:
        return " (it is built without CUDA): install a PyTorch with CUDA"
    try:
        torch.cuda.init()
    except (RuntimeError, AssertionError) as error:
        sentence = " ".join(str(error).split()).partition(". ")[0].rstrip(".")
        return f" ({sentence}): install a driver that fits it"
    return ": install a driver that fits it"
