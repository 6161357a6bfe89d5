"""One object in the making: its status, and the events that report it."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import Any

from amortized.serve.models import ServedModel
from amortized.serve.store import ENDED

PRIVATE = ("owners", "background")


@dataclass(frozen=True, kw_only=True)
class PreviewItem:
    """The preview of one object: `views` pictures of size^2 pixels, side by side.

    With `toward`, of the object at `position` in [0, 1] on the way to another prompt.
    """

    prompt: str
    seed: int
    views: int
    size: int
    toward: str | None = None
    position: float = 0.0


class Job:
    """An object that is being made."""

    def __init__(self, status: dict[str, Any], model: ServedModel) -> None:
        self.status, self.model = status, model
        self.background = bool(status.get("background"))
        self.deleted, self.claims = False, 1
        self.events: list[tuple[str, dict[str, Any]]] = []  # (kind, data); numbered from 1
        self.changed = asyncio.Event()  # is set, and replaced, at each event
        self.accepted: asyncio.Future[Any]  # done once the status is on disk
        self.task: asyncio.Task[None]
        self.emit("status", self._summary())

    @property
    def id(self) -> str:
        return self.status["id"]

    @property
    def owner(self) -> str:
        """The first of those who requested it."""
        return next(iter(self.status["owners"]), "")

    @property
    def ended(self) -> bool:
        """Whether no event will follow."""
        return self.deleted or self.status["status"] in ENDED

    def emit(self, kind: str, data: dict[str, Any]) -> None:
        """Add an event."""
        self.events.append((kind, data))
        self.changed.set()
        self.changed = asyncio.Event()

    def update(self, kind: str = "status", **fields: Any) -> None:
        """Change the status, and emit an event of it."""
        self.status |= fields
        data = self._summary()
        self.emit(kind, data | {"files": public(self.status)["files"]} if kind == "preview" else data)

    def advance(self, progress: int, stage: str) -> None:
        """Raise the progress to a new stage's; nothing for a stage that is known."""
        if stage != self.status.get("stage") and progress >= self.status["progress"]:
            self.update(progress=progress, stage=stage)

    def end(self, status: dict[str, Any]) -> None:
        """Take the final status."""
        self.status = status
        self.emit(status["status"], public(status))

    def _summary(self) -> dict[str, Any]:
        summary = {key: self.status[key] for key in ("id", "status", "progress")}
        return summary | ({"stage": self.status["stage"]} if self.status.get("stage") else {})


def new_status(
    id: str,
    model: ServedModel,
    prompt: str,
    seed: int,
    settings: dict[str, Any],
    owner: str,
    background: bool,
) -> dict[str, Any]:
    """The status of an object that was just accepted: enough to make it after a restart."""
    return {
        "id": id,
        "status": "queued",
        "progress": 0,
        "prompt": prompt,
        "seed": seed,
        "model": model.name,
        "checkpoint": model.engine.digest,
        "settings": settings,
        "created": time.time(),
        "started": None,
        "finished": None,
        "files": {},
        "report": {},
        "error": None,
        "owners": [owner],
        "background": background,
    }


def public(status: dict[str, Any]) -> dict[str, Any]:
    """A status as clients see it: without owners, with the addresses of the files."""
    shown = {key: value for key, value in status.items() if key not in PRIVATE}
    base = f"/v1/objects/{status['id']}"
    shown["files"] = {
        name: {"url": f"{base}/files/{name}", **record} for name, record in status["files"].items()
    }
    return shown | {"url": base, "events": f"{base}/events"}
