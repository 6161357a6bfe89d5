"""Objects in the making: accepted, made once for all who request them, stored, resumed after a restart."""

from __future__ import annotations

import asyncio
import logging
import shutil
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from amortized.locks import FileLock
from amortized.serve.job import Job, PreviewItem, new_status
from amortized.serve.logs import log, where
from amortized.serve.metrics import Metrics
from amortized.serve.models import Models, ServedModel
from amortized.serve.problems import FINAL, Failure, Problem
from amortized.serve.requests import object_id
from amortized.serve.store import ENDED, Store, StoreFull
from amortized.serve.workers import AssetPool

# Percent of an object's time at which a stage begins, as measured on the quickstart's generator.
PROGRESS = {"extract": 20, "simplify": 35, "colors": 40, "texture": 45, "printable": 85, "measure": 90}
PROGRESS |= {"begin": 18, "files": 95, "video": 96}
AFTER_PREVIEW = 15
POLL_S = 0.5  # for the status of an object that another replica makes
ORPHAN_S = 60.0  # without a sign of life, another replica's object is taken over if its lock is free


@dataclass(frozen=True, kw_only=True)
class Limits:
    """How much may wait."""

    depth: int = 256  # objects of single requests, all tokens together
    batch_depth: int = 5000  # objects of batches
    together: int = 64  # objects of batches in the making at once: each holds a lock, an open file


