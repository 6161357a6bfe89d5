"""The cost of a computation, counted on fake tensors: FLOPs, memory traffic, operations, peak memory.

PyTorch's fake tensors have a shape, dtype and device, but no storage: a step of any size runs on them in
seconds on any machine. The meter intercepts every operation, adds up its cost, and tracks live memory. Real
tensors are computed as usual, so decisions that a step makes on the host remain correct.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves

aten = torch.ops.aten
# Operations that move no data: they reinterpret memory, or reserve it.
VIEWS = frozenset(
    "_reshape_alias _unsafe_view alias as_strided chunk detach diagonal empty empty_like empty_strided "
    "expand lift_fresh new_empty new_empty_strided permute reshape select slice split split_with_sizes "
    "squeeze t transpose unbind unfold unsqueeze view view_as".split()
)


@dataclass
class Cost:
    """The cost of a section, including nested sections."""

    flops: float = 0.0  # of matrix products, convolutions and attention; a multiply-add counts as two
    flops_float32: float = 0.0  # those in single precision
    traffic: float = 0.0  # bytes read and written by each operation on its own, without fusion
    operations: int = 0  # kernel launches on a GPU
    peak: int = 0  # peak of live bytes, including those allocated before the section


class Meter(TorchDispatchMode):
    """Active inside `with meter:`, on fake tensors; `with meter.section(NAME):` counts a section.

    Reading an integer from a fake tensor returns `integer`: in a training step, the number of rays to render.
    """

    def __init__(self, *, integer: int = 1) -> None:
        super().__init__()
        self.fake = FakeTensorMode(allow_non_fake_inputs=True)
        self.integer = integer
        from torch.utils.flop_counter import flop_registry  # imports Triton

        self.flops: dict[Any, Any] = flop_registry
        self.costs: dict[str, Cost] = {}
        self.live = 0  # bytes
        self._sections: list[str] = []
        self._storages: set[int] = set()

    def __enter__(self) -> Meter:
        self.fake.__enter__()
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self.fake.__exit__(*error)

    @contextmanager
    def section(self, name: str) -> Iterator[Cost]:
        """Context: count operations under this name too."""
        cost = self.costs.setdefault(name, Cost())
        cost.peak = max(cost.peak, self.live)
        self._sections.append(name)
        try:
            yield cost
        finally:
            self._sections.pop()

    @contextmanager
    def outside(self) -> Iterator[None]:
        """Context: count operations in no section."""
        sections, self._sections = self._sections, []
        try:
            yield
        finally:
            self._sections = sections

    @contextmanager
    def as_one(self) -> Iterator[None]:
        """Context: count everything as one operation, like the replay of a CUDA graph."""
        before = {section: self.costs[section].operations for section in self._sections}
        yield
        for section, operations in before.items():
            self.costs[section].operations = operations + 1

    def counts(self, tensor: Tensor) -> bool:
        """Whether a tensor's memory is counted."""
        return isinstance(tensor, FakeTensor)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if not any(isinstance(x, FakeTensor) for x in tree_leaves((args, kwargs))):
            with _disable_current_modes():
                return func(*args, **kwargs)
        if func.overloadpacket is aten._local_scalar_dense:
            return self.answer(args[0])
        return self.run(func, args, kwargs)

    def answer(self, tensor: Tensor) -> bool | int | float:
        """The number to return when the host reads a fake tensor."""
        if tensor.dtype == torch.bool:
            return True
        return 0.5 if tensor.dtype.is_floating_point else self.integer

    def run(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Run an operation on fake tensors and count it."""
        out = func(*args, **kwargs)
        written = [x for x in tree_leaves(out) if isinstance(x, Tensor) and self.counts(x)]
        for tensor in written:
            self._account(tensor)
        name = func.overloadpacket.__name__
        read = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor) and self.counts(x)]
        if name in VIEWS or func.namespace == "prim" or not (written or read):
            return out  # prim.device and the like are queries
        flops = 0.0
        if func.overloadpacket in self.flops:
            flops = float(self.flops[func.overloadpacket](*args, **kwargs, out_val=out))
        single = flops > 0 and written[0].dtype == torch.float32
        traffic = float(sum(tensor.nbytes for tensor in (*read, *written)))
        self.charge(flops=flops, flops_float32=flops if single else 0.0, traffic=traffic)
        return out

    def charge(self, *, flops: float = 0.0, flops_float32: float = 0.0, traffic: float = 0.0) -> None:
        """Count an operation in all open sections."""
        for section in self._sections:
            cost = self.costs[section]
            cost.flops += flops
            cost.flops_float32 += flops_float32
            cost.traffic += traffic
            cost.operations += 1

    def _account(self, tensor: Tensor) -> None:
        """Count a tensor's storage as live until it is freed."""
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._storages:
            return
        self._storages.add(key)
        self.live += size
        for section in self._sections:
            self.costs[section].peak = max(self.costs[section].peak, self.live)

        def release(meter: Meter = self) -> None:
            meter.live -= size
            meter._storages.discard(key)

        weakref.finalize(storage, release)

    def fake_weights(self, module: nn.Module) -> None:
        """Replace a module's weights and buffers by fake tensors, permanently."""
        fakes: dict[int, nn.Parameter] = {}  # a weight may have two names
        for part in module.modules():
            for name, weight in part._parameters.items():
                if weight is not None:
                    fake = nn.Parameter(self.fake.from_tensor(weight.detach()), weight.requires_grad)
                    part._parameters[name] = fakes.setdefault(id(weight), fake)
            for name, buffer in part._buffers.items():
                if buffer is not None:
                    part._buffers[name] = self.fake.from_tensor(buffer)
