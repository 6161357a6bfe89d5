"""TensorBoard's event file, written without a thread: a failed write raises in the call that made it."""

from __future__ import annotations

import io
import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from amortized.media import to_uint8
from amortized.monitoring.best_effort import append_whole


class Board:
    """Numbers, texts and pictures by step, appended to one event file in `folder`.

    All methods raise OSError. A file that was removed, with its folder or alone, is created again.
    """

    def __init__(self, folder: Path, start: int) -> None:
        """Steps after `start`, which will run again, are hidden in the files of earlier processes."""
        host = socket.gethostname()
        self.path = folder / f"events.out.tfevents.{int(time.time()):010d}.{host}.{os.getpid()}.0"
        self.start = start

    def numbers(self, step: int, values: Mapping[str, float | int]) -> None:
        """Add the numbers of a step, by name."""
        from torch.utils.tensorboard.summary import Summary  # type: ignore[attr-defined]

        points = [Summary.Value(tag=name, simple_value=float(value)) for name, value in values.items()]
        self._append(step, Summary(value=points))

    def text(self, step: int, name: str, text: str) -> None:
        """Add a text, shown as Markdown."""
        from torch.utils.tensorboard.summary import text as text_summary

        self._append(step, text_summary(name, text))

    def picture(self, step: int, name: str, image: Tensor) -> None:
        """Add an image [H, W, 3], float in [0, 1]."""
        from torch.utils.tensorboard.summary import image as image_summary

        self._append(step, image_summary(name, to_uint8(image), dataformats="HWC"))

    def _append(self, step: int, summary: Any) -> None:
        from torch.utils.tensorboard.writer import Event, SessionLog  # type: ignore[attr-defined]

        events = [Event(wall_time=time.time(), step=step, summary=summary)]
        if not self.path.exists():
            self.path.parent.mkdir(exist_ok=True)
            session = SessionLog(status=SessionLog.START)
            events = [
                Event(wall_time=time.time(), file_version="brain.Event:2"),
                Event(wall_time=time.time(), step=self.start + 1, session_log=session),
                *events,
            ]
        append_whole(self.path, b"".join(map(_record, events)))


def _record(event: Any) -> bytes:
    """An event as a record of the file."""
    from tensorboard.summary.writer.record_writer import RecordWriter

    buffer = io.BytesIO()
    RecordWriter(buffer).write(event.SerializeToString())
    return buffer.getvalue()
