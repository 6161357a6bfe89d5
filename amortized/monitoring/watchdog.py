"""Ends a stuck process, after dumping the stacks of all its threads."""

from __future__ import annotations

import faulthandler
import os
import socket
import sys
import threading
import time
from pathlib import Path

from amortized.parallel import World, claim_error_report


class Watchdog:
    """Exits the process if `beat` is not called for `timeout_s` seconds.

    One stuck rank blocks all others in a collective. Each dumps its stacks into `folder`, one prints the
    error, and the launcher restarts them.
    """

    def __init__(self, folder: Path, world: World, timeout_s: float) -> None:
        self.folder, self.world, self.timeout_s = folder, world, timeout_s
        self._last_beat, self._activity = time.monotonic(), "starting"
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._thread.start()

    def beat(self, activity: str) -> None:
        """Report progress; `activity` is what starts now."""
        self._last_beat, self._activity = time.monotonic(), activity

    def close(self) -> None:
        self._closed.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._closed.wait(max(0.0, self._last_beat + self.timeout_s - time.monotonic())):
            if time.monotonic() - self._last_beat >= self.timeout_s:
                self._exit()

    def _exit(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"process_{self.world.rank:05d}.txt"
        with path.open("w", encoding="utf-8") as file:
            file.write(f"{socket.gethostname()}, process {os.getpid()}, {self._activity}\n\n")
            file.flush()
            faulthandler.dump_traceback(file, all_threads=True)
        if claim_error_report():
            print(
                f"train.py: error: no progress for {self.timeout_s:g} s ({self._activity}); the stacks of "
                f"all processes are in {self.folder}: look for the one that the others wait for",
                file=sys.stderr,
                flush=True,
            )
        os._exit(1)