class Jobs:
    """The objects that are being made, by id, and the way to those that are stored."""

    def __init__(
        self,
        models: Models,
        pool: AssetPool,
        store: Store,
        metrics: Metrics,
        limits: Limits = Limits(),  # noqa: B008
        on_seconds: Callable[[str, float], None] = lambda owner, seconds: None,
    ) -> None:
        """`on_seconds` receives an owner and the seconds that a worker took for an asset."""
        self.models, self.pool, self.store, self.metrics, self.limits = models, pool, store, metrics, limits
        self.active: dict[str, Job] = {}
        self.draining = False
        self._on_seconds = on_seconds
        self._leaving: dict[str, asyncio.Task[None]] = {}  # deleted, but a worker still writes
        self._io = ThreadPoolExecutor(8, thread_name_prefix="store")
        self._gate = asyncio.Semaphore(limits.together)
        self._seconds = 1.0  # of an object, recently

    async def do(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """The result of a function that blocks."""
        return await asyncio.get_running_loop().run_in_executor(self._io, function, *arguments)

    # ---- requests ----

    def waiting(self, *, background: bool = False) -> int:
        """How many objects of single requests, or of batches, have not ended."""
        return sum(job.background == background for job in self.active.values())

    def of_owner(self, owner: str, *, background: bool = False) -> int:
        """How many of an owner's objects of single requests, or of batches, have not ended."""
        jobs = self.active.values()
        return sum(job.background == background and owner in job.status["owners"] for job in jobs)

    def check_room(self, number: int, *, background: bool = False) -> None:
        """Raise Problem if the service is shutting down, or so many objects more would be too many."""
        if self.draining:
            raise Problem("draining", retry_after_s=10)
        waiting = self.waiting(background=background)
        if waiting + number > (self.limits.batch_depth if background else self.limits.depth):
            wait_s = min(60.0, max(1.0, self._seconds * waiting / max(1, len(self.pool.workers))))
            raise Problem("queue_full", f"{waiting:,} objects are waiting", retry_after_s=wait_s)

    async def create(
        self,
        model: ServedModel,
        prompt: str,
        seed: int,
        settings: dict[str, Any],
        owner: str = "",
        *,
        background: bool = False,
        room_checked: bool = False,
    ) -> Job | dict[str, Any]:
        """The job that makes an object, once it is accepted, or the status of one that is stored.

        Raises Problem.
        """
        id = object_id(model.engine.digest, prompt, seed, settings)
        if id in self._leaving:
            await asyncio.wait([self._leaving[id]])
        stored = None if id in self.active else await self.do(self.store.read, id)
        if id not in self.active and stored is not None and await self.do(self._is_result, stored):
            self.metrics.cache("store", True)
            await self.do(self._claim, stored, owner)
            return stored
        if id in self.active:
            self.metrics.cache("in flight", True)
            job = self.active[id]
            job.background, job.claims = job.background and background, job.claims + 1
            if owner not in job.status["owners"]:
                job.status["owners"].append(owner)
        else:
            self.metrics.cache("store", False)
            if not room_checked:
                self.check_room(1, background=background)
            status = new_status(id, model, prompt, seed, settings, owner, background)
            job = self._begin(Job(status, model), persist=stored is None or stored["status"] in ENDED)
        try:
            await asyncio.shield(job.accepted)
        except StoreFull:
            raise Problem("storage_full", "ask the operator to make room", retry_after_s=60) from None
        return job

    def _is_result(self, stored: dict[str, Any]) -> bool:
        """Whether a stored object answers a request; a failure that may not occur again does not."""
        if stored["status"] == "failed":
            return stored["error"]["code"] in FINAL
        return stored["status"] == "done" and self.store.is_complete(stored)

    def _claim(self, stored: dict[str, Any], owner: str) -> None:
        self.store.touch(stored["id"])
        if owner not in stored["owners"]:
            stored["owners"].append(owner)
            try:
                self.store.write(stored["id"], stored)
            except (StoreFull, OSError):
                pass  # then this owner cannot delete it

    async def status(self, id: str) -> dict[str, Any] | None:
        """The status of an object as it is; None if there is none."""
        if id in self.active:
            return self.active[id].status
        return await self.do(self.store.read, id)

    async def release(self, job: Job, owner: str) -> None:
        """One requester of an object has gone, who never learned its id: cancel it if there is no other."""
        job.claims -= 1
        if job.claims == 0 and self.active.get(job.id) is job and owner in job.status["owners"]:
            await self.delete(job.id, owner)

    async def delete(self, id: str, owner: str) -> bool:
        """Drop an owner's claim to an object; the last one cancels what has not begun and removes all files.

        False if there is no such object. Raises Problem if it is another owner's.
        """
        status = await self.status(id)
        if status is None:
            return False
        if owner not in status["owners"]:
            raise Problem("not_yours")
        status["owners"].remove(owner)
        if status["owners"]:
            if id not in self.active:
                await self.do(self.store.write, id, status)
            return True
        job = self.active.pop(id, None)
        if job is None:
            await self.do(self.store.remove, id)
        else:
            job.deleted = True
            self._leaving[id] = job.task
            job.task.add_done_callback(lambda _: self._leaving.pop(id, None))
            self.store.hide(id)
            job.emit("deleted", {"id": id})
            job.task.cancel()
        log("deleted", id=id, owner=owner)
        return True

    # ---- work ----

    def _begin(self, job: Job, *, persist: bool) -> Job:
        self.active[job.id] = job
        write = self.do(self.store.write, job.id, dict(job.status)) if persist else asyncio.sleep(0)
        job.accepted = asyncio.ensure_future(write)
        job.task = asyncio.create_task(self._run(job))
        return job

    async def _run(self, job: Job) -> None:
        lock: FileLock | None = None
        try:
            await job.accepted
            async with self._gate if job.background else nullcontext():
                lock = await self._lock(job)
                if lock is not None:
                    await self._make(job)
        except asyncio.CancelledError:
            await self._leave(job, lock)
        except Failure as failure:
            await self._fail(job, failure)
        except StoreFull:
            failure = Failure("storage_full")
            if job.accepted.exception() is None:
                await self._fail(job, failure)
            else:  # refused: nothing of it is on disk
                job.end({**job.status, "status": "failed", "error": failure.as_json()})
        except Exception as error:
            log("object failed", level=logging.ERROR, id=job.id, error=where(error))
            await self._fail(job, Failure("engine_failed", type(error).__name__))
        finally:
            if lock is not None:
                lock.close()
            if self.active.get(job.id) is job:
                del self.active[job.id]

    async def _lock(self, job: Job) -> FileLock | None:
        """The lock of an object, or None once another replica has made it, which this one follows."""
        following = False
        while True:
            lock, stored = await self.do(lambda: (self.store.lock(job.id), self.store.read(job.id)))
            if stored is not None and stored["status"] in ENDED and (following or self._is_result(stored)):
                if lock is not None:
                    lock.close()
                job.end(stored)
                return None
            if lock is not None:
                shutil.rmtree(self.store.work_folder(job.id), ignore_errors=True)
                return lock
            following = True
            if stored is not None:
                job.advance(stored["progress"], stored.get("stage", ""))
            await asyncio.sleep(POLL_S)

    async def _make(self, job: Job) -> None:
        status, owner = job.status, job.owner
        settings, started = status["settings"], time.monotonic()
        job.update(status="running", started=time.time())
        files: Path | dict[str, bytes] = {}
        if "views" in settings:
            item = PreviewItem(
                prompt=status["prompt"], seed=status["seed"], views=settings["views"], size=settings["size"]
            )
            png = await job.model.batcher.submit(item, owner, background=job.background)
            files = {"preview.png": png}
            self.metrics.stage("preview", time.monotonic() - started)
        if settings["formats"]:
            saved = await self._save(job, {**status, "progress": AFTER_PREVIEW}, files)
            job.update("preview" if files else "status", progress=AFTER_PREVIEW, files=saved["files"])
            task = job.model.engine.task(status["prompt"], status["seed"], settings)
            files, began = self.store.work_folder(job.id), None

            def on_stage(stage: str) -> None:
                nonlocal began
                began = time.monotonic() if stage == "begin" else began
                job.advance(PROGRESS.get(stage, 0), stage)

            try:
                status["report"] = await self.pool.make(
                    task, files, on_stage, owner, background=job.background
                )
            finally:
                if began is not None:
                    self._on_seconds(owner, time.monotonic() - began)
                    self.metrics.stage("asset", time.monotonic() - began)
        done = {**status, "status": "done", "progress": 100, "finished": time.time()}
        await self._end(job, done, files)
        self._seconds += 0.1 * (time.monotonic() - started - self._seconds)

    async def _save(self, job: Job, status: dict[str, Any], files: Path | dict[str, bytes]) -> dict[str, Any]:
        """Add files, then write the status, which lists them; returns it."""

        def save() -> dict[str, Any]:
            added = self.store.add(job.id, files) if files else {}
            saved = {**status, "files": {**status["files"], **added}}
            self.store.write(job.id, saved)
            return saved

        return await self.do(save)

    async def _end(
        self, job: Job, status: dict[str, Any], files: Path | dict[str, bytes] | None = None
    ) -> None:
        status.pop("stage", None)
        job.end(await self._save(job, status, files or {}))
        log(status["status"], id=job.id, s=round(status["finished"] - status["created"], 3))

    async def _fail(self, job: Job, failure: Failure) -> None:
        log("failed", level=logging.WARNING, id=job.id, code=failure.code)
        self.metrics.failed(failure.code)
        status = {**job.status, "status": "failed", "finished": time.time(), "error": failure.as_json()}
        try:
            await self._end(job, status)
        except (StoreFull, OSError):  # on disk it is unfinished: a restart tries again
            job.end(status)

    async def _leave(self, job: Job, lock: FileLock | None) -> None:
        """Whatever a cancelled job leaves behind: nothing if it was deleted, else a job for the restart."""
        if job.deleted:
            await self.do(self.store.discard if lock is not None else self.store.remove, job.id)
        elif job.accepted.done() and job.status["status"] not in ENDED:
            status = {**job.status, "status": "queued", "progress": 0, "started": None}
            try:
                await self.do(self.store.write, job.id, status)
            except (StoreFull, OSError):
                pass  # the status on disk is unfinished too

    # ---- life of the service ----

    async def recover(self, older_s: float = 0.0) -> int:
        """Continue accepted objects that nobody makes, such as an earlier process's; returns how many."""
        statuses = await self.do(lambda: list(self.store.unfinished(older_s)))
        number = 0
        for status in statuses:
            model = self.models.by_digest(status["checkpoint"])
            if model is not None and status["id"] not in self.active and not self.draining:
                self._begin(Job(status, model), persist=False)
                number += 1
        if number:
            log("recovered", objects=number)
        return number

    async def drain(self, grace_s: float) -> int:
        """Finish what was accepted, for `grace_s` at most; returns how many objects a restart has to make."""
        self.draining = True
        if tasks := [job.task for job in self.active.values()]:
            await asyncio.wait(tasks, timeout=grace_s)
        left = [job.task for job in self.active.values()]
        for task in left:
            task.cancel()
        await asyncio.get_running_loop().run_in_executor(None, self.pool.close)
        if left:
            await asyncio.wait(left, timeout=10)
        return len(left)

    def close(self) -> None:
        """End the threads, once no request comes any more."""
        self._io.shutdown(wait=False)
