"""Every setting of a run, with any value: a config, or one sentence that names the key. Nothing explodes."""

from __future__ import annotations

import math
from datetime import timedelta
from functools import cache
from typing import get_args, get_origin

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from amortized.commands.compose import RunConfig, check_size, load_run_config
from amortized.config import ConfigError, config_to_dict, config_to_yaml, load_config
from amortized.config.schema import PathText, dotted_keys, fields_of, hints_of, options_of, sections_of
from tests.rooms import ROOT

PRESET = ROOT / "configs/quickstart.yaml"
EXTREMES = """
0 -0 1 -1 2 3 0.5 1e-4 1e-320 1e20 -1e20 1e308 1e999 nan inf -inf .nan 9223372036854775807 9223372036854775808
2147483648 100000 1000000000000000000000000000000 null ~ true false [] {} [1] [1,2] [1,2,3] [0,1,2,1] [nan,1]
[1e20,1e20] [[1]] {a:1} ~/x ~nobody/x text cpu cuda:7 gpu0 xpu mps
""".split()
EXTREMES += ["", " ", "a" * 5000, "/".join(["a" * 200] * 30), "\0", "\udcff", "9" * 399, "[" * 500]


@cache
def types_of(cls: type = RunConfig, where: str = "") -> dict[str, set]:
    """The types of every dotted key, over all choices."""
    types: dict[str, set] = {}
    for name in fields_of(cls):
        key = f"{where}.{name}" if where else name
        hint = hints_of(cls)[name]
        types.setdefault(key, set()).update(options_of(hint))
        for section in sections_of(hint):
            for inner, kinds in types_of(section, key).items():
                types.setdefault(inner, set()).update(kinds)
    return types


def choice_for(key: str) -> list[list[str]]:
    """Overrides that select each of the choices in which a key may exist."""
    if key.startswith("generator."):
        one_object = ["generator.name=ingp", "trainer.prompts_per_process=1"]
        names = ("hyper-ingp", "3dconv-net", "triplane-transformer")
        return [*([f"generator.name={name}"] for name in names), one_object]
    if key.startswith("environment."):
        return [["environment.name=hash"], ["environment.name=sh"], ["environment.name=shared-hash"]]
    return [["guidance.method=vsd"]] if key.startswith("guidance.learned.") else [[]]


def outcome(*overrides: str) -> RunConfig | str:
    """The config, or the message of the ConfigError; any other exception fails the test."""
    try:
        return load_run_config(PRESET, overrides)
    except ConfigError as error:
        message = str(error)
        assert message and "\n" not in message and len(message) < 1200, message
        return message


KEYS = sorted(dotted_keys(RunConfig))


def test_the_keys_are_all_of_them() -> None:
    assert set(types_of()) <= set(KEYS) and len(KEYS) > 150


@given(st.sampled_from(KEYS), st.sampled_from(EXTREMES) | st.text(max_size=20) | st.floats().map(str))
@example("trainer.steps", "1" + "0" * 30)
@example("generator.hidden", str([64] * 9999))
def test_any_value_gives_a_config_or_one_sentence(key: str, value: str) -> None:
    for choice in choice_for(key):
        config = outcome(*choice, f"{key}={value}")
        if not isinstance(config, str):
            assert config_to_yaml(config)
            timedelta(seconds=1.5 * config.distributed.timeout_s)
            numbers = [one for one in _leaves(config_to_dict(config)) if isinstance(one, float)]
            assert all(math.isfinite(one) for one in numbers)


def _leaves(data: object) -> list:
    if isinstance(data, dict):
        return [leaf for value in data.values() for leaf in _leaves(value)]
    return [leaf for value in data for leaf in _leaves(value)] if isinstance(data, list) else [data]


UNBOUNDED = {"seed", "evaluation.seed"}  # any 64-bit integer


def _integer_keys() -> list[str]:
    def is_integer(kind: object) -> bool:
        return kind is int or (get_origin(kind) is tuple and int in get_args(kind))

    return sorted(
        key for key, kinds in types_of().items() if any(map(is_integer, kinds)) and key not in UNBOUNDED
    )


