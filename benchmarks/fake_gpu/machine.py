"""Simulate a GPU with fake CUDA tensors, and record every time that the host would wait for it.

CPU tensors hold data as usual; CUDA tensors are fake. Operations check devices and dtypes as on a GPU. Each
operation that would make the host wait returns a made-up value and is recorded with its source lines:

    read      a number read from the device: int(), float(), bool(), tolist()
    to CPU    a blocking copy to the CPU
    to GPU    a copy from memory that is not pinned, or without non_blocking
    index     a CPU index into a CUDA tensor, which is copied first
    shape     an operation whose output shape depends on device data: nonzero, a boolean index

The hooks are process-wide and permanent: use it in a separate process.
"""

from __future__ import annotations

import collections
import ctypes
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils._pytree import tree_leaves

from amortized.training.metering import Meter

ROOT = Path(__file__).resolve().parents[2]
CUDA = torch.device("cuda", 0)
aten = torch.ops.aten
INDEXED = (aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_, aten._unsafe_index)
COPIES = (aten._to_copy, aten.copy_, aten.copy, aten._copy_from)
OF_UNKNOWN_SIZE = (aten.nonzero, aten.masked_select, aten._unique2, aten.unique_dim)

IN_USE: list[FakeGPU] = []  # stack; the last one is active, for patches that are not operations


class _UninitializedDevice(FakeTensorMode):
    """A FakeTensorMode that never creates a CUDA context, even though torch.cuda claims to be available."""

    avoid_device_init = True  # pyright: ignore (a property there)


