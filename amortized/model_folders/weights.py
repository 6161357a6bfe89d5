"""Weights in safetensors: found by name, compared with the model by their headers, and only then loaded."""

from __future__ import annotations

import logging
import math
import os
import re
import shlex
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from amortized.model_folders.configs import sentences
from amortized.safetensors_header import SIZE_LIMIT, read_header
from amortized.untrusted import LFS_POINTER, check_not_pointer, open_regular, short

if TYPE_CHECKING:
    import torch

OTHER_FORMATS = (".bin", ".ckpt", ".pt", ".pth", ".msgpack", ".h5", ".onnx")
PICKLES = (".bin", ".ckpt", ".pt", ".pth")  # that torch.load reads
FLOATS = ("F16", "BF16", "F32", "F64")
WRAPPERS = ("module.", "_orig_mod.")  # left by DistributedDataParallel and torch.compile


@dataclass(frozen=True)
class TensorHeader:
    """A tensor of a file, by its header."""

    file: Path
    name: str  # in the file
    shape: tuple[int, ...]
    dtype: str  # safetensors' name, such as F16
    rows: tuple[int, int] | None = None  # first and last + 1 of the stored tensor's; None: all

    def read(self, tensors: Any) -> torch.Tensor:
        """Return the values from the open file, in `shape`, which may differ from the stored one."""
        if self.rows is None:
            return tensors.get_tensor(self.name).reshape(self.shape)
        return tensors.get_slice(self.name)[slice(*self.rows)].reshape(self.shape)


@dataclass(frozen=True)
class Weights:
    """The headers of a network's weights."""

    part: str  # in messages: the folder or file
    tensors: Mapping[str, TensorHeader]

    @property
    def num_values(self) -> int:
        """Numbers in all tensors."""
        return sum(math.prod(tensor.shape) for tensor in self.tensors.values())


# Return a tensor's name in the model, or None if it belongs to another part of a larger one.
Rename = Callable[[str], str | None]


def read_weights(folder: Path, stem: str, variant: str | None = None) -> Weights:
    """Return the headers of `stem`.safetensors, its shards, or a variant such as `stem`.fp16.safetensors.

    Without `variant` the plain file is read, else the only variant. Raises ValueError if there is none, or
    several, or if a file is damaged.
    """
    with sentences(f"cannot read {short(folder)}"):
        names = sorted(entry.name for entry in folder.iterdir())
    chosen = choose_files(names, stem, variant, folder)
    return headers_of([folder / name for name in chosen], short(folder))


def headers_of(files: Iterable[Path], part: str) -> Weights:
    """Return the headers of safetensors files that hold one network's weights."""
    tensors: dict[str, TensorHeader] = {}
    for file in files:
        for header in _read_header(file):
            if header.name in tensors:
                raise ValueError(f"{short(file)}: the tensor '{short(header.name)}' is in another shard too")
            tensors[header.name] = header
    for wrapper in WRAPPERS * 2:
        if tensors and all(name.startswith(wrapper) for name in tensors):
            logging.getLogger("amortized").warning(
                "the names of the tensors of %s start with '%s', which is removed", part, wrapper
            )
            tensors = {name.removeprefix(wrapper): header for name, header in tensors.items()}
    weights = Weights(part, tensors)
    if weights.num_values * 2 > (memory := _memory()):
        raise ValueError(
            f"{part} has {weights.num_values:,} weights, which do not fit into this machine's memory of "
            f"{memory / 2**30:.0f} GiB"
        )
    return weights


def choose_files(names: Iterable[str], stem: str, variant: str | None, folder: Path) -> list[str]:
    """Return the names of the files that hold the weights; raises ValueError, see `read_weights`."""
    pattern = re.compile(
        rf"{re.escape(stem)}(?:\.(\w+))?(?:-(\d{{5}})-of-(\d{{5}}))?(?:\.(\w+))?\.safetensors"
    )
    found: dict[str, dict[tuple[int, int], str]] = {}
    for name in names:
        if match := pattern.fullmatch(name):
            before, number, count, after = match.groups()
            shards = found.setdefault(before or after or "", {})
            shards[int(number or 0), int(count or 0)] = name
    if not found:
        others = sorted(name for name in names if name.endswith(OTHER_FORMATS))
        remedy = f"; it has {_refusal(folder / others[0], stem)}" if others else ""
        raise ValueError(f"{short(folder)} has no {stem}.safetensors{remedy}")
    if variant is None and "" not in found and len(found) > 1:
        raise ValueError(
            f"{short(folder)} has no {stem}.safetensors but the variants {', '.join(sorted(found))}: choose "
            "one by prior.variant"
        )
    name = variant or ("" if "" in found else next(iter(found)))
    if name not in found:
        known = ", ".join(repr(each) if each else "null" for each in sorted(found))
        raise ValueError(f"{short(folder)} has no variant '{name}' of {stem}.safetensors: there is {known}")
    shards = found[name]
    if (0, 0) in shards:
        return [shards[0, 0]]
    counts = {count for _, count in shards}
    if len(counts) != 1 or {number for number, _ in shards} != set(range(1, max(counts) + 1)):
        raise ValueError(
            f"{short(folder)} lacks shards of {stem}.safetensors: it has {', '.join(shards.values())}"
        )
    return [shards[key] for key in sorted(shards)]


def check_format(file: Path) -> None:
    """Raise ValueError for a file of weights in a format that can run code; the message converts it."""
    if file.suffix in OTHER_FORMATS:
        raise ValueError(_refusal(file))


