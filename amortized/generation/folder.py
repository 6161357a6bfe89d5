"""Trained generators on disk: load one from a run, or from an exported folder.

    FOLDER/{model.safetensors, config.json, README.md, prompts.json}

An exported folder is complete but for the text encoder, which it names with a fingerprint: it works on a
machine that never saw the run. Nothing in it is executed or unpickled.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file
from torch import nn

from amortized.checkpointing import (
    CheckpointError,
    FileDigest,
    check_digest,
    find_checkpoint,
    first_not_finite,
    inference_part,
    load_manifest,
    load_meta,
    load_weights,
    parse_digests,
    stored_tensors,
    unlisted_note,
)
from amortized.conditioning import ShardStore, TextBank, load_text_encoder
from amortized.config import Schedule, build_config, config_to_dict
from amortized.config.renamed import RENAMED_RUN_SETTINGS, rename_keys
from amortized.density_control import fit_rows
from amortized.devices import local_device
from amortized.files import in_folders, in_project, started_in
from amortized.generation.config import SceneConfig, sharpness_at
from amortized.knowledge import PROMPTS
from amortized.model_folders import read_additions
from amortized.safetensors_header import read_header
from amortized.untrusted import read_json_object, read_yaml_object, reason_of, short
from amortized.wording import command
from generators import DEFAULT_GENERATOR, GeneratorConfig, build_generator
from generators.environment import EnvironmentConfig

FORMAT = 2
CONFIG, WEIGHTS, CARD, LOCK = "config.json", "model.safetensors", "README.md", ".lock"
UNREAD = (CARD, LOCK, ".git", ".gitattributes", ".gitignore", ".cache")  # expected beside them
Parts = tuple[nn.Module, TextBank, SceneConfig, str, str | None]  # the arguments of TextTo3D


@dataclass(frozen=True, kw_only=True)
class TextEncoderConfig:
    """The text encoder whose embeddings a generator was trained on."""

    path: str  # a folder in diffusers or transformers format, or a Hub id
    revision: str | None = None  # of a Hub id
    dtype: Literal["float16", "bfloat16", "float32", "float64"] = "float32"  # that it was trained with
    fingerprint: str = ""  # of its weights and vocabulary; empty: unknown, as before an export
    # What the run added to its prior's text encoder, see `PriorConfig`.
    loras: tuple[str, ...] | None = None
    lora_scales: tuple[float, ...] | None = None
    tokens: tuple[str, ...] | None = None


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Everything that using a generator's weights depends on."""

    generator: GeneratorConfig = field(default_factory=DEFAULT_GENERATOR)
    environment: EnvironmentConfig | None = None
    text_dim: int  # width of the text embeddings
    text_encoder: TextEncoderConfig
    scenes: SceneConfig


# ---- from a run -----------------------------------------------------------------------------------


def load_run(
    run: Path, checkpoint: str = "newest", device: str = "auto", settings: Mapping[str, Any] | None = None
) -> Parts:
    """The parts of a run's `TextTo3D`; `settings` replace its config.yaml, e.g. to change the renderer."""
    chosen = local_device(device)
    # The config.yaml of a run may come from elsewhere: it cannot allow the network, its user can.
    allow_network = settings is not None and settings["prior"]["allow_network"] is True
    settings = run_settings(run) if settings is None else settings
    path = find_checkpoint(run, checkpoint)
    config = model_config(settings, path)
    with one_sentence(f"the config.yaml of {short(run)}", "restore the one that the run wrote"):
        start = started_in(run, settings["output"])
        shards = [in_folders(url, *start) for url in settings["text"]["shards"]]
        part = f"{inference_part(path)}."
        stored = {name.removeprefix(part): t.shape for name, t in stored_tensors(path).items()}
        generator = _build(config, stored, path)
    load_weights(path, generator)
    encoder = load_encoder(config.text_encoder, chosen, allow_network)
    shards = [url for url in shards if allow_network or "://" not in url]  # a cache only
    parts = _assemble(generator, encoder, config, chosen, shards)
    prompt = _prompt_in(settings)
    return *parts, _identity(path.name, load_manifest(path), config), prompt


def checkpoint_of(run: Path, checkpoint: str = "newest") -> tuple[str, int]:
    """The name and step of the checkpoint that `load_run` loads. Raises ValueError if there is none."""
    path = find_checkpoint(run, checkpoint)
    return path.name, load_meta(path).step


