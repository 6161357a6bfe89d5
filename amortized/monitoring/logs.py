"""The logs of a run: log.jsonl, events.jsonl, TensorBoard, a progress bar, a tracker."""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tqdm import tqdm

from amortized.names import text_hash


class RunLog:
    """Writes the numbers of a step to `log.jsonl` and events, with their time, to `events.jsonl`.

    The numbers also go to TensorBoard, to the progress bar and to the tracker, if the config names one.
    Raises ValueError if the tracker is not installed.
    """

    def __init__(
        self, folder: Path, tracker: str | None, *, start: int, steps: int, quiet: bool = False
    ) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.step = start
        path = folder / "log.jsonl"
        _drop_steps_after(path, start)
        self.tracker = _open_tracker(tracker, folder)
        self.file = path.open("a", encoding="utf-8")
        self.events = (folder / "events.jsonl").open("a", encoding="utf-8")
        self.board = SummaryWriter(str(folder / "tensorboard"), purge_step=start)
        self.bar = tqdm(
            total=steps,
            initial=start,
            desc="training",
            unit="step",
            dynamic_ncols=True,
            mininterval=1.0,
            disable=quiet,
        )

    def write(self, step: int, values: Mapping[str, float | int | str]) -> None:
        """Log the `values` of a finished step, counted from 1."""
        self.file.write(json.dumps({"step": step, **values}) + "\n")
        self.file.flush()
        numbers = {name: value for name, value in values.items() if not isinstance(value, str)}
        for name, value in numbers.items():
            self.board.add_scalar(name, value, step)
        if self.tracker is not None:
            self.tracker.log(numbers, step=step)

    def note(self, text: str) -> None:
        """Log an event: a line above the progress bar and in events.jsonl."""
        event = {"time": datetime.now(UTC).isoformat(timespec="seconds"), "step": self.step, "note": text}
        self.events.write(json.dumps(event, ensure_ascii=False) + "\n")
        self.events.flush()
        self.board.add_text("notes", text, self.step)
        if not self.bar.disable:
            self.bar.write(text)

    def advance(self, **shown: float | int) -> None:
        """Advance the progress bar by one step."""
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
    """The module wandb or trackio, which share an API, with this run created or resumed."""
    if name is None:
        return None
    try:
        tracker = importlib.import_module(name)
    except ImportError as error:
        raise ValueError(
            f"monitoring.tracker={name} is not installed: pip install {name}, or set monitoring.tracker=null"
        ) from error
    identity = {"id": text_hash(str(folder.resolve())), "dir": str(folder)} if name == "wandb" else {}
    tracker.init(project="amortized3d", name=folder.name, resume="allow", **identity)
    return tracker


def _drop_steps_after(path: Path, start: int) -> None:
    """Drop log lines of steps after `start`, which will run again, and a truncated last line."""
    if not path.exists():
        return
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            if json.loads(line)["step"] <= start:
                lines.append(line)
        except (json.JSONDecodeError, KeyError):
            continue
    partial = path.with_suffix(".partial")
    partial.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    partial.replace(path)
