"""What a run writes about itself, on rank 0 only: JSON lines, TensorBoard, a progress bar, a tracker."""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tqdm import tqdm

from amortized.names import text_hash
from amortized.training.settings import TrainerConfig


class RunLog:
    """`log.jsonl` has a line a step, `events.jsonl` one for whatever else is worth a word, with its time.

    The numbers are also in TensorBoard, beside the progress bar, and with the tracker that the config names.
    Raises ValueError where that is not installed.
    """

    def __init__(self, folder: Path, config: TrainerConfig, *, start: int, quiet: bool = False) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.step = start
        path = folder / "log.jsonl"
        _drop_lines_from(path, start)
        self.tracker = _open_tracker(config.tracker, folder)
        self.file, self.events = path.open("a"), (folder / "events.jsonl").open("a")
        self.board = SummaryWriter(str(folder / "tensorboard"), purge_step=start)
        self.bar = tqdm(
            total=config.steps,
            initial=start,
            desc="training",
            unit="step",
            dynamic_ncols=True,
            mininterval=1.0,
            disable=quiet,
        )

    def write(self, step: int, values: Mapping[str, float | int | str]) -> None:
        """`values` of a finished step (counted from 1)."""
        self.file.write(json.dumps({"step": step, **values}) + "\n")
        self.file.flush()
        numbers = {name: value for name, value in values.items() if not isinstance(value, str)}
        for name, value in numbers.items():
            self.board.add_scalar(name, value, step)
        if self.tracker is not None:
            self.tracker.log(numbers, step=step)

    def note(self, text: str) -> None:
        """A line above the progress bar, kept with its time."""
        event = {"time": datetime.now(UTC).isoformat(timespec="seconds"), "step": self.step, "note": text}
        self.events.write(json.dumps(event, ensure_ascii=False) + "\n")
        self.events.flush()
        self.board.add_text("notes", text, self.step)
        if not self.bar.disable:
            self.bar.write(text)

    def advance(self, **shown: float | int) -> None:
        """One step more."""
        self.step += 1
        self.bar.set_postfix(
            {name: f"{value:.3g}" if isinstance(value, float) else value for name, value in shown.items()},
            refresh=False,
        )
        self.bar.update()

    def close(self) -> None:
        self.bar.close()
        self.board.close()
        self.file.close()
        self.events.close()
        if self.tracker is not None:
            self.tracker.finish()


def _open_tracker(name: str | None, folder: Path) -> Any:
    """wandb or trackio, which speak alike, with this run opened, or gone on with."""
    if name is None:
        return None
    try:
        tracker = importlib.import_module(name)
    except ImportError as error:
        raise ValueError(
            f"trainer.tracker={name} is not installed: pip install {name}, or set trainer.tracker=null"
        ) from error
    identity = {"id": text_hash(str(folder.resolve())), "dir": str(folder)} if name == "wandb" else {}
    tracker.init(project="amortized3d", name=folder.name, resume="allow", **identity)
    return tracker


def _drop_lines_from(path: Path, start: int) -> None:
    """Forget lines of steps after `start`, and a half-written last line: those steps come again."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text().splitlines():
        try:
            if json.loads(line)["step"] <= start:
                kept.append(line)
        except (json.JSONDecodeError, KeyError):
            continue
    partial = path.with_suffix(".partial")
    partial.write_text("".join(f"{line}\n" for line in kept))
    partial.replace(path)
