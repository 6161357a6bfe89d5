"""Networks replayed as CUDA graphs: one launch in place of hundreds, where the host is slower than the GPU.

A step of one prompt hands the GPU some 1,500 operations, half of them the denoiser's and a seventh the image
encoder's, and the GPU waits for the host to hand them over. Frozen networks called at the same sizes step
after step are recorded once and then replayed: the same kernels in the same order, on the same memory.

What is recorded reads and writes memory of its own, so a replay copies its inputs in and its results out.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

Function = Callable[..., Tensor]

CALLS_BEFORE = 2  # of the same sizes, before these are worth a recording
MOST_GRAPHS = 4  # sizes of one network: each holds its activations for good
MOST_IMAGES = 16  # larger batches keep the GPU busy by themselves


class Replayed:
    """A function of tensors, replayed at sizes that keep coming; called as it is at all others.

    The function must depend on its tensors alone, and on weights that stay where they are. Its gradient is
    given to the first tensor only, and must be asked before the function is called with a gradient again.
    Where a recording fails, a warning says why, and the function is called as it is from then on.
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
            few = len(tensors[0]) <= MOST_IMAGES and len(self._graphs) < MOST_GRAPHS
            if calls <= CALLS_BEFORE or not few:
                return self.function(*tensors)
            graph = self._graphs[key] = self._record(tensors, needs_gradient)
        return graph(*tensors)

    def _record(self, tensors: tuple[Tensor, ...], needs_gradient: bool) -> Function:
        try:
            return record(self.function, tensors, needs_gradient)
        except RuntimeError as error:  # too little memory, an operation that cannot be recorded
            reason = " ".join(str(error).split())[:300]
            warnings.warn(
                f"a network is not replayed as a CUDA graph, which makes small batches slower: {reason}; "
                "prior.graphs=false does without",
                stacklevel=2,
            )
            return self.function


def record(function: Function, tensors: tuple[Tensor, ...], needs_gradient: bool) -> Function:
    """The function at these sizes, as graphs of the forward pass and, if wanted, of the backward pass."""
    return (_WithGradient if needs_gradient else _Forward)(function, tensors)


class _Forward:
    """The recorded function, without gradients."""

    @torch.no_grad()
    def __init__(self, function: Function, tensors: tuple[Tensor, ...]) -> None:
        self.inputs = [tensor.clone() for tensor in tensors]
        _warm_up(lambda: function(*self.inputs))
        self.graph, self.output = _recorded(lambda: function(*self.inputs))

    @torch.no_grad()
    def __call__(self, *tensors: Tensor) -> Tensor:
        for own, tensor in zip(self.inputs, tensors, strict=True):
            own.copy_(tensor)
        self.graph.replay()
        return self.output.clone()


class _WithGradient:
    """The recorded function, and the gradient of its first tensor."""

    def __init__(self, function: Function, tensors: tuple[Tensor, ...]) -> None:
        first, *others = (tensor.detach().clone() for tensor in tensors)
        self.inputs = [first.requires_grad_(), *others]

        def both() -> None:
            out = function(*self.inputs)
            torch.autograd.grad(out, first, torch.ones_like(out))

        _warm_up(both)
        self.forward_graph, self.output = _recorded(lambda: function(*self.inputs))
        self.gradient_out = torch.zeros_like(self.output)
        self.backward_graph, self.gradient_in = _recorded(
            lambda: torch.autograd.grad(self.output, first, self.gradient_out)[0],
            pool=self.forward_graph.pool(),
        )
        self.calls = 0

    def __call__(self, *tensors: Tensor) -> Tensor:
        return _Replay.apply(self, *tensors)


class _Replay(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, recorded: _WithGradient, *tensors: Tensor) -> Tensor:
        for own, tensor in zip(recorded.inputs, tensors, strict=True):
            own.detach().copy_(tensor)
        recorded.forward_graph.replay()
        recorded.calls += 1
        ctx.recorded, ctx.call, ctx.others = recorded, recorded.calls, len(tensors) - 1
        return recorded.output.detach().clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        recorded = ctx.recorded
        assert ctx.call == recorded.calls, "the network was replayed again before its gradient was asked"
        recorded.gradient_out.copy_(gradient)
        recorded.backward_graph.replay()
        return None, recorded.gradient_in.clone(), *[None] * ctx.others


def _warm_up(action: Callable[[], object]) -> None:
    """Call what will be recorded, on a side stream as PyTorch asks: libraries choose their kernels."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(2):
            action()
    torch.cuda.current_stream().wait_stream(stream)


def _recorded(action: Callable[[], Tensor], pool: Any = None) -> tuple[Any, Tensor]:
    # thread_local: the thread that prepares the next batch may use the GPU meanwhile.
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
        out = action()
    return graph, out
