"""Any body gets an answer with a code, never a 500; equal wishes have equal ids and others have others."""

from __future__ import annotations

import asyncio
import json
import unicodedata
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from amortized.serve.jobs import Limits
from amortized.serve.problems import PROBLEMS, Problem
from amortized.serve.requests import (
    BatchRequest,
    BetweenRequest,
    FamiliarityRequest,
    ImageRequest,
    ObjectRequest,
    object_id,
    parse,
)
from tests.serve.fakes import service

ROUTES = {
    "/v1/objects": ObjectRequest,
    "/v1/batches": BatchRequest,
    "/v1/images/generations": ImageRequest,
    "/v1/between": BetweenRequest,
    "/v1/familiarity": FamiliarityRequest,
}
FIELDS = sorted(
    {name for kind in ROUTES.values() for name in kind.model_fields} | {"path", "url", "__class__"}
)
TEXTS = st.text(max_size=20) | st.sampled_from(
    ["a cube", "\ud800", "\0", "../../etc/passwd", "x" * 5000, "é", "\u202e"]
)
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | TEXTS
    | st.sampled_from([1, 4, 128, 256, 10**400]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=8,
)
LIKELY = st.fixed_dictionaries(
    {},
    optional={
        "prompt": TEXTS,
        "prompts": st.lists(TEXTS, max_size=3),
        "seed": st.integers(-1, 2**31),
        "n": st.integers(0, 11),
        "formats": st.lists(st.sampled_from(["png", "glb", ""]), max_size=2).map(
            lambda f: [x for x in f if x != "glb"]
        ),
        "wait": st.sampled_from([0, 0.01, -1, 61, float("nan"), float("inf"), "1"]),
        "size": st.sampled_from([64, 512, "64x64", "auto", True]),
        "views": st.sampled_from([1, 8, 9, 4.0]),
        "toward": TEXTS,
        "position": st.sampled_from([0, 0.5, 1.0, -0.1, float("nan"), "1"]),
    },
)
OBJECTS = LIKELY | st.dictionaries(st.sampled_from(FIELDS) | TEXTS, VALUES, max_size=5)
RAW = st.binary(max_size=60) | st.sampled_from(
    [
        b"[" * 100_000,
        b'{"a":' * 5000,
        b"1" * 5000,
        b'{"seed":' + b"9" * 5000 + b"}",
        b"\xff\xfe",
        b"null",
        b"NaN",
        b"{}",
        b"\xef\xbb\xbf{}",
    ]
)


def encoded(data: Any) -> bytes:
    """JSON as clients write it: surrogates escaped, NaN and huge integers as Python writes them."""
    return json.dumps(data).encode()


BODIES = OBJECTS.map(encoded) | RAW


async def answers(folder: Path, requests: list[tuple[str, bytes]]) -> None:
    async with service(folder, limits=Limits(depth=10**6, batch_depth=10**6)) as it:
        for path, body in requests:
            answer = await it.client("POST", path, body=body)
            assert answer.status in (200, 202, 400, 413, 422), (answer.status, path, body[:200])
            assert answer.headers["content-type"] == "image/png" or answer.json is not None
            if answer.status >= 400 and "images" not in path:
                assert answer.json["code"] in PROBLEMS and answer.headers["content-type"].endswith(
                    "problem+json"
                )


def check_bodies(tmp_path_factory, requests: list[tuple[str, bytes]]) -> None:
    asyncio.run(answers(tmp_path_factory.getbasetemp() / "bodies", requests))


REQUESTS = st.lists(st.tuples(st.sampled_from(sorted(ROUTES)), BODIES), min_size=10, max_size=10)
SLOW = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example]


@settings(max_examples=30, suppress_health_check=SLOW)
@given(REQUESTS)
def test_no_body_makes_the_service_fail(tmp_path_factory, requests) -> None:
    check_bodies(tmp_path_factory, requests)


@pytest.mark.slow
@settings(max_examples=1000, suppress_health_check=SLOW)
@given(REQUESTS)
def test_no_body_of_ten_thousand_makes_the_service_fail(tmp_path_factory, requests) -> None:
    check_bodies(tmp_path_factory, requests)


@given(st.text(min_size=1, max_size=30))
def test_prompts_are_equal_if_they_look_it(text: str) -> None:
    def prompt_of(text: str) -> str | None:
        try:
            return parse(ObjectRequest, json.dumps({"prompt": text}).encode()).prompt
        except Problem:
            return None

    prompt = prompt_of(text)
    forms = {prompt_of(unicodedata.normalize(form, f" {text} ")) for form in ("NFC", "NFD")}
    assert forms == {prompt}
    if prompt is not None:
        assert 0 < len(prompt) <= 400 and prompt_of(prompt) == prompt
        assert not set(prompt) & {"\n", "\r", "\0", "\x1b", "\u2028"}


DEFAULTS: dict[str, Any] = {"prompt": "a cube"}
CHANGES = [
    {"prompt": "a Cube"},
    {"seed": 1},
    {"formats": ["glb"]},
    {"formats": ["glb"], "faces": 500},
    {"formats": ["glb"], "texture": 256},
    {"formats": ["stl"]},
    {"formats": ["stl"], "resolution": 64},
    {"formats": ["glb"], "preview": False},
    {"views": 1},
    {"size": 64},
]
NOTHING = [
    {"faces": 500},
    {"texture": 256, "resolution": 64},
    {"wait": 3, "n": 1},
    {"prompt": " a cube  "},
    {"model": "fake"},
]


def id_of(fields: dict[str, Any], digest: str = "d") -> str:
    wish = parse(ObjectRequest, json.dumps(DEFAULTS | fields).encode())
    return object_id(digest, wish.prompt, wish.seed, wish.settings())


def test_ids_differ_exactly_if_the_results_may() -> None:
    ids = [id_of({}), *(id_of(change) for change in CHANGES), id_of({}, "other checkpoint")]
    assert len(set(ids)) == len(ids)
    assert {id_of(change) for change in NOTHING} == {ids[0]}
    assert id_of({"formats": ["stl", "glb", "stl"]}) == id_of({"formats": ["glb", "stl"]})
    assert id_of({"formats": ["stl"], "texture": 256}) == id_of({"formats": ["stl"]})  # STL has none


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"prompt": ""}, "prompt"),
        ({"prompt": "a\nb"}, "prompt"),
        ({"prompt": "x" * 401}, "prompt"),
        ({"seed": 1.5}, "seed"),
        ({"seed": True}, "seed"),
        ({"formats": ["exe"]}, "formats.0"),
        ({"faces": 10**6}, "faces"),
        ({"texture": 1000}, "texture"),
        ({"views": 8, "size": 512}, ""),
        ({"preview": False}, ""),
        ({"url": "http://example.org"}, "url"),
        ({"path": "/etc/passwd"}, "path"),
    ],
)
def test_the_wrong_field_is_named(fields: dict[str, Any], named: str) -> None:
    with pytest.raises(Problem) as problem:
        parse(ObjectRequest, json.dumps(DEFAULTS | fields).encode())
    assert problem.value.code == "invalid_request" and problem.value.errors[0]["field"] == named
