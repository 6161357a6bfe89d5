"""Streams: the events of an object (SSE), the results of a batch (NDJSON)."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

from amortized.serve.job import Job, public
from amortized.serve.jobs import POLL_S, Jobs
from amortized.serve.problems import dumps
from amortized.serve.store import ENDED

HEARTBEAT_S = 15.0  # proxies end connections that are silent for a minute


async def events(
    jobs: Jobs, id: str, after: int = 0, heartbeat_s: float = HEARTBEAT_S
) -> AsyncIterator[bytes]:
    """Events of an object from number `after` + 1 on, as text/event-stream, until it has ended.

    A client that returns with an id of an earlier process gets the current state and the end again.
    """
    while job := jobs.active.get(id):
        async for chunk in _of_job(job, after, heartbeat_s):
            yield chunk
        if job.ended:
            return
    last, silent = None, time.monotonic()
    while True:
        status = await jobs.status(id)
        if status is None:
            yield _event(after + 1, "deleted", {"id": id})
            return
        if status["status"] in ENDED:
            yield _event(after + 1, status["status"], public(status))
            return
        shown = {key: status[key] for key in ("id", "status", "progress")}  # another replica makes it
        if shown != last:
            last, after, silent = shown, after + 1, time.monotonic()
            yield _event(after, "status", shown)
        elif time.monotonic() - silent > heartbeat_s:
            silent = time.monotonic()
            yield b": \n\n"
        await asyncio.sleep(POLL_S)


async def _of_job(job: Job, after: int, heartbeat_s: float) -> AsyncIterator[bytes]:
    after = after if after <= len(job.events) else 0  # of an earlier process
    while True:
        changed = job.changed
        while after < len(job.events):
            kind, data = job.events[after]
            after += 1
            yield _event(after, kind, data)
        if job.ended or job.task.done():
            return
        try:
            async with asyncio.timeout(heartbeat_s):
                await changed.wait()
        except TimeoutError:
            yield b": \n\n"


def _event(number: int, kind: str, data: dict[str, Any]) -> bytes:
    return b"id: %d\nevent: %b\ndata: %b\n\n" % (number, kind.encode(), dumps(data))


async def wait_for(jobs: Jobs, id: str, seconds: float | None) -> dict[str, Any] | None:
    """The status of an object once it has ended, or after some seconds; None if there is none."""
    deadline = None if seconds is None else time.monotonic() + seconds
    while True:
        left = POLL_S if deadline is None else min(POLL_S, deadline - time.monotonic())
        job = jobs.active.get(id)
        status = job.status if job is not None else await jobs.status(id)
        if status is None or status["status"] in ENDED or left <= 0:
            return status
        if job is None:  # another replica makes it
            await asyncio.sleep(left)
            continue
        while not job.ended and not job.task.done():
            left = None if deadline is None else deadline - time.monotonic()
            try:
                async with asyncio.timeout(left):
                    await job.changed.wait()
            except TimeoutError:
                break
        if job.deleted:
            return None
        if job.ended:
            return job.status


async def results(jobs: Jobs, ids: Sequence[str]) -> AsyncIterator[bytes]:
    """The objects of a batch in its order, a line of JSON each, as they end."""
    for id in ids:
        status = await wait_for(jobs, id, None)
        yield dumps(public(status) if status is not None else {"id": id, "status": "deleted"}) + b"\n"
