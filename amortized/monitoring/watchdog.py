"""Ends a stuck process, after dumping the stacks of all its threads."""

from __future__ import annotations

import faulthandler
import os
import socket
import sys
import threading
import time
from pathlib import Path
from typing import TextIO

from amortized.parallel import World, claim_error_report

MAX_POLL_S = 1.0


class Watchdog:
    """Exits the process if `beat` is not called for `timeout_s` seconds in which the process could run.

    One stuck rank blocks all others in a collective. Each dumps its stacks into `folder`, one prints the
    error, and the launcher restarts them. A process that was stopped meanwhile (SIGSTOP, a suspended machine)
    is not stuck: the watchdog's own thread did not run either.
    """

    def __init__(self, folder: Path, world: World, timeout_s: float) -> None:
        self.folder, self.world, self.timeout_s = folder, world, timeout_s
        self._beats, self._activity = 0, "starting"
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._thread.start()

    def beat(self, activity: str) -> None:
        """Report progress; `activity` is what starts now."""
        self._activity = activity
        self._beats += 1

    def close(self) -> None:
        self._closed.set()
        self._thread.join()

    def _watch(self) -> None:
        poll_s = min(MAX_POLL_S, self.timeout_s / 10)
        idle_s, beats, before = 0.0, self._beats, time.monotonic()
        while not self._closed.wait(poll_s):
            now = time.monotonic()
            # This thread did not run during a longer gap: count what it would have waited.
            idle_s += min(now - before, 2 * poll_s)
            before = now
            if self._beats != beats:
                idle_s, beats = 0.0, self._beats
            elif idle_s >= self.timeout_s:
                self._exit()

    def _exit(self) -> None:
        try:
            place = self._dump_stacks()
            if claim_error_report():
                print(
                    f"train.py: error: no progress for {self.timeout_s:g} s ({self._activity}); the "
                    f"stacks of all processes are {place}: look for the one that the others wait for",
                    file=sys.stderr,
                    flush=True,
                )
        finally:  # even if stderr is closed
            os._exit(1)

    def _dump_stacks(self) -> str:
        """Write the stacks into the folder, or to stderr if that fails; returns the place."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with (self.folder / f"process_{self.world.rank:05d}.txt").open("w", encoding="utf-8") as file:
                self._dump(file)
            return f"in {self.folder}"
        except OSError as error:
            self._dump(sys.stderr)
            return f"above ({self.folder} cannot be written: {error.strerror})"

    def _dump(self, file: TextIO) -> None:
        file.write(f"{socket.gethostname()}, process {os.getpid()}, {self._activity}\n\n")
        file.flush()
        faulthandler.dump_traceback(file, all_threads=True)
