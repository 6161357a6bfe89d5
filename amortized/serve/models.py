"""The models of a service, by name; runs are loaded again when they have a newer checkpoint."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from amortized.knowledge import Knowledge
from amortized.names import slug
from amortized.serve.batcher import Batcher
from amortized.serve.logs import log
from amortized.serve.problems import Problem


class EngineLike(Protocol):
    """What the service needs of an engine; see `engine.Engine`. Tests have faster ones."""

    @property
    def digest(self) -> str: ...
    @property
    def knowledge(self) -> Knowledge | None: ...
    def about(self) -> dict[str, Any]: ...
    def familiarity(self, prompt: str) -> dict[str, Any]: ...
    def preview_batch(self, items: Sequence[Any]) -> list[bytes]: ...
    def task(self, prompt: str, seed: int, settings: dict[str, Any]) -> dict[str, Any]: ...


@dataclass(frozen=True, eq=False)
class ServedModel:
    """A loaded model. One that was replaced lives until its last job has ended."""

    name: str
    engine: EngineLike
    batcher: Batcher

    def about(self) -> dict[str, Any]:
        """What clients may know; JSON."""
        digest = self.engine.digest
        return {"id": self.name, "object": "model", "digest": digest, **self.engine.about()}


class Models:
    """The current models, in the order of the command line; the first is the default."""

    def __init__(
        self, models: Sequence[ServedModel], *, newer: Callable[[EngineLike], EngineLike | None]
    ) -> None:
        """`newer` loads an engine if there is a newer checkpoint; it blocks, and may raise ValueError."""
        self._models, self._newer = list(models), newer

    def __iter__(self):
        return iter(self._models)

    def get(self, name: str | None) -> ServedModel:
        """A model by name or digest; None: the first. Raises Problem."""
        if name is None:
            return self._models[0]
        for model in self._models:
            if name in (model.name, model.engine.digest):
                return model
        known = ", ".join(model.name for model in self._models)
        raise Problem("unknown_model", f"model: it is not one of {known}")

    def by_digest(self, digest: str) -> ServedModel | None:
        """The current model with this digest."""
        return next((model for model in self._models if model.engine.digest == digest), None)

    async def reload(self, batcher_of: Callable[[EngineLike], Batcher]) -> list[str]:
        """Replace models that have a newer checkpoint; returns their names. A failure leaves the old one."""
        loop, replaced = asyncio.get_running_loop(), []
        for number, model in enumerate(self._models):
            try:
                engine = await loop.run_in_executor(None, self._newer, model.engine)
            except (ValueError, OSError) as error:
                log("reload failed", level=logging.WARNING, model=model.name, reason=str(error)[:300])
                continue
            if engine is not None and engine.digest != model.engine.digest:
                self._models[number] = replace(model, engine=engine, batcher=batcher_of(engine))
                replaced.append(model.name)
                log("reloaded", model=model.name, digest=engine.digest)
        return replaced


def names_of(paths: Sequence[str]) -> list[str]:
    """A short, distinct name for each folder: its own, in plain characters."""
    names: list[str] = []
    for path in paths:
        plain = slug(Path(path).resolve().name, 60).rpartition("-")[0] or "model"
        name, number = plain, 2
        while name in names:
            name, number = f"{plain}-{number}", number + 1
        names.append(name)
    return names
