"""The images of a protocol: of a run's fields or splats, of their meshes, or of GLB files."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from amortized.assets import AssetConfig, AssetError, check_libraries, make_asset
from amortized.assets import Source as AssetSource
from amortized.assets.conventions import FileOptions
from amortized.assets.glb import write_glb
from amortized.assets.read_glb import PaintedPart, parse_glb, read_glb
from amortized.commands.compose import RunConfig
from amortized.config import config_to_dict
from amortized.evaluation import EvaluatedModel
from amortized.evaluation.judging import Show, show_fields, show_meshes
from amortized.evaluation.protocols import EvaluationProtocol
from amortized.generation import TextTo3D
from amortized.generation.folder import load_run
from amortized.names import slug
from amortized.types import AnyScene, Cameras, Prompt, Render
from amortized.untrusted import short

FIELD, MESH = "field", "mesh"
PLACES = ("{id}", "{slug}", "{prompt}")


@dataclass(frozen=True, kw_only=True)
class Source:
    """The images of prompts, and what they are of."""

    kind: str  # field, splats, mesh or files
    identity: str  # of the model, with its digest, or the path of the files
    show: Show


def check_show(show: str) -> None:
    """Raise ValueError unless `show` is field, mesh, or a path to a GLB with a place for the prompt."""
    if show in (FIELD, MESH):
        return
    if not show.lower().endswith(".glb") or not any(place in show for place in PLACES):
        raise ValueError(
            f"--show must be field, mesh, or the path of GLB files with one of {', '.join(PLACES)} in it, "
            f"such as 'meshes/{{slug}}.glb', got {short(show)}"
        )


def build_source(
    show: str,
    run: Path,
    checkpoint: str,
    config: RunConfig,
    protocol: EvaluationProtocol,
    device: torch.device,
) -> Source:
    """The images that --show names. Files need no model, so none is loaded for them.

    Raises ValueError if the model cannot be loaded, or a library is missing.
    """
    gray = config.evaluation.background
    if show not in (FIELD, MESH):
        parts_of = _parts_of_files(show)
        shown = show_meshes(parts_of, protocol, background=gray, device=device)
        return Source(kind="files", identity=show, show=shown)
    model = TextTo3D(*load_run(run, checkpoint, str(device), config_to_dict(config)))
    if show == MESH:
        check_libraries(AssetConfig())
        shown = show_meshes(_parts_of_model(model), protocol, background=gray, device=device)
        return Source(kind=MESH, identity=model.identity, show=shown)
    kind = "splats" if model.makes_splats else FIELD
    shown = show_fields(_evaluated(model, protocol, gray), protocol)
    return Source(kind=kind, identity=model.identity, show=shown)


def _parts_of_files(pattern: str) -> Callable[[Prompt], list[PaintedPart]]:
    def parts_of(prompt: Prompt) -> list[PaintedPart]:
        path = path_of(pattern, prompt)
        if not path.exists():
            raise AssetError(f"there is no {short(path)}")
        return read_glb(path)

    return parts_of


def path_of(pattern: str, prompt: Prompt) -> Path:
    """The file of a prompt: {id}, {slug} as in the names of pictures, or {prompt}, its words joined by _.

    The text of a prompt cannot lead into another folder.
    """
    words = prompt.text.replace("/", "_").replace("\\", "_").replace(" ", "_").replace("\0", "")
    values = (prompt.id, slug(prompt.text), words)
    for place, value in zip(PLACES, values, strict=True):
        pattern = pattern.replace(place, value)
    return Path(pattern).expanduser()


def _parts_of_model(model: TextTo3D) -> Callable[[Prompt], list[PaintedPart]]:
    """The GLB that `generate` writes of a prompt, with its default settings."""

    def parts_of(prompt: Prompt) -> list[PaintedPart]:
        source = AssetSource(prompt=prompt.text)
        asset = make_asset(model.scenes([prompt]), AssetConfig(), source, torch.device(model.device))
        return parse_glb(write_glb(asset, FileOptions()), "the mesh")

    return parts_of


def _evaluated(model: TextTo3D, protocol: EvaluationProtocol, gray: float) -> EvaluatedModel:
    """The model, rendered with the background of a protocol."""
    learned = protocol.background is None
    behind = gray if protocol.background is None else protocol.background

    def look(scene: AnyScene, cameras: Cameras, height: int, width: int) -> Render:
        return model.images(scene, cameras, (height, width), background=behind, show_environment=learned)

    return EvaluatedModel(scene_for=model.scenes, render=look, device=model.device)
