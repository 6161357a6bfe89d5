"""The logs of a run: log.jsonl, events.jsonl, its page, TensorBoard, a progress bar, a tracker."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from torch import Tensor
from tqdm import tqdm
from tqdm.utils import ObjectWrapper

from amortized.files import atomic_path
from amortized.monitoring.best_effort import BestEffort, append_whole, described
from amortized.monitoring.board import Board
from amortized.monitoring.run_page import NAME as PAGE
from amortized.monitoring.run_page import RunPage, Status
from amortized.names import text_hash
from amortized.untrusted import open_regular

LINE_LIMIT = 2**20  # bytes; a longer line of log.jsonl is not one of ours
LOG_LIMIT = 2**34  # bytes


class RunLog:
    """Writes the numbers of a step to `log.jsonl` and events, with their time, to `events.jsonl`.

    The numbers also go to the page, to TensorBoard, to the progress bar and to the tracker, if the config
    names one. Each may fail, which `best_effort` reports as an event. Raises ValueError if the tracker is not
    installed.
    """

    def __init__(
        self,
        folder: Path,
        tracker: str | None,
        *,
        start: int,
        steps: int,
        quiet: bool = False,
        page: RunPage | None = None,
    ) -> None:
        self.step, self.best_effort, self.page = start, BestEffort(self.note), None
        self.log, self.events = folder / "log.jsonl", folder / "events.jsonl"
        self.board = Board(folder / "tensorboard", start)
        self.tracker, self.tracker_name = None, f"monitoring.tracker={tracker}"
        console: Any = _Console(sys.stderr, self.best_effort)
        self.bar = tqdm(
            total=steps,
            initial=start,
            desc="training",
            unit="step",
            dynamic_ncols=True,
            mininterval=1.0,
            disable=quiet,
            file=console,
        )
        with self.best_effort(described(self.log), (OSError, ValueError)):
            _drop_steps_after(self.log, start, page.add if page is not None else _ignore)
        if page is not None:
            with self.best_effort(PAGE, Exception):  # a run is worth more than its page, whatever is wrong
                page.check()
                self.page = page
            if start:
                with self.best_effort(f"the earlier events and previews to {PAGE}", Exception):
                    page.read_earlier()
        if tracker is not None:
            module = _import_tracker(tracker)
            with self.best_effort(self.tracker_name, Exception):  # of a library that may use the network
                self.tracker = _start_tracker(module, tracker, folder)

    def write(self, step: int, values: Mapping[str, float | int | str]) -> None:
        """Log `values` of a finished step, counted from 1."""
        with self.best_effort(described(self.log)):
            append_whole(self.log, (json.dumps({"step": step, **values}) + "\n").encode())
        numbers = {name: value for name, value in values.items() if not isinstance(value, str)}
        if self.page is not None:
            with self.best_effort(PAGE, Exception):
                self.page.add(step, numbers)
        with self.best_effort("tensorboard"):
            self.board.numbers(step, numbers)
        if self.tracker is not None:
            with self.best_effort(self.tracker_name, Exception):
                self.tracker.log(numbers, step=step)

    def note(self, text: str) -> None:
        """Log an event: a line above the progress bar, in events.jsonl and in TensorBoard."""
        event = self._event(text)
        self.show(text)
        self._append(event)
        if self.page is not None:
            self.page.event(**event)
        self.text("notes", text)

    def end(self, status: Status, reason: str) -> None:
        """Log the end of the run as the last line of events.jsonl, from which other programs know it."""
        self._append({**self._event(reason if status == "failed" else status), "status": status})

    def _event(self, text: str) -> dict[str, Any]:
        return {"time": datetime.now(UTC).isoformat(timespec="seconds"), "step": self.step, "note": text}

    def _append(self, event: Mapping[str, Any]) -> None:
        line = json.dumps(event, ensure_ascii=False) + "\n"
        with self.best_effort(described(self.events)):
            append_whole(self.events, line.encode(errors="backslashreplace"))

    def show(self, text: str) -> None:
        """Show a line above the progress bar."""
        bar = getattr(self, "bar", None)  # the first display of the bar may itself fail
        if bar is not None and not bar.disable:
            with self.best_effort("the console", (OSError, ValueError)):  # closed, full, or not Unicode
                bar.write(text)

    def text(self, name: str, text: str) -> None:
        """Add a text to TensorBoard."""
        with self.best_effort("tensorboard"):
            self.board.text(self.step, name, text.encode(errors="backslashreplace").decode())

    def picture(self, name: str, image: Tensor) -> None:
        """Add an image [H, W, 3], float in [0, 1], on the CPU, to TensorBoard."""
        with self.best_effort("tensorboard"):
            self.board.picture(self.step, name, image)

    def write_page(self, status: Status = "training", reason: str = "", needs_change: bool = False) -> None:
        """Write the run's page; see `RunPage.write`."""
        if self.page is not None:
            with self.best_effort(PAGE, Exception):
                self.page.write(status, reason, needs_change)

    def preview(self, path: Path) -> None:
        """Show the picture of a preview on the page, and its path on the console."""
        self.show(f"preview: {path}")
        if self.page is not None:
            self.page.preview(path)
            self.write_page()

    def advance(self, **shown: float | int) -> None:
        """Advance the progress bar by one step, and write the page if it is old."""
        self.step += 1
        if self.page is not None and self.page.advance(self.step):
            self.write_page()
        with self.best_effort("the console", (OSError, ValueError)):
            self.bar.set_postfix(
                {
                    name: f"{value:.3g}" if isinstance(value, float) else value
                    for name, value in shown.items()
                },
                refresh=False,
            )
            self.bar.update()

    def close(self) -> None:
        if self.tracker is not None:
            with self.best_effort(self.tracker_name, Exception):
                self.tracker.finish()
        self.best_effort.close()  # first: a closed bar shows nothing
        with self.best_effort("the console", (OSError, ValueError)):
            self.bar.close()


