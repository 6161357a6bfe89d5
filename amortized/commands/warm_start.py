"""Warm start: one object that begins as what a trained generator makes of its prompt, or as splats of a file.

    source                          ingp                              splats
    a generator of SDFs             copied if it has the sizes of     on the surface
    a generator of densities        the object, else fitted (SDFs)    refused
    a run of splats                 refused                           copied
    .ply, .splat                    refused                           copied

Rank 0 makes the start, and the other ranks copy it.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from amortized.checkpointing import can_resume
from amortized.conditioning import TextBank
from amortized.conditioning.encoder_identity import are_same_encoder
from amortized.density_control import fit_rows
from amortized.files import in_project
from amortized.generation import TextTo3D, sharpness_at
from amortized.parallel import World
from amortized.random import generator_for
from amortized.splats import Parameters, from_surface, parameters_of, read_start
from amortized.starts import Fit, check_inside, fit_field
from amortized.types import AnyScene, Corpus, DensityScene, SplatScene
from amortized.untrusted import short
from amortized.wording import count
from generators.copies import copy_object, obstacles
from generators.environment import EnvironmentDensityScene, EnvironmentScene, WithEnvironment
from generators.field import FeatureField
from generators.hyper_ingp import HyperINGP
from generators.ingp import INGP, DensityField
from generators.splats import Splats

if TYPE_CHECKING:
    from amortized.commands.compose import RunConfig

FILES = (".ply", ".splat")


def warm_start(
    config: RunConfig, corpus: Corpus, bank: TextBank, generator: nn.Module, world: World
) -> list[str]:
    """Give an untrained generator the object that `config.start` names; returns notes to log. Collective.

    A run that resumes does not read the start. Raises ValueError on all ranks if it cannot be used.
    """
    if config.start is None:
        return []

    def made() -> tuple[list[str], dict[str, torch.Size]] | None:
        if not world.is_main or can_resume(Path(config.output), config.checkpointing):
            return None
        try:
            notes = _start(config, corpus[int(corpus.trained[0])].text, bank, generator, world.device)
        except ValueError as error:
            raise ValueError(f"start={short(str(config.start))}: {error}") from error
        return notes, {name: value.shape for name, value in generator.state_dict().items()}

    outcome = world.run_on_all(made)[0]
    if outcome is None:
        return []
    notes, sizes = outcome
    fit_rows(generator, sizes)
    for value in generator.state_dict().values():
        world.copy_from_main(value)
    return notes


def _start(
    config: RunConfig, text: str, bank: TextBank, generator: nn.Module, device: torch.device
) -> list[str]:
    target = _object_of(generator)
    path, rng = in_project(str(config.start)), generator_for(config.seed, "start")
    if Path(path).suffix.lower() in FILES and not Path(path).is_dir():
        if not isinstance(target, Splats):
            raise ValueError(
                f"points and splats start generator.name=splats, and generator.name={config.generator.name} "
                "starts from a run or an exported generator: give the folder of one"
            )
        note = _load_splats(target, read_start(path), "in the file", device)
        return [f"start: {short(path)}, {note}"]
    model = _load_model(path, bank, device)
    scene = model.scenes([text])
    scene_note = (
        _start_splats(target, scene, rng, device)
        if isinstance(target, Splats)
        else _start_field(target, model, scene, text, bank, rng, device)
    )
    notes = [f"start: {text!r} of {short(path)} ({model.identity}), {scene_note}"]
    if isinstance(target, INGP) and target.config.geometry == "sdf":
        notes += _sharpness_note(model.config.sharpness, config)
    return [*notes, *_copy_environment(model.generator, generator)]


def _sharpness_note(reached: float, config: RunConfig) -> list[str]:
    """A note if the object is rendered with a thicker surface at first than at the end of its training."""
    first = sharpness_at(config.trainer.sharpness, 0, config.trainer.steps)
    if first >= 0.9 * reached:
        return []
    return [
        f"start: trainer.sharpness begins at {first:g}, which blurs an object that was trained up to "
        f"{reached:g}: trainer.sharpness={reached:g} shows it as it was"
    ]


def _load_model(path: str, bank: TextBank, device: torch.device) -> TextTo3D:
    """The trained generator in a folder, which must take the same text as this run. Raises ValueError."""
    folder = Path(path)
    if (folder / "config.yaml").exists():
        model = TextTo3D.from_run(path, device=str(device))
    elif folder.exists() and not (folder / "config.json").exists():
        raise ValueError(
            "it holds neither a run (config.yaml) nor an exported generator (config.json): give the folder "
            f"of one, or for splats a {' or '.join(FILES)} file"
        )
    else:
        model = TextTo3D.from_pretrained(path, device=str(device))
    theirs, ours = model.texts.generator_encoder.encoder, bank.generator_encoder.encoder
    if not are_same_encoder(theirs, ours):
        raise ValueError(
            f"its generator takes the text of {short(theirs.name)} ({theirs.fingerprint()}), and this run "
            f"that of {short(ours.name)} ({ours.fingerprint()}): set text.encoder={short(theirs.name)}"
        )
    return model


def _object_of(generator: nn.Module) -> nn.Module:
    """A generator without its environment."""
    return generator.generator if isinstance(generator, WithEnvironment) else generator  # type: ignore[return-value]


# ---- splats -----------------------------------------------------------------------------------


def _start_splats(target: Splats, scene: AnyScene, rng: torch.Generator, device: torch.device) -> str:
    """Load the splats of a scene, or splats on its surface; returns a note."""
    if isinstance(scene, SplatScene):
        return _load_splats(target, parameters_of(scene), "copied", device)
    if isinstance(scene, DensityScene):
        raise ValueError(
            "its scene has densities, which have no surface to place splats on: give a generator with "
            "geometry=sdf"
        )
    splats = from_surface(scene, target.config.count, rng, device=device)
    return _load_splats(target, splats, "on the surface", device)


def _load_splats(target: Splats, splats: Parameters, origin: str, device: torch.device) -> str:
    """Load splats into the generator, without the few that are outside its ball; returns a note."""
    inside = check_inside(splats["means"], target.config.bounding_radius, "splats")
    target.load({name: value[inside].to(device) for name, value in splats.items()})
    note = f"{count(target.count, 'splat')} {origin}"
    left_out = int((~inside).sum())
    return f"{note}; {left_out:,} outside the bounding ball are left out" if left_out else note


# ---- fields -----------------------------------------------------------------------------------


def _start_field(
    target: nn.Module,
    model: TextTo3D,
    scene: AnyScene,
    text: str,
    bank: TextBank,
    rng: torch.Generator,
    device: torch.device,
) -> str:
    """Copy a scene into an `INGP`, or fit its field to it; returns a note."""
    assert isinstance(target, INGP), "a generator of one object is an INGP or splats"
    if isinstance(scene, SplatScene):
        raise ValueError("its scene is splats, which start generator.name=splats: use that")
    source = _object_of(model.generator)
    different = obstacles(source, target)
    if not different:
        plain = scene.scene if isinstance(scene, EnvironmentScene | EnvironmentDensityScene) else scene
        assert isinstance(source, HyperINGP | INGP) and isinstance(plain, FeatureField | DensityField)
        copy_object(source, plain, target)
        return "copied"
    if isinstance(scene, DensityScene):
        raise ValueError(
            "its scene has densities, which are copied but not fitted: give this run the settings of that "
            f"one ({' '.join(different)})"
        )
    condition = bank.generator_text([text])
    prepare = target.enlarge_outputs
    fit = fit_field(target, lambda: target(condition), scene, rng=rng, device=device, prepare=prepare)
    hint = "" if different == ["generator.name"] else f"; {' '.join(different)} would copy it exactly"
    return f"fitted in {fit.seconds:.1f} s: {_improvement(fit)}{hint}"


def _improvement(fit: Fit) -> str:
    """The errors of a fit, in words."""
    before, after = fit.before, fit.after
    return (
        f"IoU with it {before.iou:.3f} before and {after.iou:.3f} after, color error "
        f"{before.color_error:.3f} and {after.color_error:.3f}"
    )


# ---- environments -----------------------------------------------------------------------------


def _copy_environment(source: nn.Module, target: nn.Module) -> list[str]:
    """Copy the learned background if both have the same kind; returns a note, or none without one."""
    if not isinstance(target, WithEnvironment):
        has_one = isinstance(source, WithEnvironment)
        return ["start: its learned background is left out, as environment=null"] if has_one else []
    old = source.surroundings.state_dict() if isinstance(source, WithEnvironment) else {}
    new = target.surroundings.state_dict()
    same_kind = isinstance(source, WithEnvironment) and (
        type(source.surroundings) is type(target.surroundings)
        and {name: value.shape for name, value in old.items()}
        == {name: value.shape for name, value in new.items()}
    )
    if not same_kind:
        return ["start: the background begins untrained, as the start has none of the same kind and sizes"]
    target.surroundings.load_state_dict(old)
    return ["start: its learned background is copied"]
