"""Checks of the models and text shards that a run's settings name."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from amortized.cli import preset_paths
from amortized.doctor.machine import FIXES, Row, make_row
from amortized.doctor.needs import layers_of
from amortized.files import PROJECT, in_project
from amortized.wording import count

PRIOR, CLIP = "prior.path", "evaluation.clip"


@dataclass(frozen=True, kw_only=True)
class Resources:
    """The folders and models that a run's settings refer to."""

    output: str = "outputs"
    prior: str | None = None
    revision: str | None = None
    variant: str | None = None
    architecture: str | None = None
    loras: tuple[str, ...] | None = None
    lora_scales: tuple[float, ...] | None = None
    tokens: tuple[str, ...] | None = None
    allow_network: bool = False
    clip: str | None = None
    shards: tuple[str, ...] = ()


def resources_of(words: Sequence[str]) -> Resources:
    """Return the resources of a run given as [CONFIG] KEY=VALUE ...

    Reads only the keys it needs, so it works without PyTorch and for any generator.

    Raises:
        ConfigError: the preset or an override cannot be read.
    """
    return _resources(layers_of(words))


def _resources(layers: Iterable[Mapping[str, Any]]) -> Resources:
    from amortized.config import build_config

    layers = list(layers)
    keys = {"output": "output", "prior": PRIOR, "revision": "prior.revision", "clip": CLIP}
    keys |= {"shards": "text.shards"}
    names = ("variant", "architecture", "loras", "lora_scales", "tokens", "allow_network")
    keys |= {name: f"prior.{name}" for name in names}
    values = {name: setting(layers, key) for name, key in keys.items()}
    return build_config(Resources, {name: value for name, value in values.items() if value is not None})


def setting(layers: Iterable[Mapping[str, Any]], key: str) -> Any:
    """Return the value of a dotted key in the last layer that has it; None if none has."""
    result = None
    for value in layers:
        for part in key.split("."):
            if isinstance(value, Mapping):
                value = value.get(part)
            elif part != "path":  # `prior: FOLDER` is short for its path
                value = None
        result = result if value is None else value
    return result


def teachers_of(words: Sequence[str]) -> dict[str, Resources]:
    """Return the resources of a run's further teachers by the start of their keys, as `resources_of` does."""
    from amortized.config.presets import Unquoted, parse_yaml

    given = setting(layers_of(words), "more_teachers")
    given = parse_yaml(given, "more_teachers") if isinstance(given, Unquoted) else given
    teachers = [each for each in given if isinstance(each, Mapping)] if isinstance(given, list) else []
    return {f"more_teachers[{i}].": _resources([each]) for i, each in enumerate(teachers)}


def embedded_models() -> dict[str, str]:
    """Return the models of checkpoints/ that presets use, each with the setting that names it."""
    names: dict[str | None, str] = {}
    for path in preset_paths():
        with suppress(ValueError):  # training with a broken preset reports it
            resources = resources_of([str(path)])
            names |= {resources.prior: PRIOR, resources.clip: CLIP}
    return {
        name: key
        for name, key in names.items()
        if name and name.startswith("checkpoints/") and name not in FIXES
    }


def model_rows(resources: Resources, teachers: Mapping[str, Resources] | None = None) -> Iterator[Row]:
    """Report the models that the settings name, or without settings the embedded ones; these are required.

    teachers  of `teachers_of`
    """
    embedded = embedded_models()
    # The embedded models are files of the repository; a source archive or an image cannot restore them.
    restore = "git checkout -- {}" if (PROJECT / ".git").exists() else "make weights"
    named = {(PRIOR, resources.prior): resources, (CLIP, resources.clip): resources}
    named |= {(f"{start}{PRIOR}", teacher.prior): teacher for start, teacher in (teachers or {}).items()}
    named_models = {(key, name): of for (key, name), of in named.items() if name is not None and name}
    others = [(key, name) for name, key in embedded.items() if (key, name) not in named_models]
    for key, name in [*named_models, *others]:
        required = (key, name) in named_models
        resources = named_models.get((key, name), Resources())
        folder = Path(in_project(name.removeprefix("local-dir:"))) if required else PROJECT / name
        local = (".", "/", "checkpoints/", "outputs/", "local-dir:")
        if not folder.exists() and name.count("/") == 1 and not name.startswith(local):
            yield hub_row(key, name, resources)
            continue
        problem = problem_of(folder, key, resources)
        otherwise = "-" if named_models and not required else "wrong" if folder.exists() else "missing"
        fix = restore.format(name) if name in embedded else FIXES.get(name, f"{key}=FOLDER")
        label, detail = key if required else "embedded", f"{name} {problem or 'is complete'}"
        yield make_row("models", label, not problem, detail, fix, otherwise)


def problem_of(folder: Path, key: str, resources: Resources) -> str:
    """Describe the problem of a model's folder or single file; "" if it is complete.

    Reads what the loaders read, but the values of the weights.
    """
    from amortized.model_folders import (
        is_single_file,
        read_additions,
        read_clip_folder,
        read_prior_folder,
        read_single_file,
    )

    try:
        single = key != CLIP and is_single_file(str(folder)) and folder.exists()
        if not single and not folder.is_dir():
            return "is not a folder"
        if key == CLIP:
            read_clip_folder(folder)
            return ""
        if single:
            read_single_file(folder, resources.architecture)
        else:
            read_prior_folder(folder, resources.variant)
        read_additions(resources.loras, resources.lora_scales, resources.tokens)
    except ValueError as error:
        return f"cannot be loaded: {error}"
    return ""


def hub_row(key: str, name: str, resources: Resources) -> Row:
    """Report a model of the Hub, or one of open_clip's ARCHITECTURE/TAG pairs."""
    if key == CLIP:
        return Row("models", key, "-", f"{name} is not a folder; the first evaluation downloads it")
    from huggingface_hub import try_to_load_from_cache

    # Every prior has it, with a UNet or a transformer; a folder of texts alone has not.
    cached = try_to_load_from_cache(name, "vae/config.json", revision=resources.revision)
    if isinstance(cached, str):
        return Row("models", key, "ok", f"{name} is in the Hub cache")
    if resources.allow_network:
        return Row("models", key, "-", f"{name} is not a folder; the run downloads it")
    from amortized.model_folders.hub import mirror_note

    fix = f"hf download {name}" + (f" --revision {resources.revision}" if resources.revision else "")
    detail = f"{name} is neither a folder nor in the Hub cache{mirror_note(name)}"
    return Row("models", key, "missing", detail, fix)


def shard_rows(shards: Iterable[str]) -> Iterator[Row]:
    """Report the text shards that the settings name."""
    for url in shards:
        from amortized.conditioning import ShardStore

        try:
            yield Row(
                "models", "text.shards", "ok", f"{url} has {count(len(ShardStore(url).keys), 'prompt')}"
            )
        except ValueError as error:
            detail, _, fix = str(error).partition(": ")
            yield Row("models", "text.shards", "wrong", detail, fix)
