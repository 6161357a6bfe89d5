"""Processes that make files: each has limits of time and memory, and is replaced if it exceeds them.

Messages between this process and a worker are JSON, so a worker cannot make this process run anything.
"""

from __future__ import annotations

import asyncio
import json
import logging
import multiprocessing
import shutil
import signal
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from amortized.processes import end_with_parent
from amortized.serve.logs import log, logging_to_stderr, where
from amortized.serve.problems import Failure
from amortized.serve.queues import FairQueue
from amortized.serve.store import FULL

LOAD_S = 300.0  # for imports and the model, before a task's own time begins
# (task, folder to write into, receiver of stages) -> report. Calls on_stage("begin") once it has loaded.
Maker = Callable[[dict[str, Any], Path, Callable[[str], None]], dict[str, Any]]
OnStage = Callable[[str], None]


class _Lost(Exception):
    """The process ended in the middle of a task."""


class Worker:
    """One process, started at its first task. Its methods block: call them in a thread."""

    def __init__(self, maker: Maker, *, limit_s: float, memory: int | None) -> None:
        self.maker, self.limit_s, self.memory = maker, limit_s, memory
        self.process: Any = None
        self.closed = False
        self._connection: Connection | None = None

    def run(self, task: dict[str, Any], folder: Path, on_stage: OnStage) -> dict[str, Any]:
        """The report of a task, whose files are in `folder` then. Tries again once if the process is lost.

        Raises Failure.
        """
        for attempt in (1, 2):
            if self.closed:
                break
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            try:
                return self._attempt(task, folder, on_stage)
            except _Lost:
                self.kill()
                if not self.closed:
                    log("worker lost", level=logging.WARNING, attempt=attempt)
        raise Failure("worker_lost")

    def _attempt(self, task: dict[str, Any], folder: Path, on_stage: OnStage) -> dict[str, Any]:
        connection = self._started()
        deadline = time.monotonic() + LOAD_S
        try:
            connection.send_bytes(json.dumps([task, str(folder)]).encode())
        except OSError:
            raise _Lost from None
        while True:
            ready = wait([connection, self.process.sentinel], max(0, deadline - time.monotonic()))
            if not ready:
                self.kill()
                raise Failure("timeout", f"making the files took over {self.limit_s:g} s")
            if connection not in ready:
                raise _Lost
            try:
                message = json.loads(connection.recv_bytes())
            except (EOFError, OSError, ValueError):
                raise _Lost from None
            if "stage" in message:
                if message["stage"] == "begin":
                    deadline = time.monotonic() + self.limit_s
                on_stage(message["stage"])
            elif "code" in message:
                if message["code"] == "out_of_memory":  # what it holds is unknown
                    self.kill()
                raise Failure(message["code"], message["detail"])
            else:
                return message["report"]

    def _started(self) -> Connection:
        if self.process is not None and self.process.is_alive() and self._connection is not None:
            return self._connection
        self.kill()
        spawn = multiprocessing.get_context("spawn")  # a process that has run threads cannot be forked
        ours, theirs = spawn.Pipe()
        process = spawn.Process(target=_work, args=(theirs, self.maker, self.memory), daemon=True)
        process.start()
        self.process, self._connection = process, ours
        theirs.close()
        return ours

    def kill(self) -> None:
        """End the process, if there is one."""
        if self.process is not None:
            self.process.kill()
            self.process.join()
            self.process = None
        if self._connection is not None:
            self._connection.close()
            self._connection = None


@dataclass(eq=False)
class _Entry:
    task: dict[str, Any]
    folder: Path
    on_stage: OnStage
    future: asyncio.Future[dict[str, Any]]
    begun: bool = False


