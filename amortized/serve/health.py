"""Whether a service should receive requests."""

from __future__ import annotations

from typing import Any

from amortized.serve.jobs import Jobs

QUEUE_SHARE = 0.9  # of the depth: a balancer should look elsewhere
FREE_SHARE, FREE_BYTES = 0.05, 2**30  # of the store's disk: one of the two must be free


async def readiness(jobs: Jobs) -> tuple[bool, dict[str, Any]]:
    """Whether all checks hold, and each of them; JSON."""
    share, free = await jobs.do(jobs.store.free_share) if not jobs.draining else (1.0, FREE_BYTES)
    checks = {
        "serving": not jobs.draining,
        "engine": not any(model.batcher.stuck for model in jobs.models),
        "queue": jobs.waiting() < QUEUE_SHARE * jobs.limits.depth,
        "disk": share > FREE_SHARE or free > FREE_BYTES,
    }
    batch = {model.name: model.batcher.size for model in jobs.models}
    return all(checks.values()), {"checks": checks, "batch_size": batch, "waiting": jobs.waiting()}
