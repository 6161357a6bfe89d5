"""The folder of a CLIP in open_clip's format, with images and texts in one space."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from amortized.model_folders.configs import (
    check_depth,
    check_no_adapter,
    check_value,
    known_values,
)
from amortized.model_folders.formats import OPEN_CLIP, OPEN_CLIP_TEXT, OPEN_CLIP_VISION
from amortized.model_folders.tokenizers import check_tokenizer
from amortized.model_folders.weights import Weights, read_weights
from amortized.untrusted import read_json_object, short

CONFIG_FILE = "open_clip_config.json"
WEIGHTS_FILE = "open_clip_model.safetensors"
LARGEST_IMAGE = 2048  # pixels
TOKENIZER = {"clean": "str", "strip_sep_token": "bool"}
CLEANING = ("whitespace", "lower", "canonicalize")
PREPROCESS = {
    "size": "int | list[int]",
    "mode": "str",
    "mean": "list[float]",
    "std": "list[float]",
    "interpolation": "str",
    "resize_mode": "str",
    "fill_color": "int",
}
LAYER_SETTINGS = {"eps": "float", "approximate": "str", "bias": "bool", "elementwise_affine": "bool"}


@dataclass(frozen=True)
class ClipFolder:
    """A CLIP's checked config, and the headers of its weights."""

    folder: Path
    model: Mapping[str, Any]  # arguments of open_clip.CLIP or CustomTextCLIP
    separate_text: bool  # whether it is a CustomTextCLIP
    preprocess: Mapping[str, Any]
    has_tokenizer: bool  # else it is open_clip's own
    tokenizer: Mapping[str, Any]  # cleaning of texts
    weights: Weights

    @property
    def config_file(self) -> Path:
        return self.folder / CONFIG_FILE


def read_clip_folder(folder: Path) -> ClipFolder:
    """Read all of a CLIP's folder but its weights.

    Raises ValueError if a file is missing or invalid, or names code or another model.
    """
    check_no_adapter(folder)
    file = folder / CONFIG_FILE
    data = read_json_object(file)
    top = _inner(file, data, ("model_cfg", "preprocess_cfg"))
    preprocess = known_values(file, top["preprocess_cfg"], PREPROCESS)
    _check_preprocess(file, preprocess)
    model_cfg = top["model_cfg"]
    if "multimodal_cfg" in model_cfg:
        raise ValueError(f"{short(file)}: 'multimodal_cfg' is of a CoCa, which is not supported: use a CLIP")
    towers = _inner(file, model_cfg, ("vision_cfg", "text_cfg"), others=True)
    model = known_values(file, {k: v for k, v in model_cfg.items() if k not in towers}, OPEN_CLIP)
    vision, text = dict(towers["vision_cfg"]), dict(towers["text_cfg"])
    names_tokenizer = _pop_name(file, text, "hf_tokenizer_name")
    settings = _pop_object(file, text, "tokenizer_kwargs", TOKENIZER)
    timm_name = _pop_name(file, vision, "timm_model_name")
    vision.pop("timm_model_pretrained", None)  # replaced below
    weights = read_weights(folder, WEIGHTS_FILE.removesuffix(".safetensors"))
    for tower, config, keys in (
        ("vision_cfg", vision, OPEN_CLIP_VISION),
        ("text_cfg", text, OPEN_CLIP_TEXT),
    ):
        layers = {
            key: _pop_object(file, config, key, LAYER_SETTINGS) for key in ("act_kwargs", "norm_kwargs")
        }
        checked = known_values(file, config, keys)
        check_depth(file, checked, len(weights.tensors))
        model[tower] = checked | {key: value for key, value in layers.items() if value}
    _check_image_size(file, model["vision_cfg"])
    if timm_name:
        model["vision_cfg"] |= {"timm_model_name": timm_name, "timm_model_pretrained": False}
    if settings.get("clean", CLEANING[0]) not in CLEANING:
        raise ValueError(f"{short(file)}: 'clean' must be one of {', '.join(CLEANING)}")
    if names_tokenizer:
        if not any(os.path.lexists(folder / name) for name in ("tokenizer.json", "vocab.json")):
            raise ValueError(f"{short(folder)} names a tokenizer ('hf_tokenizer_name') but contains none")
        check_tokenizer(folder)
    separate_text = bool(model.pop("custom_text", False))
    return ClipFolder(folder, model, separate_text, preprocess, bool(names_tokenizer), settings, weights)


def _inner(
    file: Path, data: Mapping[str, Any], keys: tuple[str, ...], *, others: bool = False
) -> dict[str, dict[str, Any]]:
    """Return the objects under `keys`; raises ValueError for another value, or (without `others`) key."""
    known_values(file, {} if others else {key: value for key, value in data.items() if key not in keys}, {})
    for key in keys:
        if not isinstance(data.get(key, {} if key == "preprocess_cfg" else None), dict):
            raise ValueError(f"{short(file)}: '{key}' must be an object")
    return {key: data.get(key, {}) for key in keys}


def _pop_name(file: Path, config: dict[str, Any], key: str) -> str | None:
    name = config.pop(key, None)
    check_value(file, key, name, "str | None")
    if name is not None and ":" in name:
        raise ValueError(f"{short(file)}: '{key}' is {short(repr(name))}, which names a model elsewhere")
    return name


def _pop_object(file: Path, config: dict[str, Any], key: str, known: Mapping[str, str]) -> dict[str, Any]:
    value = config.pop(key, None)
    if value is not None and not isinstance(value, dict):
        raise ValueError(f"{short(file)}: '{key}' must be an object")
    return known_values(file, value or {}, known)


def _check_image_size(file: Path, vision: Mapping[str, Any]) -> None:
    size = vision.get("image_size", 224)
    sides = size if isinstance(size, list) else [size]
    if len(sides) not in (1, 2) or not all(
        type(side) is int and 1 <= side <= LARGEST_IMAGE for side in sides
    ):
        raise ValueError(f"{short(file)}: 'image_size' must be from 1 to {LARGEST_IMAGE} pixels, got {size}")
    if vision.get("pos_embed_type", "learnable") != "learnable" and (vision.get("patch_size") or 0) < 4:
        raise ValueError(f"{short(file)}: 'patch_size' must be at least 4 for positions that are computed")
    if vision.get("pos_embed_type", "learnable") != "learnable" and vision.get("width", 0) > 2**14:
        raise ValueError(f"{short(file)}: 'width' must be at most {2**14:,} for positions that are computed")


def _check_preprocess(file: Path, preprocess: Mapping[str, Any]) -> None:
    for key in ("mean", "std"):
        values = preprocess.get(key, [0.5] * 3)
        if len(values) != 3 or key == "std" and not all(value > 0 for value in values):
            raise ValueError(f"{short(file)}: '{key}' must be three numbers{', positive' * (key == 'std')}")
    if (given := preprocess.get("interpolation", "bicubic")) not in ("bicubic", "bilinear"):
        raise ValueError(
            f"{short(file)}: needs {short(repr(given))} resizing, but only bicubic and bilinear are "
            "supported: set preprocess_cfg.interpolation"
        )
