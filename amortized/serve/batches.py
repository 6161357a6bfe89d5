"""Many objects in one request: a list of ids, whose objects are made behind those of single requests."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from amortized.serve.jobs import Jobs
from amortized.serve.problems import Problem
from amortized.serve.requests import BatchRequest, batch_id
from amortized.serve.store import StoreFull


async def create_batch(jobs: Jobs, wish: BatchRequest, owner: str) -> tuple[str, dict[str, Any]]:
    """The id and the record of a batch whose objects are accepted. Raises Problem."""
    model, settings = jobs.models.get(wish.model), wish.settings()
    jobs.check_room(len(wish.prompts), background=True)
    made = await asyncio.gather(
        *(
            jobs.create(model, prompt, wish.seed, settings, owner, background=True, room_checked=True)
            for prompt in wish.prompts
        )
    )
    ids = [one["id"] if isinstance(one, dict) else one.id for one in made]
    id, batch = batch_id(ids), {"created": time.time(), "model": model.name, "objects": ids}
    try:
        await jobs.do(jobs.store.write_batch, id, batch)
    except StoreFull:
        raise Problem("storage_full", "ask the operator to make room", retry_after_s=60) from None
    return id, batch


async def summary(jobs: Jobs, id: str, batch: dict[str, Any]) -> dict[str, Any]:
    """A batch as clients see it: how many of its objects have which status."""
    counts: dict[str, int] = {}
    for one in batch["objects"]:
        status = (await jobs.status(one) or {"status": "deleted"})["status"]
        counts[status] = counts.get(status, 0) + 1
    url = f"/v1/batches/{id}"
    more = {"count": len(batch["objects"]), "statuses": counts, "url": url, "results": f"{url}/results"}
    return {"id": id, **batch, **more}
