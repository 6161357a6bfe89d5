"""The JSON configs of model folders: known keys, values of the right kind, numbers of a sane size."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from amortized.untrusted import read_json_object, short

# Of any integer, and of a float's size. The largest known are vocabularies, of some 250,000 tokens.
LARGEST = 2**20
LONGEST = 10_000  # entries of a list; the longest known are 1,000 betas
KINDS: Mapping[str, tuple[type, ...]] = {"bool": (bool,), "int": (int,), "float": (int, float), "str": (str,)}
WORDS = re.compile(r"[A-Za-z]+")
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

    known    the kind of each key's value, in words as in an annotation: "int | tuple[int] | None"
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
    """Raise ValueError unless a value from JSON is of the given kind, and its numbers are of a sane size."""
    words = set(WORDS.findall(kind))
    if isinstance(value, list) and words & {"tuple", "list", "Tuple", "List"}:
        if len(value) > LONGEST:
            raise ValueError(f"{short(file)}: '{key}' has {len(value):,} entries, more than {LONGEST:,}")
        for entry in value:
            check_value(file, key, entry, kind)
        return
    if value is None and words & {"None", "NoneType", "Optional"}:
        return
    if type(value) not in {each for word in words for each in KINDS.get(word, ())}:
        raise ValueError(f"{short(file)}: '{key}' must be {kind}, got {short(repr(value))}")
    if isinstance(value, str) and (len(value) > 200 or "://" in value or value.startswith("hf-hub:")):
        raise ValueError(f"{short(file)}: '{key}' is {short(repr(value))}, which is not a plain name")
    if isinstance(value, (int, float)) and (abs(value) > LARGEST or not math.isfinite(value)):
        raise ValueError(f"{short(file)}: '{key}' is {short(repr(value))}, beyond the limit of {LARGEST:,}")


def check_depth(file: Path, config: Mapping[str, Any], num_tensors: int) -> None:
    """Raise ValueError if a config names more layers than its weights have tensors."""
    for key, value in config.items():
        counts = [value] if "layers" in key else []
        while counts and isinstance(counts[0], list):
            counts = [each for inner in counts for each in (inner if isinstance(inner, list) else [inner])]
        counts += [len(value)] if isinstance(value, list) else []
        for count in counts:
            if isinstance(count, int) and count > max(num_tensors, 3):
                raise ValueError(
                    f"{short(file)}: '{key}' names {count:,} layers, but the weights have only {num_tensors} tensors"
                )


def read_checked(
    file: Path, known: Mapping[str, str], ignored: Collection[str] = ()
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return a config file's known values, see `known_values`, and all of it."""
    data = read_json_object(file)
    return known_values(file, data, known, ignored), data


def check_name(file: Path, data: Mapping[str, Any], key: str, allowed: Collection[str]) -> str:
    """Return the name under a key; raises ValueError unless it is one of those allowed."""
    name = data.get(key)
    if not isinstance(name, str) or name not in allowed:
        given = "is missing" if key not in data else f"is {short(repr(name))}"
        raise ValueError(f"{short(file)}: '{key}' {given}, and only {', '.join(allowed)} can be loaded")
    return name


def check_no_adapter(folder: Path) -> None:
    """Raise ValueError if a folder is an adapter, of which libraries load the base model from elsewhere."""
    if (folder / "adapter_config.json").exists():
        raise ValueError(
            f"{short(folder / 'adapter_config.json')} is refused, because an adapter names a model elsewhere: "
            "merge the adapter into its model and save that"
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
        # Parsers written in Rust raise PanicException, which is no Exception.
        panicked = type(error).__name__ == "PanicException"
        out_of_memory = type(error).__name__ == "OutOfMemoryError"
        if out_of_memory or not (panicked or isinstance(error, Exception)):
            raise
        raise ValueError(f"{subject}: {first_line(error)}") from error


def first_line(error: BaseException) -> str:
    """Return the first line of a library's message, of at most 300 characters; else the error's class."""
    lines = str(error).strip().splitlines()
    return lines[0].strip().rstrip(".:")[:300] if lines else type(error).__name__
