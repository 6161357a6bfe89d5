"""Trained generators on disk: load one from a run, export it, load the exported folder.

    FOLDER/{model.safetensors, config.json, README.md}

An exported folder is complete but for the text encoder, which it names with a fingerprint: it works on a
machine that never saw the run. Nothing in it is executed or unpickled.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
import yaml
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from amortized import __version__
from amortized.checkpointing import find_checkpoint, inference_part, load_meta, load_weights, read_part
from amortized.conditioning import ShardStore, TextBank, load_text_encoder
from amortized.config import Schedule, build_config, config_to_dict
from amortized.config.renamed import RENAMED_RUN_SETTINGS, rename_keys
from amortized.devices import local_device
from amortized.files import sync
from amortized.generation.card import model_card
from amortized.generation.config import SceneConfig, sharpness_at
from amortized.wording import command
from generators import DEFAULT_GENERATOR, GeneratorConfig, build_generator
from generators.environment import EnvironmentConfig

FORMAT = 1
Parts = tuple[nn.Module, TextBank, SceneConfig]  # the arguments of TextTo3D


@dataclass(frozen=True, kw_only=True)
class TextEncoderConfig:
    """The text encoder whose embeddings a generator was trained on."""

    path: str  # a folder in diffusers or transformers format, or a Hub id
    revision: str | None = None  # of a Hub id
    dtype: Literal["float16", "bfloat16", "float32", "float64"] = "float32"  # that it was trained with
    fingerprint: str = ""  # of its weights and vocabulary; empty: unknown, as before an export


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
    allow_network = settings is not None and settings["prior"]["allow_network"]
    settings = _run_settings(run) if settings is None else settings
    path = find_checkpoint(run, checkpoint)
    config = _model_config(settings, path)
    generator = build_generator(config.generator, config.environment, config.text_dim)
    load_weights(path, generator)
    encoder = _load_encoder(config.text_encoder, chosen, allow_network)
    shards = [url for url in settings["text"]["shards"] if allow_network or "://" not in url]  # a cache only
    return _assemble(generator, encoder, config, chosen, shards)


def _run_settings(run: Path) -> dict[str, Any]:
    """The settings in a run's config.yaml, under the keys of this release."""
    path = run / "config.yaml"
    if not path.exists():
        raise ValueError(f"{run} holds no run: its config.yaml is missing")
    try:
        settings = yaml.safe_load(path.read_text(encoding="utf-8"))
        return rename_keys(settings, RENAMED_RUN_SETTINGS)[0]
    except (OSError, ValueError, AttributeError, yaml.YAMLError) as error:
        raise ValueError(f"cannot read {path}: {' '.join(str(error).split())}") from error


def _model_config(settings: Mapping[str, Any], checkpoint: Path) -> ModelConfig:
    """What using a checkpoint depends on, from its run's settings."""
    meta = load_meta(checkpoint)
    try:
        trainer, text, prior = settings["trainer"], settings["text"], settings["prior"]
        schedule = trainer["sharpness"]
        sharpness: Schedule = tuple(schedule) if isinstance(schedule, list) else schedule
        if text["encoder"] is None:  # the generator takes the prior's text, at the prior's precision
            encoder = {"path": prior["path"], "revision": prior["revision"], "dtype": prior["dtype"]}
        else:
            encoder = {"path": text["encoder"], "revision": text["revision"]}
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
    except (KeyError, TypeError) as error:
        where = f"the config.yaml of {checkpoint.parents[1]}"
        raise ValueError(f"{where} is incomplete ({error}): restore the one that the run wrote") from error
    return build_config(ModelConfig, data)


# ---- an exported folder ---------------------------------------------------------------------------


def export(run: Path, folder: Path, checkpoint: str = "newest") -> Path:
    """Export a run's generator, with EMA weights if there are any; returns the checkpoint exported.

    The folder appears complete or not at all. Raises ValueError if the run or its checkpoint cannot be read,
    its text encoder is missing, or the folder exists.
    """
    if folder.exists():
        raise ValueError(f"{folder} exists: choose another folder, or remove it")
    path = find_checkpoint(run, checkpoint)
    settings = _run_settings(run)
    config = config_to_dict(_model_config(settings, path))
    encoder = _load_encoder(
        build_config(TextEncoderConfig, config["text_encoder"]), torch.device("cpu"), allow_network=False
    )
    config["text_encoder"]["fingerprint"] = encoder.fingerprint()
    training = {
        "corpus": settings["corpus"],
        "step": load_meta(path).step,
        "guidance": settings["guidance"],
        "prior": settings["prior"]["path"],
    }
    partial = folder.with_name(f".partial_{folder.name}")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    weights = read_part(path, inference_part(path))
    save_file(weights, partial / "model.safetensors", metadata={"format": "pt"})
    data = {"format": FORMAT, "amortized3d": __version__, **config, "training": training}
    (partial / "config.json").write_text(json.dumps(data, indent=1) + "\n")
    (partial / "README.md").write_text(model_card(run, folder.name, data), encoding="utf-8")
    for file in (*partial.iterdir(), partial):
        sync(file)
    partial.rename(folder)
    sync(folder.parent)
    return path


def load_exported(folder: str | Path, text_encoder: str | None = None, device: str = "auto") -> Parts:
    """The parts of an exported folder's `TextTo3D`; see `TextTo3D.from_pretrained`."""
    path = _local_folder(str(folder))
    try:
        data = json.loads((path / "config.json").read_text(encoding="utf-8"))
        if not isinstance(data, dict) or data.get("format") != FORMAT:
            raise ValueError("its config.json is of another version of this program")
        keys = ModelConfig.__dataclass_fields__
        config = build_config(ModelConfig, {key: data[key] for key in keys if key in data})
        generator = build_generator(config.generator, config.environment, config.text_dim)
        generator.load_state_dict(load_file(path / "model.safetensors"))
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ValueError(f"cannot load {folder} ({reason}): export it again from its run") from error
    recorded = config.text_encoder
    source = recorded if text_encoder is None else replace(recorded, path=text_encoder, revision=None)
    chosen = local_device(device)
    encoder = _load_encoder(source, chosen, allow_network=False)
    if recorded.fingerprint and encoder.fingerprint() != recorded.fingerprint:
        raise ValueError(
            f"{folder} was trained with the text encoder '{recorded.path}' ({recorded.fingerprint}), but "
            f"'{source.path}' is another one ({encoder.fingerprint()}): pass the folder of the original as "
            "text_encoder="
        )
    return _assemble(generator, encoder, config, chosen, ())


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


def _load_encoder(config: TextEncoderConfig, device: torch.device, allow_network: bool) -> Any:
    """The text encoder; raises ValueError that says which one is needed and how to get it."""
    path, revision, dtype = config.path, config.revision, getattr(torch, config.dtype)
    try:
        return load_text_encoder(
            path, revision=revision, dtype=dtype, device=device, allow_network=allow_network
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


def _assemble(
    generator: nn.Module, encoder: Any, config: ModelConfig, device: torch.device, shards: Sequence[str]
) -> Parts:
    stores = [ShardStore(url) for url in shards]
    texts = TextBank(encoder, device=device, stores=stores)
    generator = generator.to(device).eval().requires_grad_(False)
    return generator, texts, config.scenes
