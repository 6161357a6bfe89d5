"""The routes of the models themselves: what they are, what they know, and what lies between two prompts."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from fastapi import FastAPI, Query, Request
from starlette.responses import Response

from amortized.serve.access import Usage
from amortized.serve.job import PreviewItem
from amortized.serve.jobs import Jobs
from amortized.serve.models import ServedModel
from amortized.serve.problems import Failure, Problem, json_response
from amortized.serve.requests import BetweenRequest, FamiliarityRequest

PAGE, MOST = 24, 100  # prompts in an answer: by default, and at most
WORDS = 2_000  # in an answer
TOGETHER = 64  # answers that wait for an engine
Read = Callable[..., Awaitable[Any]]  # (request, kind of its body) -> that body


def add_model_routes(
    app: FastAPI, jobs: Jobs, usage: Usage, read: Read, refuse: Callable[[str], str | None]
) -> None:
    """Add the routes to an application. `refuse` returns the reason why a prompt is not made, or None."""
    waiting = asyncio.Semaphore(TOGETHER)

    async def answer(request: Request, prompts: list[str], work: Callable[[], Awaitable[Any]]) -> Any:
        """What an engine answers, in its turn; None if the client leaves before. Raises Problem."""
        for prompt in prompts:
            if reason := refuse(prompt):
                raise Problem("refused", reason)
        usage.check(request.state.owner, 0, 0)
        jobs.check_room(0)
        if waiting.locked():
            raise Problem("queue_full", "too many previews are waiting", retry_after_s=2)
        async with waiting:
            try:
                return await unless_gone(request, work())
            except Failure as failure:
                raise Problem("internal", failure.detail) from None

    @app.get("/v1/models")
    async def get_models() -> Response:
        """The models, in the shape of OpenAI's endpoint, with their digests and limits."""
        return json_response({"object": "list", "data": [model.about() for model in jobs.models]})

    @app.get("/v1/models/{name}")
    async def get_model(name: str) -> Response:
        """A model, with its training corpus and the words in it, the most frequent first."""
        model = _named(jobs, name)
        known = model.engine.knowledge
        trained = None
        if known is not None:
            trained = {
                "corpus": known.corpus,
                "prompts": known.number,
                "listed_prompts": len(known.prompts),
                "words": known.words[:WORDS],
                "known_words": len(known.words),
            }
        return json_response(model.about() | {"training": trained})

    @app.get("/v1/models/{name}/prompts")
    async def get_prompts(
        name: str,
        search: str = Query("", max_length=200),
        offset: int = Query(0, ge=0, le=10**9),
        limit: int = Query(PAGE, ge=1, le=MOST),
    ) -> Response:
        """Training prompts that have all words of `search`, in the order of the corpus."""
        known = _named(jobs, name).engine.knowledge
        words = search.casefold().split()
        prompts = () if known is None else known.prompts
        found = [text for text in prompts if all(word in text.casefold() for word in words)]
        return json_response(
            {"total": len(found), "offset": offset, "prompts": found[offset : offset + limit]}
        )

    @app.post("/v1/familiarity", openapi_extra=schema_of(FamiliarityRequest))
    async def post_familiarity(request: Request) -> Response:
        """How far a prompt is from the training prompts, with sentences to show beside its object."""
        wish = await read(request, FamiliarityRequest)
        model = jobs.models.get(wish.model)
        found = await answer(
            request, [wish.prompt], lambda: model.batcher.alone(model.engine.familiarity, wish.prompt)
        )
        return Response(status_code=204) if found is None else json_response(found)

    @app.post("/v1/between", openapi_extra=schema_of(BetweenRequest))
    async def post_between(request: Request) -> Response:
        """A preview (PNG) of the object on the way from one prompt to another; it is not stored."""
        wish = await read(request, BetweenRequest)
        item = PreviewItem(
            prompt=wish.prompt,
            seed=wish.seed,
            views=wish.views,
            size=wish.size,
            toward=wish.toward,
            position=wish.position,
        )
        model, owner = jobs.models.get(wish.model), request.state.owner
        png = await answer(request, [wish.prompt, wish.toward], lambda: model.batcher.submit(item, owner))
        return Response(status_code=204) if png is None else Response(png, media_type="image/png")


def _named(jobs: Jobs, name: str) -> ServedModel:
    try:
        return jobs.models.get(name)
    except Problem:
        raise Problem("not_found") from None


async def unless_gone(request: Request, work: Awaitable[Any], every_s: float = 0.5) -> Any:
    """The result of some work; None if the client leaves before."""
    task = asyncio.ensure_future(work)
    while not task.done():
        await asyncio.wait([task], timeout=every_s)
        if not task.done() and await request.is_disconnected():
            task.cancel()
            return None
    return task.result()


def schema_of(kind: type[Any]) -> dict[str, Any]:
    """A request's schema for the OpenAPI file; the body itself is read with limits."""
    schema = kind.model_json_schema(ref_template="#/components/schemas/{model}")
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}