class AssetPool:
    """Several workers and the queue before them."""

    def __init__(self, maker: Maker, workers: int, *, limit_s: float, memory: int | None = None) -> None:
        """`limit_s` bounds a task, `memory` in bytes what it may allocate (None: no limit)."""
        self.workers = [Worker(maker, limit_s=limit_s, memory=memory) for _ in range(workers)]
        self._idle, self._queue = list(self.workers), FairQueue[_Entry]()
        self._threads = ThreadPoolExecutor(workers, thread_name_prefix="asset")
        self._tasks: set[asyncio.Task[None]] = set()

    def __len__(self) -> int:
        return len(self._queue)

    async def make(
        self,
        task: dict[str, Any],
        folder: Path,
        on_stage: OnStage = lambda stage: None,
        owner: str = "",
        *,
        background: bool = False,
    ) -> dict[str, Any]:
        """The report of a task. Raises Failure. `on_stage` is called in the event loop.

        Cancelled before it begins, the task is dropped; afterwards, this returns once the worker has ended
        it, so that nobody writes into `folder` any more.
        """
        loop = asyncio.get_running_loop()
        entry = _Entry(task, folder, _in_loop(loop, on_stage), loop.create_future())
        self._queue.push(entry, owner, background=background)
        self._dispatch()
        try:
            return await asyncio.shield(entry.future)
        except asyncio.CancelledError:
            if not entry.begun:
                entry.future.cancel()
            else:
                await asyncio.wait([entry.future])
                with suppress(Exception):
                    entry.future.result()
            raise

    def _dispatch(self) -> None:
        while self._idle and self._queue:
            entry = self._queue.pop()
            if entry.future.cancelled():
                continue
            entry.begun = True
            serving = asyncio.create_task(self._serve(self._idle.pop(), entry))
            self._tasks.add(serving)
            serving.add_done_callback(self._tasks.discard)

    async def _serve(self, worker: Worker, entry: _Entry) -> None:
        loop = asyncio.get_running_loop()
        try:
            report = await loop.run_in_executor(
                self._threads, worker.run, entry.task, entry.folder, entry.on_stage
            )
            if not entry.future.done():
                entry.future.set_result(report)
        except Exception as error:
            if not entry.future.done():
                entry.future.set_exception(error)
        self._idle.append(worker)
        self._dispatch()

    def close(self) -> None:
        """End all processes, in the middle of their tasks too."""
        for worker in self.workers:
            worker.closed = True
            if worker.process is not None:
                worker.process.kill()
        self._threads.shutdown(wait=True, cancel_futures=True)
        for worker in self.workers:
            worker.kill()


def _in_loop(loop: asyncio.AbstractEventLoop, on_stage: OnStage) -> OnStage:
    def call(stage: str) -> None:
        with suppress(RuntimeError):  # the loop has ended
            loop.call_soon_threadsafe(on_stage, stage)

    return call


# ---- in the process -------------------------------------------------------------------------------


def _work(connection: Connection, maker: Maker, memory: int | None) -> None:
    # A supervisor may signal all processes of a service: its parent decides when this one ends.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    end_with_parent()
    with logging_to_stderr():
        while True:
            try:
                task, folder = json.loads(connection.recv_bytes())
            except (EOFError, OSError):
                return
            answer = _answer(connection, maker, task, Path(folder), memory)
            connection.send_bytes(json.dumps(answer).encode())


def _answer(
    connection: Connection, maker: Maker, task: dict[str, Any], folder: Path, memory: int | None
) -> dict[str, Any]:
    def on_stage(stage: str) -> None:
        if stage == "begin":
            limit_memory(memory)
        connection.send_bytes(json.dumps({"stage": stage}).encode())

    try:
        return {"report": maker(task, folder, on_stage)}
    except Failure as failure:
        return failure.as_json()
    except Exception as error:
        if "torch" in sys.modules:  # else it is none of these errors, and the import takes seconds
            from amortized.assets import AssetError
            from amortized.memory_errors import out_of_memory_message

            if isinstance(error, AssetError):
                return {"code": "no_surface", "detail": str(error)}
            error = MemoryError() if out_of_memory_message(error) is not None else error
        if isinstance(error, MemoryError):
            return {"code": "out_of_memory", "detail": "making the files took more memory than is allowed"}
        full = isinstance(error, OSError) and error.errno in FULL
        log("asset failed", level=logging.ERROR, error=where(error))
        return {"code": "storage_full" if full else "engine_failed", "detail": ""}


def limit_memory(memory: int | None) -> None:
    """Allow this process to allocate `memory` more bytes than it has now. Linux only; elsewhere no limit."""
    if memory is None:
        return
    try:
        import resource

        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
        data = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmData:"))
        _, hard = resource.getrlimit(resource.RLIMIT_DATA)
        resource.setrlimit(resource.RLIMIT_DATA, (data + memory, hard))
    except (ImportError, OSError, StopIteration, ValueError):
        log("no limit of memory", level=logging.WARNING)