def _refusal(file: Path, stem: str = "") -> str:
    """Return why a file is not read, and the command that converts it, which runs no code of the file."""
    reason = f"{short(file.name)}, which is not read, because such files can run code"
    if file.suffix not in PICKLES:
        return f"{reason}: save the model with its library as safetensors"
    name = re.sub(r"^(pytorch_model|diffusion_pytorch_model|model)(?=[.-])", stem, file.stem + ".")[:-1]
    code = (
        "import sys, torch; from safetensors.torch import save_file; "
        "d = torch.load(sys.argv[1], map_location='cpu', weights_only=True); d = d.get('state_dict', d); "
        "save_file({k: v.clone().contiguous() for k, v in d.items() if torch.is_tensor(v)}, sys.argv[2])"
    )
    paths = f"{shlex.quote(str(file))} {shlex.quote(str(file.with_name(f'{name}.safetensors')))}"
    return f'{reason}: convert each such file as by `python -c "{code}" {paths}`'


def _read_header(file: Path) -> list[TensorHeader]:
    with open_regular(file, SIZE_LIMIT) as handle:
        check_not_pointer(file, handle.read(len(LFS_POINTER)))
    entries, _ = read_header(file)
    return [TensorHeader(file, name, entry.shape, entry.dtype) for name, entry in entries.items()]


def _memory() -> int:
    """Bytes of memory of this machine; without limit where that is unknown."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return 2**63


def build_empty(file: Path, build: Callable[[], Any]) -> Any:
    """Return a network without memory for its weights; raises ValueError if its config is invalid."""
    import torch

    with sentences(f"{short(file)} does not describe a network that can be built"), torch.device("meta"):
        return build()


def check_fit(
    model: Any, weights: Weights, rename: Rename = str, *, aliases: Mapping[str, str] | None = None
) -> dict[str, TensorHeader]:
    """Return the header of each tensor of `model`; its weights are not read yet.

    aliases  tensors that are the same as another one, and may be missing

    Raises ValueError if tensors are missing, unexpected, or of another shape or kind.
    """
    aliases = aliases or {}
    expected = {
        name: (tuple(value.shape), value.is_floating_point()) for name, value in model.state_dict().items()
    }
    given: dict[str, TensorHeader] = {}
    for name, header in weights.tensors.items():
        if (new := rename(name)) is not None:
            given[new] = header
    for name, other in aliases.items():
        if name in expected and other in expected:
            header = given.get(other) or given.get(name)
            given |= {} if header is None else {name: header, other: header}
    missing = [name for name in expected if name not in given]
    _refuse(
        weights.part, "lacks", missing, "the folder is incomplete, or of another model than its config says"
    )
    unexpected = [given[name].name for name in given if name not in expected]
    _refuse(
        weights.part,
        "has the unexpected",
        unexpected,
        "the weights are of another model than the config says",
    )
    for name, (shape, is_float) in expected.items():
        header = given[name]
        if header.shape != shape:
            raise ValueError(
                f"{weights.part}: '{short(header.name)}' has the shape {list(header.shape)}, but its config "
                f"requires {list(shape)}"
            )
        if is_float and header.dtype not in FLOATS:
            raise ValueError(
                f"{weights.part}: '{short(header.name)}' is {header.dtype}, and only {', '.join(FLOATS)} "
                "are supported: use weights that are not quantized"
            )
    return {name: given[name] for name in expected}


def _refuse(part: str, verb: str, names: list[str], reason: str) -> None:
    if names:
        shown = ", ".join(short(name) for name in names[:3]) + (", ..." if len(names) > 3 else "")
        plural = "tensor" if len(names) == 1 else f"{len(names)} tensors"
        raise ValueError(f"{part} {verb} {plural} {shown}: {reason}")


def load_weights(
    model: Any, headers: Mapping[str, TensorHeader], dtype: torch.dtype, float32: Iterable[str] = ()
) -> None:
    """Load tensors, as `check_fit` returned them, into `model`; floating-point ones become `dtype`.

    float32  modules that stay in float32 if `dtype` is float16, which they overflow

    Raises ValueError for NaN and infinite values.
    """
    import torch
    from safetensors import safe_open

    state: dict[str, Any] = {}
    for file in sorted({header.file for header in headers.values()}):
        with sentences(f"{short(file)} is damaged"), safe_open(file, "pt") as tensors:
            for name, header in headers.items():
                if header.file == file:
                    state[name] = header.read(tensors)
    half = dtype == torch.float16
    for name, value in state.items():
        if value.is_floating_point():
            keep = half and not set(float32).isdisjoint(name.split("."))
            state[name] = value.to(torch.float32 if keep else dtype)
            _check_finite(headers[name], value, state[name])
    model.load_state_dict(state, assign=True)
    _restore_buffers(model)


def _check_finite(header: TensorHeader, stored: torch.Tensor, loaded: torch.Tensor) -> None:
    if not is_finite(loaded):
        if is_finite(stored):
            remedy = "set prior.dtype=bfloat16 or float32"
            raise ValueError(
                f"{short(header.file)}: '{short(header.name)}' overflows {loaded.dtype}: {remedy}"
            )
        raise ValueError(
            f"{short(header.file)}: '{short(header.name)}' has values that are not finite: the weights are "
            "damaged, or their training diverged"
        )


def is_finite(values: torch.Tensor) -> bool:
    """Return whether all values are finite; 10 GiB/s, where `isfinite` has 0.3."""
    import torch

    return values.numel() == 0 or all(math.isfinite(bound) for bound in torch.aminmax(values))


def _restore_buffers(model: Any) -> None:
    """Compute the buffers that files do not hold: a model built without memory has none of them."""
    import torch

    for name, buffer in list(model.named_buffers()):
        if buffer.is_meta:
            parent, _, own = name.rpartition(".")
            assert own == "position_ids", f"{name} cannot be restored"
            setattr(model.get_submodule(parent), own, torch.arange(buffer.shape[-1]).expand(buffer.shape))
