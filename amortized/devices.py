"""Choose and check the device of a process, before anything is loaded."""

from __future__ import annotations

import os

import torch

# Environment variables of PyTorch's allocator; on CUDA the second takes precedence.
ALLOCATOR_VARIABLES = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")


def local_device(name: str) -> torch.device:
    """Return this process's device for the setting `device`; a CUDA device has an index.

    "auto" is CUDA if available, else the CPU. Without an index, LOCAL_RANK is the index, so that ranks on a
    second machine start at GPU 0 again. Raises ValueError if the device does not exist, or if several
    processes would share one index.
    """
    resolved = name
    if name == "auto":
        resolved = "cuda" if torch.cuda.is_available() else "cpu"
    device = parse_device("device", resolved, others="auto, ")
    if device.type != "cuda":
        return device
    num_processes = int(os.environ.get("WORLD_SIZE", 1))
    if device.index is not None and num_processes > 1:
        raise ValueError(
            f"device={name} is one GPU, but there are {num_processes} processes: set device=cuda to give "
            "each the GPU of its LOCAL_RANK"
        )
    index = int(os.environ.get("LOCAL_RANK", 0)) if device.index is None else device.index
    if index >= torch.cuda.device_count():
        raise ValueError(
            f"device={name} with LOCAL_RANK={index}, but this machine has {_describe_devices()}: start at "
            "most one process per GPU, or set device=cpu"
        )
    return torch.device("cuda", index)


def configure_cuda(device: torch.device) -> None:
    """Make `device` the current GPU, and configure allocator and matrix precision.

    The allocator uses expandable segments unless the environment configures it: tensor sizes that vary from
    step to step, as the renderer's do, would otherwise fragment the memory. float32 matrix products use TF32.
    """
    if not any(name in os.environ for name in ALLOCATOR_VARIABLES):
        os.environ[ALLOCATOR_VARIABLES[0]] = "expandable_segments:True"  # read at the first allocation
    # Not torch.backends.cuda.matmul.fp32_precision: it breaks torch.compile in torch 2.11 to 2.15.
    torch.set_float32_matmul_precision("high")
    torch.cuda.set_device(device)


def parse_device(setting: str, name: str, *, others: str = "") -> torch.device:
    """Parse the value `name` of a device setting: cpu, cuda or cuda:N.

    `others` lists further values of the setting for the message. Raises ValueError if the device does not
    exist.
    """
    try:
        device = torch.device(name)
    except (RuntimeError, ValueError, OverflowError):
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        shown = name if len(name) <= 80 else f"{name[:77]}..."
        here = _describe_devices() if torch.cuda.is_available() else "a CPU and no CUDA device"
        raise ValueError(
            f"{setting} must be {others}cpu, cuda or cuda:N, got '{shown}'; this machine has {here}"
        )
    if device.type == "cpu":
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise ValueError(
            f"{setting}={name}, but PyTorch finds no CUDA device{_why_no_cuda()}, or set {setting}=cpu"
        )
    count = torch.cuda.device_count()
    if device.index is not None and device.index >= count:
        ends = ["cuda:0", *[f"cuda:{count - 1}"][: count - 1]]
        available = (" or " if count == 2 else " to ").join(ends)
        raise ValueError(
            f"{setting}={name}, but this machine has {_describe_devices()}: set {setting}={available}"
        )
    return device


def _describe_devices() -> str:
    """Return "2 CUDA devices", with CUDA_VISIBLE_DEVICES if it is set."""
    count, shown = torch.cuda.device_count(), os.environ.get("CUDA_VISIBLE_DEVICES")
    limited = "" if shown is None else f" (CUDA_VISIBLE_DEVICES={shown})"
    return f"{count} CUDA device{'s' if count != 1 else ''}{limited}"


def _why_no_cuda() -> str:
    """Return why PyTorch has no CUDA device, and the remedy, to append to a message."""
    if torch.version.cuda is None:
        return " (it is built without CUDA): install a PyTorch with CUDA"
    try:
        torch.cuda.init()
    except (RuntimeError, AssertionError) as error:
        sentence = " ".join(str(error).split()).partition(". ")[0].rstrip(".")
        return f" ({sentence}): install a matching driver"
    return ": install a matching driver"
