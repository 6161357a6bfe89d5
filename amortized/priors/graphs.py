"""Run networks as CUDA graphs: one launch instead of hundreds, when the host is the bottleneck.

At one prompt per step the host launches some 1,500 kernels, half of them for the denoiser and a seventh for
the VAE encoder, and the GPU waits for it. A frozen network that is called with the same shapes in every step
is captured once and then replayed: the same kernels in the same order.

A graph reads and writes fixed memory, so a replay copies its inputs in and its outputs out.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

Function = Callable[..., Tensor]

CALLS_BEFORE_CAPTURE = 2  # eager calls with the same shapes
MAX_GRAPHS = 4  # per network: each keeps its activations allocated
MAX_IMAGES = 16  # larger batches keep the GPU busy without graphs


class GraphedFunction:
    """A function of tensors that is captured and replayed for recurring shapes, and called eagerly otherwise.

    The function may depend only on its tensors and on weights that never move. Only the first tensor gets a
    gradient, and its backward pass must run before the next call with a gradient. If a capture fails, a
    warning gives the reason, and these shapes run eagerly from then on.
    """

    def __init__(self, function: Function) -> None:
        self.function = function
        self._calls: dict[Any, int] = {}
        self._graphs: dict[Any, Function] = {}

    def __call__(self, *tensors: Tensor) -> Tensor:
        needs_gradient = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)
        key = (needs_gradient, *((tensor.shape, tensor.stride(), tensor.dtype) for tensor in tensors))
        graph = self._graphs.get(key)
        if graph is None:
            calls = self._calls[key] = self._calls.get(key, 0) + 1
            allowed = len(tensors[0]) <= MAX_IMAGES and len(self._graphs) < MAX_GRAPHS
            if calls <= CALLS_BEFORE_CAPTURE or not allowed:
                return self.function(*tensors)
            graph = self._graphs[key] = self._capture(tensors, needs_gradient)
        return graph(*tensors)

    def _capture(self, tensors: tuple[Tensor, ...], needs_gradient: bool) -> Function:
        try:
            return capture(self.function, tensors, needs_gradient)
        except RuntimeError as error:  # out of memory, or an operation that cannot be captured
            reason = " ".join(str(error).split())[:300]
            warnings.warn(
                f"CUDA graph capture failed, so small batches are slower: {reason}; "
                "prior.graphs=false turns graphs off",
                stacklevel=2,
            )
            return self.function


def capture(function: Function, tensors: tuple[Tensor, ...], needs_gradient: bool) -> Function:
    """Capture the function at these shapes: the forward pass and, if needed, the backward pass."""
    return (_ForwardBackwardGraph if needs_gradient else _ForwardGraph)(function, tensors)


class _ForwardGraph:
    """The captured function, without gradients."""

    @torch.no_grad()
    def __init__(self, function: Function, tensors: tuple[Tensor, ...]) -> None:
        self.inputs = [tensor.clone() for tensor in tensors]
        _warm_up(lambda: function(*self.inputs))
        self.graph, self.output = _capture_graph(lambda: function(*self.inputs))

    @torch.no_grad()
    def __call__(self, *tensors: Tensor) -> Tensor:
        for static, tensor in zip(self.inputs, tensors, strict=True):
            static.copy_(tensor)
        self.graph.replay()
        return self.output.clone()


class _ForwardBackwardGraph:
    """The captured function and the gradient with respect to its first tensor."""

    def __init__(self, function: Function, tensors: tuple[Tensor, ...]) -> None:
        first, *others = (tensor.detach().clone() for tensor in tensors)
        self.inputs = [first.requires_grad_(), *others]

        def forward_backward() -> None:
            out = function(*self.inputs)
            torch.autograd.grad(out, first, torch.ones_like(out))

        _warm_up(forward_backward)
        self.forward_graph, self.output = _capture_graph(lambda: function(*self.inputs))
        self.gradient_out = torch.zeros_like(self.output)
        self.backward_graph, self.gradient_in = _capture_graph(
            lambda: torch.autograd.grad(self.output, first, self.gradient_out)[0],
            pool=self.forward_graph.pool(),
        )
        self.calls = 0

    def __call__(self, *tensors: Tensor) -> Tensor:
        return _Replay.apply(self, *tensors)


class _Replay(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, captured: _ForwardBackwardGraph, *tensors: Tensor) -> Tensor:
        for static, tensor in zip(captured.inputs, tensors, strict=True):
            static.detach().copy_(tensor)
        captured.forward_graph.replay()
        captured.calls += 1
        ctx.captured, ctx.call, ctx.others = captured, captured.calls, len(tensors) - 1
        return captured.output.detach().clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        captured = ctx.captured
        assert ctx.call == captured.calls, "the network was replayed again before its backward pass"
        captured.gradient_out.copy_(gradient)
        captured.backward_graph.replay()
        return None, captured.gradient_in.clone(), *[None] * ctx.others


def _warm_up(action: Callable[[], object]) -> None:
    """Run the function on a side stream, as PyTorch requires before a capture: libraries select kernels."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(2):
            action()
    torch.cuda.current_stream().wait_stream(stream)


def _capture_graph(action: Callable[[], Tensor], pool: Any = None) -> tuple[Any, Tensor]:
    # thread_local: the prefetch thread may use the GPU during the capture.
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
        out = action()
    return graph, out
