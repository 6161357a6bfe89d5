"""LoRAs (arXiv 2106.09685) from safetensors files, added to the weights of the networks that they are for.

Read are the names that diffusers, peft inside diffusers, and kohya's scripts write, with their own alpha.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from amortized.model_folders.configs import sentences
from amortized.model_folders.weights import FLOATS, TensorHeader, check_format, headers_of, is_finite
from amortized.safetensors_header import read_header
from amortized.untrusted import short

UNET, TEXT = "UNet", "text encoder"
# How a tensor's name starts, and the network that it is for. Without any of them, it is for the UNet.
PREFIXES = {"lora_unet_": UNET, "lora_te_": TEXT, "lora_te1_": TEXT, "unet.": UNET, "text_encoder.": TEXT}
DOWN, UP = "down", "up"
# How a tensor's name ends, and which factor it is.
ENDS = {
    ".lora_down.weight": DOWN,
    ".lora_up.weight": UP,
    ".lora_A.weight": DOWN,
    ".lora_B.weight": UP,
    ".lora.down.weight": DOWN,
    ".lora.up.weight": UP,
    ".lora_linear_layer.down.weight": DOWN,
    ".lora_linear_layer.up.weight": UP,
    "_lora.down.weight": DOWN,
    "_lora.up.weight": UP,
    ".alpha": "alpha",
}
OTHER_KINDS = {
    "dora_scale": "DoRA",
    "lora_magnitude_vector": "DoRA",
    "hada_": "LoHa",
    "lokr_": "LoKr",
    "lora_mid": "LoCon with a third factor",
    "oft_": "OFT",
}
OLD_TEXT = {"to_q": "q_proj", "to_k": "k_proj", "to_v": "v_proj", "to_out": "out_proj"}
METADATA = "lora_adapter_metadata"  # diffusers' key for the settings of peft


@dataclass(frozen=True)
class Factors:
    """The headers of the two factors of one layer's LoRA."""

    down: TensorHeader  # [r, inputs], or [r, inputs, k, k]
    up: TensorHeader  # [outputs, r], or [outputs, r, 1, 1]
    alpha: TensorHeader | float  # their product is multiplied by alpha / r


@dataclass(frozen=True)
class Lora:
    """A LoRA's file and the layers that it changes, by network and by the layer's name in the file."""

    file: Path
    scale: float
    layers: Mapping[str, Mapping[str, Factors]]


def read_lora(file: Path, scale: float = 1.0) -> Lora:
    """Read all of a LoRA's file but its weights.

    scale  multiplies its contribution

    Raises ValueError if the file is damaged, or of another method.
    """
    check_format(file)
    tensors = headers_of([file], short(file)).tensors
    parts: dict[tuple[str, str], dict[str, TensorHeader]] = {}
    for name, header in tensors.items():
        kind, layer, role = _parse(file, name)
        if header.dtype not in FLOATS:
            raise ValueError(
                f"{short(file)}: '{short(name)}' is {header.dtype}, and only {', '.join(FLOATS)} are "
                "supported"
            )
        parts.setdefault((kind, layer), {})[role] = header
    settings = _settings(file)
    layers: dict[str, dict[str, Factors]] = {UNET: {}, TEXT: {}}
    for (kind, layer), found in parts.items():
        if found.keys() - {"alpha"} != {DOWN, UP}:
            raise ValueError(f"{short(file)}: the LoRA of '{short(layer)}' lacks one of its two factors")
        down, up = found[DOWN], found[UP]
        rank = down.shape[0] if down.shape else 0
        if rank == 0 or len(down.shape) not in (2, 4) or len(up.shape) not in (2, 4) or up.shape[1:] != (
            rank, *[1] * (len(up.shape) - 2)
        ):  # fmt: skip
            raise ValueError(
                f"{short(file)}: the factors of '{short(layer)}' are {list(down.shape)} and "
                f"{list(up.shape)}, which have no product"
            )
        layers[kind][layer] = Factors(
            down, up, found.get("alpha") or _alpha(file, settings, kind, layer, rank)
        )
    if not parts:
        raise ValueError(f"{short(file)} has no tensors")
    return Lora(file, scale, layers)


