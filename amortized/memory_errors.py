"""One-sentence messages for out-of-memory errors: the stage of the run, the amounts, and the remedy."""

from __future__ import annotations

import os
import re
import traceback
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import torch

from amortized.files import PROJECT

SMALLER_BATCH = "lower trainer.prompts_per_process (and raise trainer.gradient_accumulation_steps)"
HALF_PRECISION = (
    "set trainer.precision=bfloat16, or generator.checkpointing=true if the generator supports it"
)


class Stage(NamedTuple):
    """A stage of a run, recognized by its stack frames."""

    name: str
    frames: tuple[tuple[str, str], ...]  # (file or folder, function or ""); a traceback must have all of them
    remedy: str


# The first match counts, so an outer stage comes before the stages that it calls.
STAGES = (
    Stage(
        "a picture",
        (("amortized/generation/pictures.py", ""), ("amortized/rendering/", "")),
        "lower --size, or set a smaller renderer.chunk in the run's config.yaml",
    ),
    Stage(
        "the CLIP of the previews",
        (("amortized/commands/compose.py", "load_scorer"),),
        "set monitoring.preview_scores=false, or choose a smaller evaluation.clip",
    ),
    Stage(
        "the judge's CLIP",
        (("amortized/evaluation/clip.py", ""),),
        "lower evaluation.prompts_per_batch or evaluation.views, or choose a smaller evaluation.clip",
    ),
    Stage(
        "a render of the evaluation",
        (("amortized/evaluation/", ""), ("amortized/rendering/", "")),
        "lower renderer.chunk, evaluation.prompts_per_batch, evaluation.views_per_render, "
        "evaluation.image_size or evaluation.turntable_size",
    ),
    Stage(
        "the evaluation",
        (("amortized/evaluation/", ""),),
        "lower evaluation.prompts_per_batch, evaluation.grid or evaluation.image_size",
    ),
    Stage(
        "a preview",
        (("amortized/training/previews.py", ""),),
        "lower renderer.chunk, or raise monitoring.preview_every",
    ),
    Stage(
        "the copy of a checkpoint",
        (("amortized/checkpointing/checkpoints.py", "save"),),
        "start fewer processes on this machine, or set distributed.strategy=fsdp2",
    ),
    Stage(
        "loading the prior",
        (("amortized/priors/", "load_stable_diffusion"),),
        "set prior.dtype=float16, prior.text_on_cpu=true, prior.offload=true or a prior.denoiser_device",
    ),
    Stage(
        "encoding texts",
        (("amortized/conditioning/", ""),),
        "set prior.text_on_cpu=true, or encode the corpus beforehand (text.shards)",
    ),
    Stage(
        "the optimizer's step",
        (("amortized/parallel/", "update"),),
        "set distributed.strategy=fsdp2 on several GPUs, trainer.ema_decay=null or prior.dtype=float16",
    ),
    Stage(
        "the backward pass",
        (("torch/autograd/", ""),),
        f"{SMALLER_BATCH}, trainer.render_size or renderer.num_fine, or {HALF_PRECISION}",
    ),
    Stage(
        "the render",
        (("amortized/rendering/", ""),),
        f"{SMALLER_BATCH}, trainer.render_size or renderer.num_fine",
    ),
    Stage(
        "the prior's image encoder (VAE)",
        (("amortized/priors/", "encode"),),
        f"{SMALLER_BATCH}, or set prior.dtype=float16 or prior.offload=true",
    ),
    Stage(
        "the prior's image decoder (VAE)",
        (("amortized/priors/", "decode"),),
        "set prior.dtype=float16 or prior.offload=true",
    ),
    Stage(
        "the denoiser",
        (("amortized/priors/", "predict_noise"),),
        f"{SMALLER_BATCH}, or set prior.dtype=float16, a prior.denoiser_device, or "
        "distributed.shard_prior=true on several GPUs",
    ),
    Stage(
        "the guidance",
        (("amortized/guidance/", ""),),
        f"{SMALLER_BATCH}, or set prior.dtype=float16",
    ),
    Stage("the generator", (("generators/", ""),), f"{SMALLER_BATCH}, or {HALF_PRECISION}"),
)
OTHER_STAGE = Stage("the run", (), f"{SMALLER_BATCH} or trainer.render_size, or set prior.dtype=float16")

