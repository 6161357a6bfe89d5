"""The routes of the models: what they know, and what lies between two prompts."""

from __future__ import annotations

import asyncio

import pytest

from amortized.serve.app import Settings
from tests.serve.fakes import picture_of, service


def ask(tmp_path, method, path, data=None, **settings):
    async def main():
        async with service(tmp_path, **settings) as it:
            it.client.headers["content-type"] = "application/json"
            return await it.client(method, path, data), it.engine

    return asyncio.run(main())


def test_a_model_says_what_it_was_trained_on(tmp_path):
    answer, engine = ask(tmp_path, "GET", "/v1/models/fake")
    assert answer.status == 200 and answer.json["training"] == {
        "corpus": "fake",
        "prompts": 3,
        "listed_prompts": 3,
        "words": ["red", "cube"],
        "known_words": 2,
    }
    assert ask(tmp_path, "GET", f"/v1/models/{engine.digest}")[0].json == answer.json


@pytest.mark.parametrize("path", ["/v1/models/none", "/v1/models/none/prompts", "/v1/models/..%2f"])
def test_other_models_are_not_found(tmp_path, path):
    answer, _ = ask(tmp_path, "GET", path)
    assert answer.status == 404 and answer.json["code"] == "not_found"


@pytest.mark.parametrize("words", ["", "red", "RED c", "cube a", "cone red", "none"])
@pytest.mark.parametrize("limit", [1, 2, 100])
def test_prompts_are_searched_and_paged(tmp_path, words, limit, monkeypatch):
    async def main():
        async with service(tmp_path) as it:
            seen, total = [], -1
            for offset in range(0, 4, limit):
                scope = (
                    f"/v1/models/fake/prompts?search={words.replace(' ', '+')}&offset={offset}&limit={limit}"
                )
                answer = await it.client("GET", scope)
                assert answer.status == 200 and len(answer.json["prompts"]) <= limit
                seen, total = seen + answer.json["prompts"], answer.json["total"]
            return seen, total, it.engine.knowledge.prompts

    seen, total, prompts = asyncio.run(main())
    assert seen == [text for text in prompts if all(word in text for word in words.lower().split())]
    assert total == len(seen)


@pytest.mark.parametrize("query", ["limit=0", "limit=101", "offset=-1", "offset=x", f"search={'x' * 201}"])
def test_a_wrong_address_is_a_problem(tmp_path, query):
    answer, _ = ask(tmp_path, "GET", f"/v1/models/fake/prompts?{query}")
    assert answer.status == 422 and answer.json["code"] == "invalid_request"
    assert query.partition("=")[0] in answer.json["detail"]


def test_a_picture_between_two_prompts(tmp_path):
    wish = {"prompt": "a red cube", "toward": "a ball", "position": 0.5, "seed": 3}
    answer, engine = ask(tmp_path, "POST", "/v1/between", wish)
    assert answer.status == 200 and answer.headers["content-type"] == "image/png"
    assert answer.body == picture_of("a red cube", 3) and engine.items[-1].toward == "a ball"
    assert engine.items[-1].position == 0.5 and list((tmp_path / "objects").glob("*/*")) == []


@pytest.mark.parametrize(
    "change",
    [{"position": 1.01}, {"position": "0"}, {"toward": ""}, {"views": 24, "size": 256}, {"more": 1}],
)
def test_a_wrong_wish_is_a_problem(tmp_path, change):
    wish = {"prompt": "a", "toward": "b", "position": 0.5} | change
    answer, engine = ask(tmp_path, "POST", "/v1/between", wish)
    assert answer.status == 422 and engine.calls == []


def test_failures_and_refusals_are_problems(tmp_path):
    wish = {"prompt": "a", "toward": "b", "position": 0.5}
    answer, _ = ask(tmp_path, "POST", "/v1/between", wish | {"prompt": "broken"})
    assert answer.status == 500 and answer.json["code"] == "internal"
    refuse = Settings(refuse=lambda prompt: "not that" if "bad" in prompt else None)
    for path, data in (("between", wish | {"toward": "bad"}), ("familiarity", {"prompt": "bad"})):
        answer, engine = ask(tmp_path, "POST", f"/v1/{path}", data, requests=refuse)
        assert (answer.status, answer.json["detail"]) == (422, "not that") and engine.calls == []


def test_familiarity(tmp_path):
    answer, _ = ask(tmp_path, "POST", "/v1/familiarity", {"prompt": " a dragon "})
    assert answer.json == {"far": True, "sentences": ["about a dragon"]}