@pytest.mark.parametrize("key", _integer_keys())
@pytest.mark.parametrize("value", ["100000000000000000", "9223372036854775807"])
def test_every_integer_has_an_upper_bound(key: str, value: str) -> None:
    """Memory and time do not explode: 10^17 of anything is refused by a sentence that names the key."""
    values = [value, f"[{value}]", f"[{value},{value}]"]
    outcomes = [outcome(*choice, f"{key}={one}") for choice in choice_for(key) for one in values]
    named = key.rpartition(".")[2]
    assert all(isinstance(one, str) for one in outcomes), key
    assert any(named in str(one) for one in outcomes), outcomes


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        (["generator.hyper_hidden=131072", "generator.hidden=[65536,65536]"], "generator.hyper_hidden"),
        (
            [
                "generator.grid.log2_table_size=28",
                "generator.grid.num_levels=50",
                "generator.grid.growth=1.2",
            ],
            "num_levels",
        ),
        (["generator.name=3dconv-net", "generator.base_channels=131072"], "generator.base_channels"),
        (["generator.name=triplane-transformer", "generator.width=131072"], "generator.width"),
    ],
)
def test_a_generator_beyond_the_memory_is_refused_before_it_takes_any(
    overrides: list[str], named: str
) -> None:
    config = load_run_config(PRESET, overrides)
    with pytest.raises(ValueError, match=r"the generator's weights would take [\d,.]+ GiB") as caught:
        check_size(config, 1024)
    assert named in str(caught.value)


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        (["trainer.render_size=4096", "trainer.prompts_per_process=4096"], "trainer.render_size"),
        (["trainer.prompts_per_process=64", "trainer.gradient_accumulation_steps=50000"], "gradient_accum"),
        (["evaluation.image_size=4096", "evaluation.views=4096"], "evaluation.image_size"),
        (
            ["evaluation.turntable_size=4096", "evaluation.turntable_frames=10000"],
            "evaluation.turntable_size",
        ),
    ],
)
def test_settings_that_are_large_together_are_refused(overrides: list[str], named: str) -> None:
    assert all(not isinstance(outcome(one), str) for one in overrides), "each alone is accepted"
    assert named in str(outcome(*overrides))


PATHS = sorted(key for key, kinds in types_of().items() if PathText in kinds or tuple[PathText, ...] in kinds)


def test_these_settings_are_paths() -> None:
    assert PATHS == [
        "checkpointing.upload",
        "corpus",
        "evaluation.clip",
        "output",
        "prior.loras",
        "prior.path",
        "prior.tokens",
        "prompt_order.by",
        "start",
        "text.encoder",
        "text.shards",
    ]


@pytest.mark.parametrize("key", PATHS)
def test_the_home_folder_expands_in_every_path_and_an_empty_one_is_refused(key: str, monkeypatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    is_list = key in ("text.shards", "prior.loras", "prior.tokens")
    form = "[{}]" if is_list else "{}"
    splats = ["generator.name=splats", "trainer.prompts_per_process=1", "losses.eikonal=0", "losses.inside=0"]
    more = {"prompt_order.by": ["prompt_order.kind=weighted"], "start": splats}.get(key, [])
    data = config_to_dict(load_config(RunConfig, PRESET, [*more, f"{key}={form.format('~/a.json')}"]))
    for part in key.split("."):
        data = data[part]
    assert data == (["/home/me/a.json"] if is_list else "/home/me/a.json")
    for bad in ("", " ", "~nobody-here/x", "a" * 300, "/".join(["a"] * 3000)):
        value = form.format(json_text(bad)) if is_list else bad
        message = outcome(*more, f"{key}={value}")
        assert isinstance(message, str) and key in message and len(message) < 700, message


def json_text(text: str) -> str:
    return f'"{text}"'


@pytest.mark.parametrize("value", ["", " ", "\t"])
def test_an_empty_prompt_is_not_no_prompt(value: str) -> None:
    assert outcome(f"prompt={value}") == "prompt is empty: give a text, or null to train on the corpus"
    assert load_run_config(PRESET, ["prompt=null"]).prompt is None
