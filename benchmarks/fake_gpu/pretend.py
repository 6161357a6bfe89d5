"""Patch torch so that the project and its libraries see one CUDA device."""

from __future__ import annotations

import contextlib
import importlib
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses import fake_tensor
from torch._subclasses.fake_tensor import FakeTensor

from amortized.priors import graphs
from benchmarks.fake_gpu.machine import IN_USE, install_hooks, on_gpu

aten = torch.ops.aten
# Modules that query torch.cuda or create tensors on import: import them before patching.
IMPORTED_BEFORE = (
    "torch._dynamo",
    "peft",
    "diffusers.models.unets.unet_2d_condition",
    "diffusers.models.autoencoders.autoencoder_kl",
    "transformers.models.clip.modeling_clip",
)
_cpu_attention = nn.functional.scaled_dot_product_attention


def pretend() -> None:
    """Install the hooks and patch torch for the rest of the process."""
    for name in IMPORTED_BEFORE:
        importlib.import_module(name)
    install_hooks()
    cuda: Any = torch.cuda
    cuda.is_available = lambda: True
    cuda.device_count = lambda: 1
    cuda.is_bf16_supported = lambda *args, **kwargs: True
    cuda.current_device = lambda: 0
    cuda.set_device = cuda.synchronize = lambda *args: None
    cuda.max_memory_allocated = cuda.memory_allocated = lambda *args: 0
    cuda.mem_get_info = lambda *args: (80 * 2**30, 80 * 2**30)
    cuda.get_device_capability = lambda *args: (9, 0)
    cuda.get_rng_state = lambda *args: torch.zeros(16, dtype=torch.uint8)
    cuda.set_rng_state = lambda *args: None
    cuda.is_current_stream_capturing = lambda: False
    cuda.Event = Event
    cuda.Stream = Stream
    cuda.stream = lambda stream: contextlib.nullcontext()
    graphs.capture = _record
    fake_tensor.init_gpu_context = lambda device: None  # torch 2.11 would create a real tensor there first
    FakeTensor.tolist = _numbers  # type: ignore[method-assign]
    nn.Module._apply = _move  # type: ignore[method-assign]
    nn.functional.scaled_dot_product_attention = _attention  # type: ignore[assignment]


class Event:
    """An event of a device that has always finished."""

    def __init__(self, *args: Any, **kwargs: Any) -> None: ...
    def record(self, *args: Any) -> None: ...
    def synchronize(self) -> None: ...

    def query(self) -> bool:
        return True

    def elapsed_time(self, end: Event) -> float:
        return 1.0


class Stream:
    """A stream that does nothing."""

    def __init__(self, *args: Any, **kwargs: Any) -> None: ...


def _record(function: Any, tensors: tuple[Tensor, ...], needs_gradient: bool) -> Any:
    """Replace `graphs.capture`: a replay calls the function on fake tensors and counts as one launch."""
    if needs_gradient:
        return lambda *inputs: _FakeReplay.apply(function, *inputs)

    def replay(*inputs: Tensor) -> Tensor:
        with IN_USE[-1].as_one():
            return function(*inputs)

    return replay


class _FakeReplay(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, function: Any, first: Tensor, *others: Tensor) -> Tensor:
        with torch.enable_grad(), IN_USE[-1].as_one():
            ctx.first = first.detach().requires_grad_()
            ctx.out, ctx.others = function(ctx.first, *others), len(others)
        return ctx.out.detach()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        with IN_USE[-1].as_one():
            (input_gradient,) = torch.autograd.grad(ctx.out, ctx.first, gradient)
        return None, input_gradient, *[None] * ctx.others


def _numbers(tensor: Tensor) -> Any:
    """Replace `FakeTensor.tolist`, which bypasses the dispatch mode: record a read and return ones."""
    if IN_USE:
        IN_USE[-1].wait("read")
    return torch.ones(tensor.shape, dtype=tensor.dtype).tolist()


def _move(module: nn.Module, change: Any, recurse: bool = True) -> nn.Module:
    """Replace `Module._apply`: assign new parameters, since fake tensors cannot be swapped in place."""
    moved: dict[int, nn.Parameter] = {}
    for submodule in module.modules():
        for name, old in list(submodule._parameters.items()):
            if old is None:
                continue
            if id(old) not in moved:
                with torch.no_grad():
                    new = change(old.detach())
                same = isinstance(old, FakeTensor) and (new.device, new.dtype) == (old.device, old.dtype)
                moved[id(old)] = old if same else nn.Parameter(new, old.requires_grad)
            submodule._parameters[name] = moved[id(old)]
        for name, old in list(submodule._buffers.items()):
            if old is not None:
                submodule._buffers[name] = change(old)
    return module


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Call the kernel that CUDA selects: flash in half precision without a mask, else memory-efficient."""
    if not on_gpu(query):
        return _cpu_attention(
            query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
        )
    if not query.dtype == key.dtype == value.dtype:
        raise RuntimeError(f"attention of {query.dtype}, {key.dtype} and {value.dtype}")
    half = query.dtype in (torch.float16, torch.bfloat16)
    if half and attn_mask is None and query.shape[-1] <= 256 and query.shape[-1] % 8 == 0:
        flash = aten._scaled_dot_product_flash_attention
        return flash(query, key, value, dropout_p, is_causal, scale=scale)[0]
    bias = attn_mask
    if bias is not None:
        if bias.dtype == torch.bool:
            bias = torch.zeros_like(bias, dtype=query.dtype).masked_fill(~bias, float("-inf"))
        bias = bias.expand(*query.shape[:3], key.shape[2])
    needs_logsumexp = torch.is_grad_enabled() and query.requires_grad
    efficient = aten._scaled_dot_product_efficient_attention
    return efficient(query, key, value, bias, needs_logsumexp, dropout_p, is_causal, scale=scale)[0]