# Out-of-memory errors that PyTorch and the CUDA libraries raise as a plain RuntimeError.
OUT_OF_MEMORY = re.compile(
    r"DefaultCPUAllocator|out of memory|CUBLAS_STATUS_ALLOC_FAILED|CUDNN_STATUS_ALLOC_FAILED"
)


def out_of_memory_message(error: BaseException) -> str | None:
    """Return a message with stage, amounts and remedy for an out-of-memory error; None for other errors.

    The error itself or one of its causes may be the out-of-memory error.
    """
    cause: BaseException | None = error
    while cause is not None and not _is_out_of_memory(cause):
        cause = cause.__cause__
    if cause is None:
        return None
    stage = find_stage(cause)
    return f"out of memory in {stage.name}{_describe_amounts(str(cause))}; {stage.remedy}"


def find_stage(error: BaseException) -> Stage:
    """Return the stage that raised the error."""
    frames = [
        (_relative_path(frame.f_code.co_filename), frame.f_code.co_name)
        for frame, _ in traceback.walk_tb(error.__traceback__)
    ]

    def has_frame(path: str, function: str) -> bool:
        return any(file.startswith(path) and function in ("", name) for file, name in frames)

    matches = (stage for stage in STAGES if all(has_frame(*frame) for frame in stage.frames))
    return next(matches, OTHER_STAGE)


def _relative_path(file: str) -> str:
    """Return a file's path relative to the project or to site-packages."""
    site_packages = Path(
        torch.__file__
    ).parent.parent  # first: a virtual environment may be inside the project
    for root in (site_packages, PROJECT):
        with suppress(ValueError):
            return Path(file).relative_to(root).as_posix()
    return file


def _is_out_of_memory(error: BaseException) -> bool:
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and OUT_OF_MEMORY.search(str(error)) is not None


def _describe_amounts(message: str) -> str:
    """Return the device and its requested, free and used memory, as far as they are known."""
    on_cpu = "CUDA" not in message and "GPU" not in message and "CUBLAS" not in message
    requested = _match(r"(?:[Tt]ried|Unable) to allocate ([\d.]+ ?\w+)", message)
    device = _match(r"GPU (\d+)", message)
    used = _match(r"this process has ([\d.]+ \w+) memory in use", message)
    free, total = _free_cpu_memory() if on_cpu else _free_gpu_memory(message)
    name = "main memory" if on_cpu else f"cuda:{device}" if device else "the GPU"
    amounts = [f"{_to_gib(requested)} requested"] if requested else []
    amounts += [f"{free} of {total} free"] if free else []
    amounts += [f"this process uses {used}"] if used else []
    return f" on {name}: {', '.join(amounts)}" if amounts else f" on {name}"


def _match(pattern: str, message: str) -> str | None:
    match = re.search(pattern, message)
    return None if match is None else match[1]


def _to_gib(amount: str) -> str:
    """Convert "400000000000 bytes" to GiB; amounts in other units are returned unchanged."""
    number, unit = amount.split(" ")
    return _gib(float(number)) if unit == "bytes" else amount


def _gib(num_bytes: float) -> str:
    return f"{num_bytes / 2**30:.2f} GiB"


def _free_gpu_memory(message: str) -> tuple[str | None, str | None]:
    """Return (free, total) from the error message, or from the current device."""
    free = _match(r"of which ([\d.]+ \w+) is free", message)
    total = _match(r"total capacity of ([\d.]+ \w+)", message)
    if free is None and torch.cuda.is_available():
        with suppress(RuntimeError):  # the CUDA context may be unusable after the error
            free, total = (_gib(number) for number in torch.cuda.mem_get_info())
    return free, total


def _free_cpu_memory() -> tuple[str | None, str | None]:
    """Return (available, total) CPU memory; (None, None) on systems without /proc."""
    available = available_cpu_bytes()
    if available is None:
        return None, None
    return _gib(available), _gib(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))


def available_cpu_bytes() -> int | None:
    """Return the CPU memory that is available; None on systems without /proc."""
    with suppress(OSError):
        if match := re.search(r"MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text(encoding="ascii")):
            return int(match[1]) * 1024
    return None
