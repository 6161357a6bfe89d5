"""What every request passes: its host, its token, the limits of its body, the headers of its answer.

Plain ASGI around the application, so that nothing of it runs for a request that is refused.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from starlette.requests import ClientDisconnect, Request

from amortized.serve.access import LOCAL, Tokens, check_local
from amortized.serve.logs import log, where
from amortized.serve.metrics import Metrics
from amortized.serve.problems import Problem, problem_response

OPEN = ("/healthz", "/readyz", "/openapi.json")  # also without a token
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "X-Frame-Options": "SAMEORIGIN",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",  # of anything but a page
    "Cache-Control": "no-store",
}
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]


class Boundary:
    """An ASGI application around another one."""

    def __init__(
        self,
        app: App,
        metrics: Metrics,
        *,
        tokens: Tokens | None,
        port: int | None,
        is_open: Callable[[str], bool],
    ) -> None:
        """Without `tokens`, requests must name this machine and `port` (None: any).

        `is_open` says which paths need no token.
        """
        self.app, self.metrics, self.tokens, self.port, self.is_open = app, metrics, tokens, port, is_open

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            return await self.app(scope, receive, send)
        if scope["type"] != "http":  # no WebSockets here
            return await send({"type": "websocket.close", "code": 1008})
        start, answered = time.monotonic(), 0
        state = scope.setdefault("state", {})
        state["owner"] = ""

        async def answer(message: Message) -> None:
            nonlocal answered
            if message["type"] == "http.response.start":
                answered = message["status"]
                given = {name.lower() for name, _ in message["headers"]}
                message["headers"] = [
                    *message["headers"],
                    *(
                        (name.lower().encode(), value.encode())
                        for name, value in HEADERS.items()
                        if name.lower().encode() not in given
                    ),
                ]
            await send(message)

        try:
            state["owner"] = self._owner(scope)
            await self.app(scope, receive, answer)
        except Problem as problem:
            await problem_response(problem)(scope, receive, answer)
        except Exception as error:
            if not isinstance(error, ClientDisconnect):
                log("internal", level=logging.ERROR, error=where(error))
                if answered == 0:
                    await problem_response(Problem("internal"))(scope, receive, answer)
        finally:
            route = getattr(scope.get("route"), "path", "other")
            seconds = time.monotonic() - start
            self.metrics.request(route, answered, seconds)
            if route not in OPEN:
                ms = round(1e3 * seconds, 1)
                log(
                    "request",
                    method=scope["method"][:8],
                    route=route,
                    status=answered,
                    ms=ms,
                    owner=state["owner"],
                )
        return None

    def _owner(self, scope: MutableMapping[str, Any]) -> str:
        """Who sent a request. Raises Problem."""
        headers = {name.lower(): value.decode("latin-1") for name, value in scope["headers"]}
        if self.tokens is None:
            check_local(headers.get(b"host"), headers.get(b"origin"), self.port)
            return LOCAL
        if self.is_open(scope["path"]):
            return ""
        return self.tokens.owner(headers.get(b"authorization"))


async def read_json_body(request: Request, limit: int, limit_s: float) -> bytes:
    """The body of a request. Raises Problem for one of another type, a large one or a slow one."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":  # a page of another site can send other types without permission
        raise Problem("not_json", "send the header Content-Type: application/json")
    body = bytearray()
    try:
        async with asyncio.timeout(limit_s):
            async for chunk in request.stream():
                body += chunk
                if len(body) > limit:
                    raise Problem("body_too_large", f"at most {limit:,} bytes are allowed")
    except TimeoutError:
        raise Problem("slow_body", f"it must be complete after {limit_s:g} s") from None
    return bytes(body)
