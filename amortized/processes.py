"""Processes that work for this one: they end with it, even if it is killed."""

from __future__ import annotations

import multiprocessing
import os
import threading
from multiprocessing.connection import wait


def end_with_parent() -> None:
    """End this process, from now on, when the one that started it has ended, even by SIGKILL.

    It would wait for jobs forever, after it has written into a folder that another process may hold by now.
    """
    threading.Thread(target=_wait_for_parent, daemon=True).start()


def _wait_for_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)
