"""The routes of the API, and nothing else: what they do is in `jobs`, `events` and `store`."""

from __future__ import annotations

import asyncio
import base64
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import StreamingResponse
from starlette.exceptions import HTTPException
from starlette.responses import Response

from amortized import __version__
from amortized.serve.access import Usage
from amortized.serve.batches import create_batch, summary
from amortized.serve.boundary import read_json_body
from amortized.serve.events import events, results, wait_for
from amortized.serve.health import readiness
from amortized.serve.job import Job, public
from amortized.serve.jobs import Jobs
from amortized.serve.logs import log
from amortized.serve.metrics import CONTENT_TYPE
from amortized.serve.model_routes import add_model_routes, schema_of, unless_gone
from amortized.serve.problems import Problem, json_response, problem_response
from amortized.serve.requests import (
    MEDIA_TYPES,
    BatchRequest,
    ImageRequest,
    ObjectRequest,
    Options,
    R,
    parse,
)
from amortized.serve.static import front_page, static_response
from amortized.serve.store import ENDED, ID

STREAM_HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Limits of requests, and hooks."""

    body_bytes: int = 64 * 1024
    batch_body_bytes: int = 2 * 1024 * 1024
    body_s: float = 10.0  # until a body is complete
    streams: int = 256  # open at once
    heartbeat_s: float = 15.0
    log_prompts: bool = False
    refuse: Callable[[str], str | None] = lambda prompt: None  # the reason why a prompt is not made, or None


def create_app(jobs: Jobs, usage: Usage, settings: Settings = Settings()) -> FastAPI:  # noqa: B008
    """The application, to which `boundary.Boundary` admits requests."""
    app = FastAPI(title="Amortized3D", version=__version__, docs_url=None, redoc_url=None)
    streams = asyncio.Semaphore(settings.streams)

    @app.exception_handler(Problem)
    async def on_problem(request: Request, problem: Problem) -> Response:
        return problem_response(problem)

    @app.exception_handler(HTTPException)
    async def on_http(request: Request, error: HTTPException) -> Response:
        codes = {404: "not_found", 405: "method_not_allowed"}
        return problem_response(Problem(codes.get(error.status_code, "malformed_body")))

    @app.exception_handler(Exception)
    async def on_failure(request: Request, error: Exception) -> Response:
        return problem_response(Problem("internal"))  # `boundary` logs it

    @app.exception_handler(RequestValidationError)
    async def on_query(request: Request, error: RequestValidationError) -> Response:
        names = ", ".join(dict.fromkeys(str(one["loc"][-1])[:80] for one in error.errors()))
        return problem_response(Problem("invalid_request", f"in the address, {names}: out of range"))

    async def read(request: Request, kind: type[R], limit: int = settings.body_bytes) -> R:
        return parse(kind, await read_json_body(request, limit, settings.body_s))

    def admit(request: Request, options: Options, prompts: list[str], *, background: bool) -> str:
        """The owner of a request that creates objects. Raises Problem."""
        owner = request.state.owner
        for prompt in prompts:
            if reason := settings.refuse(prompt):
                raise Problem("refused", reason)
        unfinished = jobs.of_owner(owner, background=background)
        usage.check(
            owner, unfinished, len(prompts), background=background, makes_assets=bool(options.formats)
        )
        return owner

    async def create(options: Options, prompt: str, seed: int, owner: str) -> Job | dict[str, Any]:
        model = jobs.models.get(options.model)
        made = await jobs.create(model, prompt, seed, options.settings(), owner)
        if isinstance(made, Job):
            fields = {"id": made.id, "characters": len(prompt), "owner": owner}
            log("accepted", fields | ({"prompt": prompt} if settings.log_prompts else {}))
        return made

    def check_id(id: str) -> str:
        if not ID.fullmatch(id):
            raise Problem("not_found")
        return id

    async def stored(id: str) -> dict[str, Any]:
        status = await jobs.status(check_id(id))
        if status is None:
            raise Problem("not_found")
        return status

    def stream(content: Any, media_type: str) -> StreamingResponse:
        if streams.locked():
            raise Problem("queue_full", "too many streams are open", retry_after_s=10)

        async def counted():
            async with streams:
                async for chunk in content:
                    yield chunk

        return StreamingResponse(counted(), media_type=media_type, headers=STREAM_HEADERS)

    # ---- objects ----

    @app.post("/v1/objects", openapi_extra=schema_of(ObjectRequest))
    async def post_object(request: Request) -> Response:
        """Make an object, or `n` variants. 200 with the result if it is there within `wait` s, else 202."""
        wish = await read(request, ObjectRequest)
        jobs.models.get(wish.model)
        seeds = [(wish.seed + number) % 2**31 for number in range(wish.n)]
        owner = admit(request, wish, [wish.prompt] * wish.n, background=False)
        made = [await create(wish, wish.prompt, seed, owner) for seed in seeds]
        ids = [one["id"] if isinstance(one, dict) else one.id for one in made]
        deadline = time.monotonic() + wish.wait
        shown = [await wait_for(jobs, id, deadline - time.monotonic()) for id in ids]
        statuses = [
            public(status or (one if isinstance(one, dict) else one.status))
            for status, one in zip(shown, made, strict=True)
        ]
        ended = all(status["status"] in ENDED for status in statuses)
        if wish.n > 1:
            return json_response({"objects": statuses}, 200 if ended else 202)
        headers = {"Location": statuses[0]["url"]} | ({} if ended else {"Retry-After": "1"})
        return json_response(statuses[0], 200 if ended else 202, headers)

    @app.get("/v1/objects/{id}")
    async def get_object(id: str) -> Response:
        """The status of an object, with the addresses of its files."""
        status = await stored(id)
        return json_response(
            public(status), headers={} if status["status"] in ENDED else {"Retry-After": "1"}
        )

    @app.delete("/v1/objects/{id}", status_code=204)
    async def delete_object(id: str, request: Request) -> Response:
        """Cancel what has not begun, and remove the files."""
        if not await jobs.delete(check_id(id), request.state.owner):
            raise Problem("not_found")
        return Response(status_code=204)

    @app.get("/v1/objects/{id}/events")
    async def get_events(id: str, request: Request) -> Response:
        """What happens to an object, as text/event-stream: status, preview, done, failed, deleted."""
        await stored(id)
        after = request.headers.get("last-event-id", "")
        number = int(after) if after.isascii() and after.isdecimal() and len(after) < 10 else 0
        return stream(events(jobs, id, number, settings.heartbeat_s), "text/event-stream")

    @app.get("/v1/objects/{id}/files/{name}")
    async def get_file(id: str, name: str, request: Request) -> Response:
        """A file of an object; its ETag is the digest of its bytes."""
        record = (await stored(id))["files"].get(name)
        if record is None or name not in MEDIA_TYPES:
            raise Problem("not_found")
        await jobs.do(jobs.store.touch, id)
        etag = f'"{record["sha256"]}"'
        headers = {"ETag": etag, "Cache-Control": "private, max-age=31536000, immutable"}
        if etag in [one.strip() for one in request.headers.get("if-none-match", "").split(",")]:
            return Response(status_code=304, headers=headers)
        data = await jobs.do(jobs.store.read_file, id, name, record)
        if data is None:  # damaged: the same request makes it again
            await jobs.do(jobs.store.remove, id)
            raise Problem("not_found", "the file was damaged and is removed: request the object again")
        headers["Content-Disposition"] = f'attachment; filename="{id[:16]}.{name.partition(".")[2]}"'
        return Response(data, headers=headers, media_type=MEDIA_TYPES[name])

    # ---- batches ----

    @app.post("/v1/batches", openapi_extra=schema_of(BatchRequest))
    async def post_batch(request: Request) -> Response:
        """Make the objects of many prompts, behind those of single requests."""
        wish = await read(request, BatchRequest, settings.batch_body_bytes)
        jobs.models.get(wish.model)
        owner = admit(request, wish, wish.prompts, background=True)
        id, batch = await create_batch(jobs, wish, owner)
        log("batch accepted", id=id, objects=len(wish.prompts), owner=owner)
        return json_response(await summary(jobs, id, batch), 202, {"Location": f"/v1/batches/{id}"})

    async def batch_of(id: str) -> dict[str, Any]:
        batch = await jobs.do(jobs.store.read_batch, id)
        if batch is None:
            raise Problem("not_found")
        return batch

    @app.get("/v1/batches/{id}")
    async def get_batch(id: str) -> Response:
        """How many objects of a batch have ended."""
        return json_response(await summary(jobs, id, await batch_of(id)))

    @app.get("/v1/batches/{id}/results")
    async def get_results(id: str) -> Response:
        """The objects of a batch as they end, a line of JSON each."""
        return stream(results(jobs, (await batch_of(id))["objects"]), "application/x-ndjson")

    # ---- images ----

    @app.post("/v1/images/generations", openapi_extra=schema_of(ImageRequest))
    async def post_image(request: Request) -> Response:
        """Views of objects from the front, in the shape of OpenAI's endpoint; waits for them."""
        try:
            wish = await read(request, ImageRequest)
            options = wish.options()
            jobs.models.get(options.model)
            owner = admit(request, options, [wish.prompt] * wish.n, background=False)
            seeds = [(wish.seed + number) % 2**31 for number in range(wish.n)]
            made = [await create(options, wish.prompt, seed, owner) for seed in seeds]
            statuses = await unless_gone(request, _all(jobs, made))
            if statuses is None:
                for job in made:
                    if isinstance(job, Job):
                        await jobs.release(job, owner)
                return Response(status_code=204)
            data = [{"b64_json": await picture(status), "revised_prompt": wish.prompt} for status in statuses]
            return json_response({"created": int(time.time()), "data": data})
        except Problem as problem:
            return _openai_error(problem)

    async def picture(status: dict[str, Any] | None) -> str:
        if status is None or status["status"] != "done":
            raise Problem("internal", ((status or {}).get("error") or {}).get("detail", "the object is gone"))
        record = status["files"]["preview.png"]
        data = await jobs.do(jobs.store.read_file, status["id"], "preview.png", record)
        if data is None:
            raise Problem("internal", "the picture is damaged: send the request again")
        return base64.b64encode(data).decode()

    add_model_routes(app, jobs, usage, read, settings.refuse)

    # ---- the service ----

    @app.get("/healthz")
    async def healthz() -> Response:
        """Whether the process answers."""
        return json_response({"status": "ok", "version": __version__})

    @app.get("/readyz")
    async def readyz() -> Response:
        """Whether requests should come here; 503 if not."""
        ready, checks = await readiness(jobs)
        headers = {} if ready else {"Retry-After": "5"}
        return json_response(
            {"status": "ready" if ready else "not ready", **checks}, 200 if ready else 503, headers
        )

    @app.get("/metrics", include_in_schema=False)
    async def metrics() -> Response:
        return Response(jobs.metrics.text(), media_type=CONTENT_TYPE)

    @app.get("/", include_in_schema=False)
    async def front() -> Response:
        return front_page()

    @app.get("/static/{name:path}", include_in_schema=False)
    async def static(name: str) -> Response:
        return static_response(name)

    return app


async def _all(jobs: Jobs, made: list[Job | dict[str, Any]]) -> list[dict[str, Any] | None]:
    return [one if isinstance(one, dict) else await wait_for(jobs, one.id, None) for one in made]


def _openai_error(problem: Problem) -> Response:
    plain = problem_response(problem)
    error = {
        "message": problem.detail or problem.code,
        "type": "invalid_request_error" if plain.status_code < 500 else "server_error",
        "param": problem.errors[0]["field"] if problem.errors else None,
        "code": problem.code,
    }
    headers = {"Retry-After": plain.headers["Retry-After"]} if "Retry-After" in plain.headers else {}
    return json_response({"error": error}, plain.status_code, headers)
