"""Errors of the API: problem JSON (RFC 9457) with a code that stays the same between versions."""

from __future__ import annotations

import json
from typing import Any

from starlette.responses import Response

# code: (HTTP status, title)
PROBLEMS = {
    "malformed_body": (400, "The body is not a JSON object"),
    "unauthorized": (401, "A valid token is needed"),
    "wrong_host": (403, "The request names another host, or comes from another site"),
    "not_yours": (403, "The object was requested with another token"),
    "not_found": (404, "There is no such thing"),
    "method_not_allowed": (405, "The method is not allowed here"),
    "slow_body": (408, "The body did not arrive in time"),
    "body_too_large": (413, "The body is too large"),
    "not_json": (415, "The body must be application/json"),
    "invalid_request": (422, "A field is missing, unknown or out of range"),
    "unknown_model": (422, "There is no such model"),
    "refused": (422, "The prompt is refused"),
    "too_many_requests": (429, "Too many requests of this token"),
    "queue_full": (429, "The queue is full"),
    "internal": (500, "The service failed"),
    "draining": (503, "The service is shutting down"),
    "not_ready": (503, "The service is not ready"),
    "storage_full": (507, "The store has no room"),
}
# Why an object failed. A repeated request has the same result for the final ones; others are tried again.
FAILURES = {
    "no_surface": "The object has no surface to export",
    "timeout": "The time limit ended it",
    "out_of_memory": "The memory limit ended it",
    "worker_lost": "Its process was lost twice",
    "engine_failed": "The generator failed",
    "storage_full": "The store had no room for its files",
    "model_gone": "Its checkpoint is no longer served",
}
FINAL = {"no_surface"}


class Problem(Exception):
    """A request that cannot be answered as it stands."""

    def __init__(
        self, code: str, detail: str = "", *, retry_after_s: float | None = None, errors: Any = None
    ) -> None:
        super().__init__(code)
        self.code, self.detail, self.retry_after_s, self.errors = code, detail, retry_after_s, errors


class Failure(Exception):
    """An object that cannot be made: a code of FAILURES and one sentence."""

    def __init__(self, code: str, detail: str = "") -> None:
        super().__init__(detail or FAILURES[code])
        self.code, self.detail = code, detail or FAILURES[code]

    def as_json(self) -> dict[str, str]:
        return {"code": self.code, "detail": self.detail}


def dumps(data: Any) -> bytes:
    """JSON in ASCII: text of clients is escaped, unpaired surrogates included."""
    return json.dumps(data, ensure_ascii=True, allow_nan=False, separators=(",", ":")).encode("ascii")


def json_response(data: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """A response with a JSON body."""
    return Response(dumps(data), status, headers, media_type="application/json")


def problem_response(problem: Problem) -> Response:
    """The response to a problem."""
    status, title = PROBLEMS[problem.code]
    body = {
        "type": f"urn:amortized3d:problem:{problem.code}",
        "title": title,
        "status": status,
        "code": problem.code,
    }
    body |= {"detail": problem.detail} if problem.detail else {}
    body |= {"errors": problem.errors} if problem.errors else {}
    headers = {}
    if problem.retry_after_s is not None:
        headers["Retry-After"] = str(max(1, round(problem.retry_after_s)))
    if status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return Response(dumps(body), status, headers, media_type="application/problem+json")
