"""Read files of torch.save that others published: tensors and plain values only, and nothing in them runs."""

from __future__ import annotations

import re
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from amortized.model_folders import first_line
from amortized.untrusted import check_not_pointer, open_regular, short


def read_tensor_file(file: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the state dict in a file of torch.save, alone or under `state_dict`, and what stands beside it.

    Tensors are on the CPU, and may be read from the file only when they are used. Raises ValueError if the
    file is unreadable or damaged, names code, or its state dict holds anything but tensors.
    """
    with open_regular(file, 2**40) as opened:  # neither a pipe nor a device
        check_not_pointer(file, opened.read(200))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickle versions and sparse tensors
            data = torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
    except Exception as error:  # refused by the unpickler, a damaged archive
        raise ValueError(
            f"{short(file)} cannot be loaded as a file of tensors only, and other files are refused: "
            f"{_reason(error)}"
        ) from error
    others: dict[str, Any] = {}
    if isinstance(data, dict) and "state_dict" in data:
        others = {key: value for key, value in data.items() if key != "state_dict"}
        data = data["state_dict"]
    if not isinstance(data, dict) or not all(isinstance(value, Tensor) for value in data.values()):
        raise ValueError(f"{short(file)} is not a state dict: every value must be a tensor")
    for name, value in data.items():
        if not isinstance(name, str):
            raise ValueError(f"{short(file)} is not a state dict: every name must be a text")
        if not _is_whole(value):
            raise ValueError(f"{short(file)}: {short(name)} is not a plain tensor with all of its values")
    return data, others


def _reason(error: Exception) -> str:
    """Why torch.load failed, without its advice to load the file with the code in it."""
    if code := re.search(r"GLOBAL (\S+)", str(error)):
        return f"it names the code {short(code[1])}"
    if "weights_only" in str(error) or not str(error):
        return "it is damaged, or not a file of torch.save"
    return first_line(error).partition(". ")[0]


def _is_whole(value: Tensor) -> bool:
    """Whether the file holds each value of a tensor: a few bytes can claim to be a tensor of terabytes."""
    if value.layout != torch.strided or value.is_quantized or value.device.type != "cpu":
        return False
    return value.numel() * value.element_size() <= value.untyped_storage().nbytes()
