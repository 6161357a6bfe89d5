"""Ends a process that is stuck, with the stacks of all its threads."""

from __future__ import annotations

import faulthandler
import os
import socket
import sys
import threading
import time
from pathlib import Path

from amortized.training.distributed import World, first_to_say


class Watchdog:
    """Waits for beats, and ends the process where none comes for `patience` seconds.

    A process that is stuck keeps the others waiting: all of them leave their stacks in `folder`, one of them
    says so, and their launcher starts them again.
    """

    def __init__(self, folder: Path, world: World, patience: float) -> None:
        self.folder, self.world, self.patience = folder, world, patience
        self._last, self._doing = time.monotonic(), "starting"
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._thread.start()

    def beat(self, doing: str) -> None:
        """Something was done; `doing` is what comes now."""
        self._last, self._doing = time.monotonic(), doing

    def close(self) -> None:
        self._closed.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._closed.wait(max(0.0, self._last + self.patience - time.monotonic())):
            if time.monotonic() - self._last >= self.patience:
                self._end()

    def _end(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"process_{self.world.rank:05d}.txt"
        with path.open("w") as file:
            file.write(f"{socket.gethostname()}, process {os.getpid()}, {self._doing}\n\n")
            file.flush()
            faulthandler.dump_traceback(file, all_threads=True)
        if first_to_say():
            print(
                f"train.py: error: no progress for {self.patience:g} s ({self._doing}); the stacks of all "
                f"processes are in {self.folder}: one of them is stuck where the others wait for it",
                file=sys.stderr,
                flush=True,
            )
        os._exit(1)
