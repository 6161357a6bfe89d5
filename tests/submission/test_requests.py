"""Requests as data: from any JSON value a valid config or one sentence, and never a path or a command."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from amortized.commands.compose import RunConfig, load_run_config
from amortized.config import ConfigError
from amortized.config.schema import dotted_keys
from amortized.guidance import METHODS
from amortized.submission import embedded_catalog, read_request
from amortized.submission.requests import METHODS as NAMES
from amortized.submission.requests import OVERRIDES, Choice, Number, Text, Whole
from corpora import CORPORA

CATALOG = embedded_catalog(CORPORA)
OUTPUTS = Path("outputs/trainings")
SAMPLES = settings(max_examples=100, deadline=None)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=10), inner, max_size=3),
    max_leaves=6,
)


def value_of(kind: Any) -> st.SearchStrategy:
    match kind:
        case Whole(low, high):
            return st.integers(low, high)
        case Number(low, high):
            return st.floats(low, high)
        case Choice(names):
            return st.sampled_from(names)
        case Text(limit):
            return st.text(
                st.characters(exclude_categories=["Cc", "Cs", "Zl", "Zp"]), min_size=1, max_size=limit // 4
            )
    raise AssertionError(kind)


VALID = st.fixed_dictionaries(
    {"preset": st.sampled_from(sorted(CATALOG.presets))},
    optional={
        "corpus": st.none() | st.sampled_from(sorted(CATALOG.corpora)),
        "prior": st.none() | st.sampled_from(sorted(CATALOG.priors)),
        "overrides": st.fixed_dictionaries(
            {}, optional={key: value_of(kind) for key, kind in OVERRIDES.items()}
        ),
    },
)
NEARLY = st.fixed_dictionaries(
    {
        "preset": st.sampled_from(["quickstart", "../quickstart", "/etc/passwd", "configs/quickstart.yaml"])
        | JSON
    },
    optional={
        "corpus": st.sampled_from(["shapes16", "prompts.txt", "https://x/y.txt"]) | JSON,
        "prior": st.sampled_from(["shapes-prior", "/etc", "a/b"]) | JSON,
        "overrides": st.dictionaries(
            st.sampled_from([*OVERRIDES, "output", "start", "text.shards"]), JSON, max_size=3
        ),
        "output": JSON,
    },
)


def test_the_closed_lists_are_settings_and_names_that_exist():
    assert set(OVERRIDES) <= set(dotted_keys(RunConfig)) and set(NAMES) == set(METHODS)
    assert {"quickstart", "tiny-ingp", "methods/sds"} <= set(CATALOG.presets)
    assert set(CATALOG.priors) == {"shapes-prior", "shapes-multi-view"}
    # No setting that holds a path, a URL or a device.
    assert not {"output", "corpus", "prior", "start", "device", "text.shards"} & set(OVERRIDES)


@SAMPLES
@given(VALID)
def test_a_valid_request_is_passed_on_exactly(data):
    try:
        request = read_request(json.loads(json.dumps(data)), CATALOG)
    except ValueError as error:
        assert "prompt must" in str(error)  # blank after all, or null
        return
    preset, *overrides = request.arguments(CATALOG, OUTPUTS)
    assert preset == CATALOG.presets[data["preset"]]
    values = dict(one.split("=", 1) for one in overrides)
    assert values.pop("output") == str(OUTPUTS / request.id)
    for name, table in (("corpus", CATALOG.corpora), ("prior", CATALOG.priors)):
        assert values.pop(name, None) == (table[data[name]] if data.get(name) else None)
    expected = dict(data.get("overrides", {}))
    if "prompt" in expected:
        expected["prompt"] = unicodedata.normalize("NFC", expected["prompt"]).strip()
    assert {key: type(expected[key])(value) for key, value in values.items()} == expected
    assert request.id == read_request(data, CATALOG).id


@settings(max_examples=15, deadline=None)
@given(VALID)
def test_a_valid_request_makes_a_config_or_one_sentence(data):
    try:
        request = read_request(data, CATALOG)
        config = request.config(CATALOG, OUTPUTS, load_run_config)
    except ConfigError as error:  # settings that exclude each other
        assert "\n" not in str(error)
        return
    except ValueError as error:
        assert "prompt must" in str(error)
        return
    assert config.output == str(OUTPUTS / request.id)
    assert config.prompt == request.overrides.get("prompt", config.prompt)
    assert config.trainer.steps == request.overrides.get("trainer.steps", config.trainer.steps)


@SAMPLES
@given(NEARLY | JSON)
def test_any_other_value_is_refused_in_one_sentence(data):
    try:
        request = read_request(data, CATALOG)
    except ValueError as error:
        assert "\n" not in str(error) and 0 < len(str(error)) < 1500
        return
    # It was valid: nothing but names of the catalog reaches the command line.
    first, *overrides = request.arguments(CATALOG, OUTPUTS)
    assert first in CATALOG.presets.values()
    for one in overrides:
        key, _, value = one.partition("=")
        table = {"corpus": CATALOG.corpora, "prior": CATALOG.priors}.get(key, {})
        assert key in OVERRIDES or key == "output" or value in table.values()


@pytest.mark.parametrize(
    "overrides",
    [
        {"output": "/etc"},
        {"start": "outputs/x"},
        {"prompt": "a\nb"},
        {"prompt": " "},
        {"prompt": "null"},
        {"prompt": "x" * 401},
        {"prompt": "a\ud800"},
        {"prompt": ["a"]},
        {"seed": True},
        {"seed": -1},
        {"seed": 1.0},
        {"trainer.steps": 10**9},
        {"optimizer.learning_rate": float("nan")},
        {"optimizer.learning_rate": "1e-3"},
        {"guidance.method": "sds; ls"},
        [],
        0,
        "",
    ],
)
def test_what_is_not_on_the_lists_is_refused(overrides):
    with pytest.raises(ValueError):
        read_request({"preset": "quickstart", "overrides": overrides}, CATALOG)
