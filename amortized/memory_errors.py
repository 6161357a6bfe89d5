"""Running out of memory, in a sentence: where, how much was asked for and is free, and what would help."""

from __future__ import annotations

import os
import re
import traceback
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import torch

ROOT = Path(__file__).resolve().parents[1]
SMALLER = "lower trainer.prompts_per_process (and raise trainer.accumulation)"
HALF = "set trainer.precision=bfloat16, or generator.checkpointing=true where the generator has it"


class Part(NamedTuple):
    """A part of the work: known by frames of which a traceback has all, (file or folder, function or "")."""

    name: str
    frames: tuple[tuple[str, str], ...]
    helps: str


# The first that fits counts, so what is around others comes before them.
PARTS = (
    Part(
        "the judge's CLIP", (("amortized/evaluation/clip.py", ""),),
        "lower evaluation.prompts_per_batch or evaluation.views, or choose a smaller evaluation.clip",
    ),
    Part(
        "a render of the evaluation", (("amortized/evaluation/", ""), ("amortized/rendering/", "")),
        "lower renderer.chunk, evaluation.prompts_per_batch, evaluation.views_per_render, "
        "evaluation.image_size or evaluation.turntable_size",
    ),
    Part(
        "the evaluation", (("amortized/evaluation/", ""),),
        "lower evaluation.prompts_per_batch, evaluation.grid or evaluation.image_size",
    ),
    Part(
        "a preview", (("amortized/training/previews.py", ""),),
        "lower renderer.chunk, or raise trainer.preview_every",
    ),
    Part(
        "the copy of a checkpoint", (("amortized/training/saving.py", "save"),),
        "start fewer processes on this machine, or set distributed.strategy=fsdp2",
    ),
    Part(
        "loading the prior", (("amortized/priors/", "load_stable_diffusion"),),
        "set prior.dtype=float16, prior.text_on_cpu=true, prior.offload=true or a prior.denoiser_device",
    ),
    Part(
        "encoding texts", (("amortized/conditioning/", ""),),
        "set prior.text_on_cpu=true, or encode the corpus beforehand (text.shards)",
    ),
    Part(
        "the optimizer's step", (("amortized/training/", "update"),),
        "set distributed.strategy=fsdp2 on several GPUs, trainer.ema_decay=null or prior.dtype=float16",
    ),
    Part(
        "the backward pass", (("torch/autograd/", ""),),
        f"{SMALLER}, trainer.render_size or renderer.num_fine, or {HALF}",
    ),
    Part(
        "the render", (("amortized/rendering/", ""),),
        f"{SMALLER}, trainer.render_size or renderer.num_fine",
    ),
    Part(
        "the prior's image encoder (VAE)", (("amortized/priors/", "encode"),),
        f"{SMALLER}, or set prior.dtype=float16 or prior.offload=true",
    ),
    Part(
        "the prior's image decoder (VAE)", (("amortized/priors/", "decode"),),
        "set prior.dtype=float16 or prior.offload=true",
    ),
    Part(
        "the denoiser", (("amortized/priors/", "predict_noise"),),
        f"{SMALLER}, or set prior.dtype=float16, a prior.denoiser_device, or distributed.shard_prior=true "
        "on several GPUs",
    ),
    Part("the guidance", (("amortized/guidance/", ""),), f"{SMALLER}, or set prior.dtype=float16"),
    Part("the generator", (("generators/", ""),), f"{SMALLER}, or {HALF}"),
)  # fmt: skip
ELSEWHERE = Part("the run", (), f"{SMALLER} or trainer.render_size, or set prior.dtype=float16")

# What PyTorch's and CUDA's libraries say where they have no type of their own for it.
SAID = re.compile(r"DefaultCPUAllocator|out of memory|CUBLAS_STATUS_ALLOC_FAILED|CUDNN_STATUS_ALLOC_FAILED")


def out_of_memory_message(error: BaseException) -> str | None:
    """The sentence for an error that is, or comes of, running out of memory; None for any other."""
    found: BaseException | None = error
    while found is not None and not _is_one(found):
        found = found.__cause__
    if found is None:
        return None
    part = part_of(found)
    return f"out of memory in {part.name}{_amounts(str(found))}; {part.helps}"


def part_of(error: BaseException) -> Part:
    """In which part of the work an error was raised."""
    frames = [
        (_place(frame.f_code.co_filename), frame.f_code.co_name)
        for frame, _ in traceback.walk_tb(error.__traceback__)
    ]

    def has(file: str, function: str) -> bool:
        return any(place.startswith(file) and function in ("", name) for place, name in frames)

    return next((part for part in PARTS if all(has(*wanted) for wanted in part.frames)), ELSEWHERE)


def _place(file: str) -> str:
    """A file's name from the root of the project, or of torch."""
    packages = Path(torch.__file__).parent.parent  # first, since an environment may lie in the project
    for root in (packages, ROOT):
        with suppress(ValueError):
            return Path(file).relative_to(root).as_posix()
    return file


def _is_one(error: BaseException) -> bool:
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and SAID.search(str(error)) is not None


def _amounts(message: str) -> str:
    """What was asked for and what is free, as far as the error or the machine tells."""
    on_cpu = "CUDA" not in message and "GPU" not in message and "CUBLAS" not in message
    asked = _found(r"(?:[Tt]ried|Unable) to allocate ([\d.]+ ?\w+)", message)
    device = _found(r"GPU (\d+)", message)
    held = _found(r"this process has ([\d.]+ \w+) memory in use", message)
    free, total = _free_on_cpu() if on_cpu else _free_on_gpu(message)
    where = "main memory" if on_cpu else f"cuda:{device}" if device else "the GPU"
    told = [f"{_size(asked)} asked for"] if asked else []
    told += [f"{free} of {total} free"] if free else []
    told += [f"this process holds {held}"] if held else []
    return f" on {where}: {', '.join(told)}" if told else f" on {where}"


def _found(pattern: str, message: str) -> str | None:
    match = re.search(pattern, message)
    return None if match is None else match[1]


def _size(asked: str) -> str:
    number, unit = asked.split(" ")
    return _gib(float(number)) if unit == "bytes" else asked


def _gib(num_bytes: float) -> str:
    return f"{num_bytes / 2**30:.2f} GiB"


def _free_on_gpu(message: str) -> tuple[str | None, str | None]:
    free = _found(r"of which ([\d.]+ \w+) is free", message)
    total = _found(r"total capacity of ([\d.]+ \w+)", message)
    if free is None and torch.cuda.is_available():
        with suppress(RuntimeError):  # a GPU that is of no use any more
            free, total = (_gib(number) for number in torch.cuda.mem_get_info())
    return free, total


def _free_on_cpu() -> tuple[str | None, str | None]:
    with suppress(OSError):  # elsewhere than on Linux there is no such file
        if said := re.search(r"MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text()):
            return _gib(int(said[1]) * 1024), _gib(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    return None, None