class _Console(ObjectWrapper):
    """A stream whose failures are reported, not raised.

    An error would leave the bar's lock acquired for good, and the thread that answers a signal waits for it.
    """

    def __init__(self, stream: Any, best_effort: BestEffort) -> None:
        super().__init__(stream)
        for name in ("write", "flush"):
            self.wrapper_setattr(name, _forgiving(getattr(stream, name), best_effort))

    def __eq__(self, other: object) -> bool:
        return self._wrapped == getattr(other, "_wrapped", other)

    def __hash__(self) -> int:
        return hash(self._wrapped)


def _forgiving(function: Callable[..., Any], best_effort: BestEffort) -> Callable[..., Any]:
    def called(*args: Any) -> Any:
        with best_effort("the console", (OSError, ValueError)):  # closed, full, or not Unicode
            return function(*args)

    return called


def _import_tracker(name: str) -> Any:
    """The module wandb or trackio, which share an API."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ValueError(
            f"monitoring.tracker={name} is not installed: pip install {name}, or set monitoring.tracker=null"
        ) from error


def _start_tracker(tracker: Any, name: str, folder: Path) -> Any:
    """The tracker's module, with this run created or resumed."""
    identity = {"id": text_hash(str(folder.resolve())), "dir": str(folder)} if name == "wandb" else {}
    tracker.init(project="amortized3d", name=folder.name, resume="allow", **identity)
    return tracker


def _ignore(step: int, values: Mapping[str, Any]) -> None:
    pass


def _drop_steps_after(path: Path, start: int, take: Callable[[int, Mapping[str, Any]], None]) -> None:
    """Drop log lines of steps after `start`, which will run again, and other lines; `take` the rest.

    Reads a line at a time, as a log may be large. Raises OSError, or ValueError if `path` is not a file.
    """
    if not path.exists():
        return
    with open_regular(path, LOG_LIMIT) as file, atomic_path(path) as temporary, temporary.open("wb") as new:
        while line := file.readline(LINE_LIMIT):
            if (entry := _entry_until(line, start)) is not None:
                take(entry["step"], entry)
                new.write(line.rstrip(b"\n") + b"\n")


def _entry_until(line: bytes, start: int) -> dict[str, Any] | None:
    """The entry in a whole line of log.jsonl if its step is at most `start`, else None."""
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        return None
    step = entry.get("step") if isinstance(entry, dict) else None
    return entry if isinstance(step, int) and step <= start else None
