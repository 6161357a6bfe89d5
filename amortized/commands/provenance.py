"""The origin of an evaluation's results: code, run, checkpoint, machine."""

from __future__ import annotations

import hashlib
import subprocess
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from amortized import __version__
from amortized.commands.compose import RunConfig
from amortized.files import PROJECT
from amortized.guidance import method_name
from amortized.pages import History
from amortized.parallel import World
from amortized.untrusted import read_bytes


def provenance(
    run: Path,
    config: RunConfig,
    checkpoint: str,
    step: int,
    selection: str,
    history: History,
    world: World,
) -> dict[str, Any]:
    """Facts for results.json and the report, by key; what is not known is left out.

    Args:
        checkpoint, step: the evaluated checkpoint's name and its step.
        selection: the evaluated prompts, in words.
        history: of the run's training.
    """
    facts: Mapping[str, Any] = {
        "version": __version__,
        "commit": commit_of(PROJECT),
        "config": str(run / "config.yaml"),
        "config_sha256": _sha256(run / "config.yaml"),
        "method": " + ".join(method_name(teacher.guidance) for teacher in config.teachers.values()),
        "corpus": config.corpus if config.prompt is None else f"one prompt, {config.corpus}",
        "prompts": selection,
        "prior": " + ".join(teacher.prior.path for teacher in config.teachers.values()),
        "generator": config.generator.name,
        "checkpoint": checkpoint,
        "step": step,
        "steps": config.trainer.steps,
        "training_s": history.seconds,
        "seed": config.seed,
        "evaluation_seed": config.evaluation.seed,
        "device": _device(world),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    return {key: value for key, value in facts.items() if value is not None}


def commit_of(folder: Path) -> str | None:
    """The git commit that a folder is a checkout of, marked if files differ from it; None if it is none."""
    if not (folder / ".git").exists():
        return None

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(folder), *arguments]
        options = {"capture_output": True, "text": True, "encoding": "utf-8", "timeout": 10, "check": True}
        done = subprocess.run(command, **options)
        return done.stdout.strip()

    try:
        commit = git("rev-parse", "HEAD")
        return f"{commit[:12]}, with changes" if git("status", "--porcelain", "-uno") else commit[:12]
    except (OSError, subprocess.SubprocessError, ValueError):
        return None


def _sha256(path: Path) -> str | None:
    try:
        return hashlib.sha256(read_bytes(path)).hexdigest()
    except ValueError:
        return None


def _device(world: World) -> str:
    name = torch.cuda.get_device_name(world.device) if world.device.type == "cuda" else str(world.device)
    return name if world.size == 1 else f"{world.size} processes, {name}"