def _parse(file: Path, name: str) -> tuple[str, str, str]:
    """Return a tensor's network, layer and role; raises ValueError if it has none."""
    for mark, method in OTHER_KINDS.items():
        if mark in name:
            raise ValueError(
                f"{short(file)} is a {method} (tensor '{short(name)}'), and only plain LoRAs are supported: "
                "merge it into its base model with the tool that made it"
            )
    if name.startswith("base_model.model."):
        raise ValueError(
            f"{short(file)} is in peft's own format, whose alpha is in another file: save the LoRA by "
            "StableDiffusionPipeline.save_lora_weights"
        )
    end = next((each for each in ENDS if name.endswith(each)), None)
    prefix = next((each for each in PREFIXES if name.startswith(each)), "")
    layer = name.removeprefix(prefix).removesuffix(end or "").replace(".processor.", ".")
    if end is None or not re.fullmatch(r"[\w.]+", layer):
        raise ValueError(f"{short(file)}: the tensor '{short(name)}' is not of a LoRA for Stable Diffusion")
    kind = PREFIXES.get(prefix, UNET)
    if end.startswith("_"):  # of diffusers before 0.21
        before, _, own = layer.rpartition(".")
        own = OLD_TEXT.get(own, own) if kind == TEXT else own.replace("to_out", "to_out.0")
        layer = f"{before}.{own}"
    return kind, layer, ENDS[end]


def _settings(file: Path) -> dict[str, Any]:
    """Return the settings of peft in a file's metadata, {} without them; raises ValueError."""
    text = read_header(file)[1].get(METADATA)
    if text is None:
        return {}
    with sentences(f"{short(file)}: its metadata {METADATA} is damaged"):
        settings = json.loads(text)
        if not isinstance(settings, dict):
            raise ValueError("it is not an object")
    for key in ("unet.use_dora", "text_encoder.use_dora"):
        if settings.get(key):
            raise ValueError(f"{short(file)} is a DoRA ({key}), and only plain LoRAs are supported")
    return settings


def _alpha(file: Path, settings: Mapping[str, Any], kind: str, layer: str, rank: int) -> float:
    """Return a layer's alpha: as the metadata of diffusers says, else the rank."""
    prefix = "unet." if kind == UNET else "text_encoder."
    alpha = settings.get(f"{prefix}lora_alpha", rank)
    patterns = settings.get(f"{prefix}alpha_pattern") or {}
    if not isinstance(patterns, dict) or not all(re.fullmatch(r"\^?[\w.]+", key) for key in patterns):
        raise ValueError(f"{short(file)}: the metadata {prefix}alpha_pattern is not supported")
    for key, value in patterns.items():
        if re.fullmatch(rf"(.*\.)?({re.escape(key.removeprefix('^'))})", layer):
            alpha = value
            break
    if type(alpha) not in (int, float) or not abs(alpha) < 1e6:
        raise ValueError(f"{short(file)}: the metadata of '{short(layer)}' has no valid alpha")
    return alpha * rank**0.5 if settings.get(f"{prefix}use_rslora") else alpha


def fuse(lora: Lora, kind: str, network: Any) -> None:
    """Add a LoRA to the weights of `network`, the UNet or the text encoder by `kind`.

    The product is computed in float32, or float64 for such weights. Raises ValueError if layers or sizes do
    not fit the network, or values are not finite.
    """
    import torch
    from safetensors import safe_open

    targets = _targets(network)
    subject = f"the LoRA {short(lora.file)}"
    with safe_open(lora.file, "pt") as tensors, torch.no_grad():
        for layer, factors in lora.layers[kind].items():
            weight = targets.get(layer)
            if weight is None:
                raise ValueError(
                    f"{subject} has the layer '{short(layer)}', which this prior's {kind} lacks: it was "
                    "trained for another model"
                )
            dtype = torch.promote_types(weight.dtype, torch.float32)
            down, up = (each.read(tensors).to(dtype) for each in (factors.down, factors.up))
            alpha = factors.alpha
            alpha = float(alpha.read(tensors)) if isinstance(alpha, TensorHeader) else alpha
            product = up.flatten(1) @ down.flatten(1)  # [outputs, inputs k k]
            fits = up.shape[0] == weight.shape[0] and product.numel() == weight.numel()
            if not fits or down.shape[1] != weight.shape[1]:
                raise ValueError(
                    f"{subject}: '{short(layer)}' is for weights {[len(up), *down.shape[1:]]}, but this "
                    f"prior's {kind} has {list(weight.shape)}: it was trained for another model"
                )
            changed = weight.to(dtype) + lora.scale * alpha / len(down) * product.view_as(weight)
            changed = changed.to(weight.dtype)
            if not is_finite(changed):
                raise ValueError(
                    f"{subject}: '{short(layer)}' has values that are not finite in {weight.dtype}"
                )
            weight.copy_(changed)


def _targets(network: Any) -> dict[str, Any]:
    """Return the matrices and filters of a network under all names that files give their layers."""
    targets = {}
    for name, weight in network.named_parameters():
        layer = name.removesuffix(".weight")
        if layer == name or weight.ndim not in (2, 4):
            continue
        # Whether a CLIP's names start with "text_model." depends on the version of transformers.
        for each in {layer, layer.removeprefix("text_model."), f"text_model.{layer}"}:
            targets[each] = targets[each.replace(".", "_")] = weight
    return targets
