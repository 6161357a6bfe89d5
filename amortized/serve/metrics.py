"""Numbers for Prometheus. Labels come from closed lists: never a prompt, an id or a token."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

CONTENT_TYPE = CONTENT_TYPE_LATEST
SECONDS = (0.005, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


class Metrics:
    """The counters of one service."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._requests = Counter("a3d_requests", "Requests", ["route", "status"], registry=self.registry)
        self._seconds = Histogram(
            "a3d_request_seconds", "Seconds to the end", ["route"], buckets=SECONDS, registry=self.registry
        )
        self._batch = Histogram(
            "a3d_batch_size", "Previews in a call", buckets=(1, 2, 4, 8, 16), registry=self.registry
        )
        self._wait = Histogram(
            "a3d_queue_wait_seconds", "Wait of a batch's first", buckets=SECONDS, registry=self.registry
        )
        self._stages = Histogram(
            "a3d_stage_seconds", "Seconds of a stage", ["stage"], buckets=SECONDS, registry=self.registry
        )
        self._cache = Counter("a3d_cache", "Repeated requests", ["layer", "result"], registry=self.registry)
        self._failed = Counter(
            "a3d_objects_failed", "Objects without result", ["code"], registry=self.registry
        )
        self._info = Info("a3d_build", "Version and checkpoint", registry=self.registry)

    def request(self, route: str, status: int, seconds: float) -> None:
        """Count an answered request; `route` is a template such as /v1/objects/{id}."""
        self._requests.labels(route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def batch(self, size: int, waited_s: float) -> None:
        """Count a call of the engine."""
        self._batch.observe(size)
        self._wait.observe(waited_s)

    def stage(self, stage: str, seconds: float) -> None:
        """Count a finished preview or asset."""
        self._stages.labels(stage).observe(seconds)

    def cache(self, layer: str, hit: bool) -> None:
        """Count a request that was or was not answered by an earlier one."""
        self._cache.labels(layer, "hit" if hit else "miss").inc()

    def failed(self, code: str) -> None:
        """Count an object that failed."""
        self._failed.labels(code).inc()

    def gauge(self, queue: str, length: Callable[[], float]) -> None:
        """Show the length of a queue, at the time of each reading."""
        if not hasattr(self, "_queues"):
            self._queues = Gauge("a3d_queue_depth", "Objects that wait", ["queue"], registry=self.registry)
        self._queues.labels(queue).set_function(length)

    def info(self, version: str, checkpoint: str) -> None:
        """Show the version and the digest of the first model."""
        self._info.info({"version": version, "checkpoint": checkpoint})

    def text(self) -> bytes:
        """All numbers in Prometheus' format."""
        return generate_latest(self.registry)