class FakeGPU(Meter):
    """A Meter of CUDA tensors that also records waits and copies; active inside `with gpu:`."""

    def __init__(self, *, integer: int = 1) -> None:
        super().__init__(integer=integer)
        self.fake = _UninitializedDevice(allow_non_fake_inputs=True)
        self.waits: collections.Counter[tuple[str, str]] = collections.Counter()  # (kind, source lines)
        self.copied = 0  # bytes sent to the GPU
        self.pinned: set[int] = set()  # addresses of pinned storages

    def __enter__(self) -> FakeGPU:
        super().__enter__()
        IN_USE.append(self)
        return self

    def __exit__(self, *error: Any) -> None:
        IN_USE.pop()
        super().__exit__(*error)

    def counts(self, tensor: Tensor) -> bool:
        return on_gpu(tensor)

    def wait(self, kind: str) -> None:
        """Record that the host would wait at the current source line."""
        self.waits[kind, source_lines()] += 1

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, packet = kwargs or {}, func.overloadpacket
        if packet is aten._pin_memory:
            return self._pin(args[0])
        if packet is aten.is_pinned:
            return self._is_pinned(args[0])
        target = kwargs.get("device")
        if packet is aten.empty_like and target is not None and torch.device(target).type == "cpu":
            return self._host_memory(args[0], kwargs)
        leaves = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        to_gpu = target is not None and torch.device(target).type == "cuda"
        if not to_gpu and not any(map(on_gpu, leaves)):
            with _disable_current_modes():
                return func(*args, **kwargs)
        if packet is aten._local_scalar_dense:
            self.wait("read")
            return self.answer(args[0])
        if packet is aten.equal:
            self.wait("read")
            return True
        if packet in OF_UNKNOWN_SIZE:
            self.wait("shape")
            count = max(1, args[0].numel() // 2)
            shape = (count, args[0].ndim) if packet is aten.nonzero else (count,)
            return args[0].new_empty(shape, dtype=torch.long if packet is aten.nonzero else None)
        if packet in INDEXED:
            args = (args[0], self._indices(args[0], args[1]), *args[2:])
        if packet in COPIES:
            host_tensor = self._copy(packet, args, kwargs)
            if host_tensor is not None:
                return host_tensor
        return self.run(func, args, kwargs)

    def _pin(self, tensor: Tensor) -> Tensor:
        with _disable_current_modes():
            out = torch.empty_strided(tensor.size(), tensor.stride(), dtype=tensor.dtype).copy_(tensor)
        self.pinned.add(out.untyped_storage().data_ptr())
        return out

    def _host_memory(self, like: Tensor, kwargs: Any) -> Tensor:
        with _disable_current_modes():
            out = torch.zeros(like.shape, dtype=kwargs.get("dtype") or like.dtype)
        if kwargs.get("pin_memory"):
            self.pinned.add(out.untyped_storage().data_ptr())
        return out

    def _is_pinned(self, tensor: Tensor) -> bool:
        return not isinstance(tensor, FakeTensor) and tensor.untyped_storage().data_ptr() in self.pinned

    def _indices(self, target: Tensor, indices: Any) -> list[Tensor | None]:
        result: list[Tensor | None] = []
        for index in indices:
            if index is None:
                result.append(None)
            elif index.dtype in (torch.bool, torch.uint8):
                self.wait("shape")
                count = max(1, index.numel() // 2)
                result += [
                    torch.empty(count, dtype=torch.long, device=target.device) for _ in range(index.ndim)
                ]
            elif on_gpu(target) and not on_gpu(index):
                self.wait("index")
                result.append(torch.empty_like(index, device=target.device))
            else:
                result.append(index)
        return result

    def _copy(self, packet: Any, args: Any, kwargs: Any) -> Tensor | None:
        """Record a copy between host and device; return made-up data for a copy to the host, else None."""
        if packet is aten._to_copy:
            source, target = args[0], torch.device(kwargs.get("device") or args[0].device)
            waits = not kwargs.get("non_blocking", False)
        else:
            source, target = args[1], args[0].device
            waits = not (kwargs.get("non_blocking", False) or (len(args) > 2 and args[2]))
        if source.device.type == target.type:
            return None
        if target.type == "cuda":
            self.copied += source.nbytes
            if (waits or not self._is_pinned(source)) and source.numel():
                self.wait("to GPU")
            return None
        if waits:
            self.wait("to CPU")
        if packet is not aten._to_copy:
            return args[0]
        dtype = kwargs.get("dtype") or source.dtype
        with _disable_current_modes():
            made_up = torch.rand(source.shape) if dtype.is_floating_point else torch.zeros(source.shape)
            return made_up.to(dtype)


def on_gpu(value: Any) -> bool:
    """Return whether a value is a CUDA tensor."""
    return isinstance(value, Tensor) and value.device.type == "cuda"


def source_lines(depth: int = 2) -> str:
    """Return the project's innermost source lines on the stack: "amortized/a.py:1 < amortized/b.py:2"."""
    lines: list[str] = []
    frame: Any = sys._getframe(1)
    while frame is not None and len(lines) < depth:
        file = Path(frame.f_code.co_filename)
        if file.is_relative_to(ROOT) and not file.is_relative_to(Path(__file__).parent):
            name = file.relative_to(ROOT)
            if ".venv" not in str(name) and name.name != "metering.py":
                lines.append(f"{name}:{frame.f_lineno}")
        frame = frame.f_back
    return " < ".join(lines) or "(a library)"


def install_hooks() -> None:
    """Compile and permanently install this folder's CUDA hooks. Raises RuntimeError without a compiler."""
    torch_folder = Path(torch.__file__).parent
    include, libraries = torch_folder / "include", torch_folder / "lib"
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "hooks.so"
        command = [
            "g++",
            "-std=c++20",
            "-O1",
            "-shared",
            "-fPIC",
            str(Path(__file__).with_name("hooks.cpp")),
            "-o",
            str(library),
            f"-I{include}",
            f"-I{include / 'torch' / 'csrc' / 'api' / 'include'}",
            f"-L{libraries}",
            "-ltorch_cpu",
            "-lc10",
            f"-Wl,-rpath,{libraries}",
        ]
        try:
            done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8")
        except FileNotFoundError as error:
            raise RuntimeError("the fake GPU needs a C++ compiler: install g++") from error
        if done.returncode:
            raise RuntimeError(f"the fake GPU's hooks do not compile: {done.stderr.strip()[:500]}")
        ctypes.CDLL(str(library)).install()