def run_settings(run: Path) -> dict[str, Any]:
    """The settings in a run's config.yaml, under the keys of this release."""
    path = run / "config.yaml"
    if not path.exists():
        raise ValueError(
            f"{short(run)} holds no run (no config.yaml): name the folder that a training wrote, its `output`"
        )
    return rename_keys(read_yaml_object(path), RENAMED_RUN_SETTINGS)[0]


def model_config(settings: Mapping[str, Any], checkpoint: Path) -> ModelConfig:
    """What using a checkpoint depends on, from its run's settings."""
    meta = load_meta(checkpoint)
    run = checkpoint.parents[1]
    with one_sentence(f"the config.yaml of {short(run)}", "restore the one that the run wrote"):
        trainer, text, prior = settings["trainer"], settings["text"], settings["prior"]
        schedule = trainer["sharpness"]
        sharpness: Schedule = tuple(schedule) if isinstance(schedule, list) else schedule
        if text["encoder"] is None:  # the generator takes the prior's text, at the prior's precision
            encoder = {"path": prior["path"], "revision": prior["revision"], "dtype": prior["dtype"]}
        else:
            encoder = {"path": text["encoder"], "revision": text["revision"]}
        start = started_in(run, settings["output"])
        encoder["path"] = in_folders(encoder["path"], *start)
        if text["encoder"] is None:
            for key in ("loras", "tokens"):
                if prior.get(key) is not None:
                    encoder[key] = [in_folders(file, *start) for file in prior[key]]
            encoder["lora_scales"] = prior.get("lora_scales")
        data = {
            "generator": settings["generator"],
            "environment": settings.get("environment"),
            "text_dim": meta.text_dim,
            "text_encoder": encoder,
            "scenes": {
                "renderer": settings["renderer"],
                "sharpness": sharpness_at(sharpness, meta.step, trainer["steps"]),
                "cameras": settings["cameras"],
                "seed": settings["seed"],
                "seeds_per_prompt": trainer["seeds_per_prompt"],
            },
        }
        return build_config(ModelConfig, data)


@contextmanager
def one_sentence(what: str, remedy: str) -> Iterator[None]:
    """Context: whatever damaged settings make the code below raise becomes one sentence about `what`."""
    try:
        yield
    except CheckpointError:
        raise
    except KeyError as error:
        raise ValueError(f"{what} cannot be used ({error.args[0]} is missing): {remedy}") from error
    except (ValueError, TypeError, AttributeError, ArithmeticError, RuntimeError, OSError) as error:
        raise ValueError(f"{what} cannot be used ({reason_of(error)}): {remedy}") from error


def _build(config: ModelConfig, stored: Mapping[str, tuple[int, ...]], where: Path) -> nn.Module:
    """An untrained generator of a config.

    Its shapes are compared with those `stored` first, on a device without memory, so that a config which asks
    for more than there is in the file allocates nothing. Raises ValueError.
    """
    with torch.device("meta"):
        untrained = build_generator(config.generator, config.environment, config.text_dim)
        fit_rows(untrained, stored)
    for name, value in untrained.state_dict().items():
        if stored.get(name) != tuple(value.shape):
            found = "is missing" if name not in stored else f"has the shape {list(stored[name])}"
            raise ValueError(f"{name} {found} in {short(where)}, expected {list(value.shape)}")
    generator = build_generator(config.generator, config.environment, config.text_dim)
    fit_rows(generator, stored)
    return generator


# ---- an exported folder ---------------------------------------------------------------------------


def load_exported(folder: str | Path, text_encoder: str | None = None, device: str = "auto") -> Parts:
    """The parts of an exported folder's `TextTo3D`; see `TextTo3D.from_pretrained`.

    Only config.json and the files that it lists are read, and only if their digests match. The text encoder
    that it names, a path or a Hub id in the local cache, is read as any model folder: nothing in it runs.
    """
    path = _local_folder(str(folder))
    with one_sentence(short(folder), "export it again from its run"):
        data = read_json_object(path / CONFIG)
        config = _exported_config(data)
        files = parse_digests(data.get("files"), CONFIG)
        if files.keys() - {PROMPTS} != {WEIGHTS}:
            raise ValueError(f"{CONFIG} must list {WEIGHTS}, and no other file but {PROMPTS}")
        for name, file in files.items():
            check_digest(path / name, file)
        entries, _ = read_header(path / WEIGHTS)
        generator = _build(config, {name: entry.shape for name, entry in entries.items()}, path)
        generator.load_state_dict(load_file(path / WEIGHTS))
        if name := first_not_finite(generator.state_dict()):
            raise ValueError(f"{name} has values that are not finite")
    if note := unlisted_note(path, {*files, CONFIG, *UNREAD}):
        logging.getLogger("amortized").warning("%s", note)
    recorded = config.text_encoder
    source = replace(recorded, path=in_project(recorded.path))
    if text_encoder is not None:
        source = replace(recorded, path=text_encoder, revision=None)
    chosen = local_device(device)
    encoder = load_encoder(source, chosen, allow_network=False)
    if recorded.fingerprint and encoder.fingerprint() != recorded.fingerprint:
        raise ValueError(
            f"{folder} was trained with the text encoder '{recorded.path}' ({recorded.fingerprint}), but "
            f"'{source.path}' is another one ({encoder.fingerprint()}): pass the folder of the original as "
            "text_encoder="
        )
    prompt = _prompt_in(data.get("training"))
    check_width(encoder, config.text_dim, folder, source.path)
    parts = _assemble(generator, encoder, config, chosen, ())
    return *parts, _identity(path.resolve().name, {WEIGHTS: files[WEIGHTS]}, config), prompt


