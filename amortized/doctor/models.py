"""Checks of the models and text shards that a run's settings name."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from amortized.cli import PRESETS, preset_paths
from amortized.doctor.machine import FIXES, Row, checked

ROOT = PRESETS.parent
PRIOR, CLIP = "prior.path", "evaluation.clip"
CONTENTS = {  # files in the folder that a setting names
    PRIOR: [f"{part}/*.safetensors" for part in ("text_encoder", "vae", "unet")]
    + ["tokenizer/*", "scheduler/scheduler_config.json"],
    CLIP: ["open_clip_config.json", "open_clip_model.safetensors"],
}


@dataclass(frozen=True, kw_only=True)
class Named:
    """The folders and models that a run's settings name."""

    output: str = "outputs"
    prior: str | None = None
    revision: str | None = None
    allow_network: bool = False
    clip: str | None = None
    shards: tuple[str, ...] = ()


def named_by(words: Sequence[str]) -> Named:
    """The folders and models named by [CONFIG] KEY=VALUE ... Raises ConfigError.

    Looks only at the keys it needs, so that it works without PyTorch and for any generator.
    """
    from amortized.config import build_config
    from amortized.config.presets import parse_overrides, read_presets

    presets = [Path(word) for word in words[:1] if "=" not in word]
    layers = [layer for path in presets for _, layer in read_presets(path)]
    layers += parse_overrides(words[len(presets) :])
    keys = {"output": "output", "prior": PRIOR, "revision": "prior.revision", "clip": CLIP}
    keys |= {"allow_network": "prior.allow_network", "shards": "text.shards"}
    values = {name: setting(layers, key) for name, key in keys.items()}
    return build_config(Named, {name: value for name, value in values.items() if value is not None})


def setting(layers: Iterable[Mapping[str, Any]], key: str) -> Any:
    """The value of a dotted key in the last layer that has it; None if none has."""
    result = None
    for value in layers:
        for part in key.split("."):
            if isinstance(value, Mapping):
                value = value.get(part)
            elif part != "path":  # `prior: FOLDER` is short for its path
                value = None
        result = result if value is None else value
    return result


def embedded() -> dict[str, str]:
    """The models of checkpoints/ that presets use, each with the setting that names it."""
    names: dict[str | None, str] = {}
    for path in preset_paths():
        with suppress(ValueError):  # a broken preset is reported to whoever trains with it
            named = named_by([str(path)])
            names |= {named.prior: PRIOR, named.clip: CLIP}
    shipped = {name: key for name, key in names.items() if name and name not in FIXES}
    return {name: key for name, key in shipped.items() if name.startswith("checkpoints/")}


def models(named: Named) -> Iterator[Row]:
    """The models that the settings name, which are required; without settings, the embedded ones are."""
    shipped = embedded()
    # The embedded models are files of the repository; a source archive or an image cannot restore them.
    restore = "git checkout -- {}" if (ROOT / ".git").exists() else "make weights"
    named_models = [(key, name) for key, name in ((PRIOR, named.prior), (CLIP, named.clip)) if name]
    for key, name in [
        *named_models,
        *((key, name) for name, key in shipped.items() if (key, name) not in named_models),
    ]:
        required = (key, name) in named_models
        folder = Path(name.removeprefix("local-dir:")) if required else ROOT / name
        local = (".", "/", "checkpoints/", "outputs/", "local-dir:")
        if not folder.is_dir() and name.count("/") == 1 and not name.startswith(local):
            yield published(key, name, named)
            continue
        problem = problem_of(folder, key)
        bad = "-" if named_models and not required else "wrong" if folder.is_dir() else "missing"
        fix = restore.format(name) if name in shipped else FIXES.get(name, f"{key}=FOLDER")
        label, found = key if required else "embedded", f"{name} {problem or 'is complete'}"
        yield checked("models", label, not problem, found, fix, bad)


def problem_of(folder: Path, key: str) -> str:
    """What is wrong with a model's folder, or ""; does not check the weights themselves."""
    from safetensors import SafetensorError, safe_open

    if not folder.is_dir():
        return "is not a folder"
    for pattern in CONTENTS[key]:
        files = sorted(folder.glob(pattern))
        if not files:
            return f"has no {pattern}"
        for file in files:
            try:
                if file.suffix == ".safetensors":
                    with safe_open(file, "np"):  # compares the file's length with its header
                        pass
            except (SafetensorError, OSError) as error:
                return f"is damaged at {file.relative_to(folder)}: {error}"
    return ""


def published(key: str, name: str, named: Named) -> Row:
    """A model of the Hub, or one of open_clip's ARCHITECTURE/TAG pairs."""
    if key == CLIP:
        return Row("models", key, "-", f"{name} is not a folder; the first evaluation downloads it")
    from huggingface_hub import try_to_load_from_cache

    cached = try_to_load_from_cache(name, "unet/config.json", revision=named.revision)
    if isinstance(cached, str):
        return Row("models", key, "ok", f"{name} is in the Hub cache")
    if named.allow_network:
        return Row("models", key, "-", f"{name} is not a folder; the run downloads it")
    fix = f"hf download {name}" + (f" --revision {named.revision}" if named.revision else "")
    return Row("models", key, "missing", f"{name} is neither a folder nor in the Hub cache", fix)


def texts(shards: Iterable[str]) -> Iterator[Row]:
    """The text shards that the settings name."""
    for url in shards:
        from amortized.conditioning import ShardStore

        try:
            yield Row("models", "text.shards", "ok", f"{url} has {len(ShardStore(url).keys):,} prompts")
        except ValueError as error:
            found, _, fix = str(error).partition(": ")
            yield Row("models", "text.shards", "wrong", found, fix)
