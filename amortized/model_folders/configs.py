"""The JSON configs of model folders: known keys, values of the right kind, numbers of a sane size."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from amortized.untrusted import short

# Of any integer, and of a float's size. The largest known are vocabularies, of some 250,000 tokens.
LARGEST = 2**20
LONGEST = 10_000  # entries of a list; the longest known are 1,000 betas
KINDS: Mapping[str, tuple[type, ...]] = {"bool": (bool,), "int": (int,), "float": (int, float), "str": (str,)}
# Why these keys are never ignored: what they name would run, or would be loaded from elsewhere.
REFUSED = {
    "auto_map": "names Python code in the folder",
    "custom_pipelines": "names Python code",
    "trust_remote_code": "allows Python code of the folder to run",
    "hf_model_name": "names a model elsewhere",
    "hf_model_pretrained": "loads weights from elsewhere",
    "timm_model_pretrained": "loads weights from elsewhere",
    "quantization_config": "changes how the weights are read",
    "adapter_config": "names a model elsewhere",
    "base_model_name_or_path": "names a model elsewhere",
    "init_inputs": "passes arguments to a class",
    "fast_tokenizer_files": "names files elsewhere",
    "gguf_file": "names a file elsewhere",
}


def known_values(
    file: Path, data: Mapping[str, Any], known: Mapping[str, str], ignored: Collection[str] = ()
) -> dict[str, Any]:
    """Return the values of the `known` keys of a config, checked.

    known    the kind of each key's value, in words as in an annotation: "int | list[int] | None"
    ignored  keys without effect on the model; so are keys that start with an underscore

    Raises ValueError for other keys, and for values that `check_value` refuses.
    """
    for key in data:
        if key in REFUSED and key not in known:
            raise ValueError(
                f"{short(file)}: the key '{key}' is refused, because it {REFUSED[key]}: "
                "use a folder without it, as nothing of a folder is run or followed"
            )
        if key not in known and key not in ignored and not key.startswith("_"):
            raise ValueError(
                f"{short(file)}: unknown key {short(repr(key))}; remove it if the model does not depend on "
                "it, or use a folder of a model that is supported"
            )
    for key, kind in known.items():
        if key in data:
            check_value(file, key, data[key], kind)
    return {key: data[key] for key in known if key in data}


def check_value(file: Path, key: str, value: Any, kind: str) -> None:
    """Raise ValueError unless a value from JSON is of the given kind, and its numbers are of a sane size.

    kind  as in an annotation: "int | list[int] | None"; lists may be in lists
    """
    if isinstance(value, list) and len(value) > LONGEST:
        raise ValueError(f"{short(file)}: '{key}' has {len(value):,} entries, more than {LONGEST:,}")
    if not any(_is_of(value, each) for each in kind.split(" | ")):
        raise ValueError(f"{short(file)}: '{key}' must be {kind}, got {short(repr(value))}")
    for each in _scalars(value):
        if isinstance(each, str) and (len(each) > 200 or "://" in each or each.startswith("hf-hub:")):
            raise ValueError(f"{short(file)}: '{key}' is {short(repr(each))}, which is not a plain name")
        if isinstance(each, (int, float)) and (abs(each) > LARGEST or not math.isfinite(each)):
            raise ValueError(
                f"{short(file)}: '{key}' is {short(repr(each))}, beyond the limit of {LARGEST:,}"
            )


def _is_of(value: Any, kind: str) -> bool:
    if kind.startswith("list["):
        return isinstance(value, list) and all(_is_of(each, kind[5:-1]) for each in value)
    return value is None if kind == "None" else type(value) in KINDS[kind]


def _scalars(value: Any) -> Iterator[Any]:
    if isinstance(value, list):
        for each in value:
            yield from _scalars(each)
    else:
        yield value


def check_depth(file: Path, config: Mapping[str, Any], num_tensors: int) -> None:
    """Raise ValueError if a config names more layers than its weights have tensors."""
    for key, value in config.items():
        counts = [each for each in _scalars(value) if "layers" in key and isinstance(each, int)]
        counts += [len(value)] if isinstance(value, list) else []
        if counts and max(counts) > max(num_tensors, 3):
            raise ValueError(
                f"{short(file)}: '{key}' names {max(counts):,} layers, but the weights have only "
                f"{num_tensors} tensors"
            )


def check_name(file: Path, data: Mapping[str, Any], key: str, allowed: Collection[str]) -> str:
    """Return the name under a key; raises ValueError unless it is one of those allowed."""
    name = data.get(key)
    if not isinstance(name, str) or name not in allowed:
        given = "is missing" if key not in data else f"is {short(repr(name))}"
        raise ValueError(f"{short(file)}: '{key}' {given}, and only {', '.join(allowed)} can be loaded")
    return name


def check_no_adapter(folder: Path) -> None:
    """Raise ValueError if a folder is an adapter, of which libraries load the base model from elsewhere."""
    if os.path.lexists(folder / "adapter_config.json"):
        raise ValueError(
            f"{short(folder / 'adapter_config.json')} is refused, because an adapter names a model "
            "elsewhere: merge the adapter into its model and save that"
        )


def version_of(data: Mapping[str, Any], key: str = "_diffusers_version") -> tuple[int, int] | None:
    """Return (major, minor) of the library that wrote a config; None if it does not say so."""
    found = re.match(r"(\d{1,6})\.(\d{1,6})", str(data.get(key, "")))
    return None if found is None else (int(found[1]), int(found[2]))


@contextmanager
def sentences(subject: str) -> Iterator[None]:
    """Context: whatever a library raises is one ValueError that starts with `subject`.

    Lack of memory is not a fault of the folder, and passes.
    """
    try:
        yield
    except MemoryError:
        raise
    except BaseException as error:
        # Parsers written in Rust raise PanicException, which does not derive from Exception.
        panicked = type(error).__name__ == "PanicException"
        out_of_memory = type(error).__name__ == "OutOfMemoryError"
        if out_of_memory or not (panicked or isinstance(error, Exception)):
            raise
        raise ValueError(f"{subject}: {first_line(error)}") from error


def first_line(error: BaseException) -> str:
    """Return the first line of a library's message, of at most 300 characters; else the error's class."""
    lines = str(error).strip().splitlines()
    return lines[0].strip().rstrip(".:")[:300] if lines else type(error).__name__
