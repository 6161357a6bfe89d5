"""Make assets in a pool of processes, each of which loads the generator once."""

from __future__ import annotations

import json
import multiprocessing
import signal
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from amortized.assets import AssetError, Source, make_asset, save_asset
from amortized.commands.asset_options import AssetJob
from amortized.evaluation.folder import writing
from amortized.files import atomic_write_text
from amortized.generation import ModelSource, TextTo3D
from amortized.processes import end_with_parent


@dataclass(frozen=True, kw_only=True)
class AssetFiles:
    """The folder and the settings of all jobs."""

    folder: Path
    license: str
    options: dict[str, Any]  # of `save_asset`


def make_assets(
    source: ModelSource, model: TextTo3D, jobs: Sequence[AssetJob], files: AssetFiles, workers: int
) -> Iterator[tuple[AssetJob, str]]:
    """Make the assets, and yield each job as it ends, with the reason if its files cannot be made.

    With one worker everything happens in this process, with the loaded `model`. Raises the error of a
    worker, and ValueError if one was killed.
    """
    if workers == 1:
        for job in jobs:
            yield job, _make(model, job, files)
        return
    # Spawn: a process that has run threads, as PyTorch's, cannot be forked safely.
    spawn = multiprocessing.get_context("spawn")
    try:
        pool = ProcessPoolExecutor(workers, mp_context=spawn, initializer=_start_worker)
    except OSError as error:  # no semaphores, as in some containers
        raise ValueError(
            f"{workers} processes cannot share memory ({error.strerror}): make /dev/shm writable, or set "
            "--workers 1"
        ) from None
    try:
        pending = {pool.submit(_make_in_worker, source, model.identity, job, files): job for job in jobs}
        for future in as_completed(pending):
            yield pending.pop(future), future.result()
        pool.shutdown()
    except BrokenProcessPool:
        raise ValueError(
            f"one of {workers} worker processes was killed, probably for lack of memory: set --workers lower"
        ) from None
    finally:
        # On an error or Ctrl-C, end what still runs; the pool's own thread then collects the processes.
        for child in multiprocessing.active_children():
            child.terminate()
        pool.shutdown(cancel_futures=True)


def _start_worker() -> None:
    import torch

    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C reaches all processes: end without a traceback
    end_with_parent()
    torch.set_num_threads(1)  # the workers already occupy all cores


@cache
def _load(source: ModelSource) -> TextTo3D:
    return source.load()


def _make_in_worker(source: ModelSource, identity: str, job: AssetJob, files: AssetFiles) -> str:
    model = _load(source)
    if model.identity != identity:
        raise ValueError(f"the checkpoint of {source.path} has changed meanwhile: run the same command again")
    return _make(model, job, files)


def _make(model: TextTo3D, job: AssetJob, files: AssetFiles) -> str:
    """Make the files of a job; returns the reason if they cannot be made, "" otherwise."""
    source = Source(prompt=job.prompt, seed=job.seed, checkpoint=model.identity, license=files.license)
    try:
        asset = make_asset(model.scenes([job.prompt], seed=job.seed), job.config, source, model.device)
        with writing(files.folder):
            for format in job.formats:
                save_asset(asset, files.folder / job.name, format, **files.options)
            report = {"seed": job.seed, "model": model.identity, **asset.report}
            atomic_write_text(files.folder / f"{job.name}.json", json.dumps(report, indent=1) + "\n")
    except AssetError as error:
        return str(error)
    return ""
