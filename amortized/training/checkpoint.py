"""Checkpoints: a folder per step, whole or absent.

    checkpoints/step_000500/{generator,ema,learned}.safetensors, optimizer.pt, state.json

A folder is written under a temporary name, flushed to disk, and renamed; so the newest folder of
the right name is always complete. Tensors are read with safetensors or `weights_only=True`.
"""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from amortized.files import sync

_NAME = re.compile(r"step_(\d{6,})")


@dataclass(frozen=True, kw_only=True)
class TrainingState:
    """Everything that continuing needs besides the config: randomness is a function of the step."""

    generator: nn.Module
    ema: nn.Module | None  # a copy of the generator with averaged weights
    optimizer: torch.optim.Optimizer
    learned: nn.Module | None = None  # what guidance learns of the renders
    prior: str = ""  # a fingerprint of the weights that teach, which are not saved


def save_checkpoint(folder: Path, step: int, state: TrainingState, *, prompts_seen: int, keep: int) -> Path:
    """Write `folder/step_NNNNNN` and remove all but the newest `keep` checkpoints.

    `prompts_seen` is where the order of prompts goes on, whatever the number of processes then.
    """
    final = folder / f"step_{step:06d}"
    partial = folder / f".partial_{final.name}"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    save_file(_tensors(state.generator), partial / "generator.safetensors")
    if state.ema is not None:
        save_file(_tensors(state.ema), partial / "ema.safetensors")
    if state.learned is not None:
        save_file(_tensors(state.learned), partial / "learned.safetensors")
    told = {"step": step, "prompts_seen": prompts_seen, "prior": state.prior}
    torch.save(state.optimizer.state_dict(), partial / "optimizer.pt")
    (partial / "state.json").write_text(json.dumps(told) + "\n")
    for file in [*partial.iterdir(), partial]:
        sync(file)
    if final.exists():  # the same step again, after a resume: same content
        shutil.rmtree(final)
    partial.rename(final)
    sync(folder)
    for old in list_checkpoints(folder)[:-keep]:
        shutil.rmtree(old)
    return final


def list_checkpoints(folder: Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    if not folder.is_dir():
        return []
    found = [path for path in folder.iterdir() if path.is_dir() and _NAME.fullmatch(path.name)]
    return sorted(found, key=step_of)


def step_of(checkpoint: Path) -> int:
    """Optimizer steps that the checkpoint has seen."""
    match = _NAME.fullmatch(checkpoint.name)
    assert match is not None, f"{checkpoint} is not named like a checkpoint"
    return int(match[1])


def load_checkpoint(checkpoint: Path, state: TrainingState, device: torch.device) -> tuple[int, int]:
    """Load all of `state` in place; returns the step, and the prompts seen until then.

    Raises ValueError where the parts do not fit.
    """
    try:
        saved = json.loads((checkpoint / "state.json").read_text())
        step, prompts_seen, prior = (saved[name] for name in ("step", "prompts_seen", "prior"))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{checkpoint}/state.json cannot be read ({error!r}): remove this checkpoint, to go on from the "
            "one before"
        ) from error
    if prior != state.prior:
        raise ValueError(
            f"{checkpoint} was taught by other weights than those that prior.path now holds: "
            "put them back, or start anew with output=FOLDER"
        )
    load_weights(checkpoint / "generator.safetensors", state.generator)
    if state.ema is not None:
        load_weights(checkpoint / "ema.safetensors", state.ema)
    if state.learned is not None:
        load_weights(checkpoint / "learned.safetensors", state.learned)
    moments = torch.load(checkpoint / "optimizer.pt", map_location=device, weights_only=True)
    state.optimizer.load_state_dict(moments)
    return step, prompts_seen


def load_weights(file: Path, module: nn.Module) -> None:
    """Load a safetensors file into a module in place; raises ValueError where it does not fit."""
    try:
        module.load_state_dict(load_file(file))
    except (RuntimeError, OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[-1].strip()
        raise ValueError(
            f"{file} does not fit the model of this config ({reason}): "
            "use the config.yaml of its run, or another checkpoint"
        ) from error


def generator_weights(run: Path) -> Path:
    """The newest averaged weights of a run (the plain ones where none are averaged)."""
    checkpoints = list_checkpoints(run / "checkpoints")
    if not checkpoints:
        raise ValueError(f"{run} holds no checkpoint: train it first (python train.py CONFIG output={run})")
    averaged = checkpoints[-1] / "ema.safetensors"
    return averaged if averaged.exists() else checkpoints[-1] / "generator.safetensors"


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().cpu().contiguous() for name, value in module.state_dict().items()}