def _prompt_in(settings: Any) -> str | None:
    """The only prompt of a training, by a run's settings or an export's summary of them; None: several."""
    prompt = settings.get("prompt") if isinstance(settings, Mapping) else None
    return prompt if isinstance(prompt, str) else None


def _exported_config(data: Mapping[str, Any]) -> ModelConfig:
    """The config in the data of an exported config.json. Raises ValueError."""
    if data.get("format") != FORMAT:
        raise ValueError(f"its {CONFIG} is of another version of this program")
    keys = ModelConfig.__dataclass_fields__.keys()
    if unknown := sorted(data.keys() - keys - {"format", "amortized3d", "training", "files"}):
        raise ValueError(f"its {CONFIG} has the unknown key {short(unknown[0])}")
    return build_config(ModelConfig, {key: data[key] for key in keys if key in data})


def _local_folder(folder: str) -> Path:
    """A folder, or the cached snapshot of a Hub id. Raises ValueError if it is neither."""
    if Path(folder).is_dir():
        return Path(folder)
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(folder, local_files_only=True))
    except Exception as error:  # the Hub library has a dozen classes of errors
        raise ValueError(
            f"'{folder}' is neither a folder nor a Hub id in the local cache: export a run to it "
            f"({command('export', 'RUN', folder)}), or download it (hf download {folder})"
        ) from error


# ---- parts ----------------------------------------------------------------------------------------


def load_encoder(config: TextEncoderConfig, device: torch.device, allow_network: bool) -> Any:
    """The text encoder; raises ValueError that says which one is needed and how to get it."""
    path, revision, dtype = config.path, config.revision, getattr(torch, config.dtype)
    try:
        return load_text_encoder(
            path,
            revision=revision,
            dtype=dtype,
            device=device,
            allow_network=allow_network,
            additions=read_additions(config.loras, config.lora_scales, config.tokens),
        )
    except ValueError as error:
        remedy = "copy the folder from the machine of the training"
        if path.count("/") == 1 and not path.startswith((".", "checkpoints/", "outputs/")):
            remedy = (
                f"download it (hf download {path}{'' if revision is None else f' --revision {revision}'})"
            )
        raise ValueError(
            f"this generator needs the text encoder '{path}', which cannot be loaded here: {remedy}, or pass "
            f"its folder as text_encoder= ({error})"
        ) from error


def check_width(encoder: Any, text_dim: int, folder: str | Path, path: str) -> None:
    """Raise ValueError unless an encoder's embeddings, `path` in messages, have the width of a generator."""
    if encoder.width != text_dim:
        raise ValueError(
            f"{short(folder)} takes text embeddings of width {text_dim}, but those of '{path}' have "
            f"{encoder.width}: it needs the text encoder that it was trained with"
        )


def _assemble(
    generator: nn.Module, encoder: Any, config: ModelConfig, device: torch.device, shards: Sequence[str]
) -> tuple[nn.Module, TextBank, SceneConfig]:
    stores = [ShardStore(url) for url in shards]
    texts = TextBank(encoder, device=device, stores=stores)
    generator = generator.to(device).eval().requires_grad_(False)
    return generator, texts, config.scenes


def _identity(name: str, files: Mapping[str, FileDigest], config: ModelConfig) -> str:
    """A name, and 16 digits of a digest of the files and of all settings but the text encoder's path."""
    encoder = replace(config.text_encoder, path="", revision=None)
    digests = {name: file.sha256 for name, file in files.items()}
    data = [digests, config_to_dict(replace(config, text_encoder=encoder))]
    digest = hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()
    return f"{name} {digest[:16]}"
