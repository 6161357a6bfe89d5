"""Presets, bases and overrides become settings; what a file can say, and which layer wins."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from amortized.config import (
    ConfigError,
    build_config,
    config_digest,
    config_to_dict,
    config_to_yaml,
    load_config,
)
from tests.config.settings import Cameras, Grid, Planes, Prior, Run, Trainer, write


def test_preset_and_overrides(tmp_path: Path) -> None:
    path = write(tmp_path, "corpus: shapes\ntrainer: {lr: 1e-4, ema: false}\noutput: a/b\nseed: 1_000\n")
    run = load_config(Run, path, ["trainer.steps=3", "cameras.views=[front, 'a, b']", "trainer.steps=7"])
    assert run == Run(
        corpus="shapes",
        output=Path("a/b"),
        seed=1000,
        trainer=Trainer(steps=7, lr=1e-4, ema=False),
        cameras=Cameras(distance=(2.0, 3.0), views=("front", "a, b")),
    )


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("2", 2.0),
        ("1e-4", 1e-4),
        ("-.5", -0.5),
        ("[1, 2e1]", (1.0, 20.0)),
    ],
)
def test_a_union_takes_the_first_type_that_fits(text: str, value: object) -> None:
    read = load_config(Run, None, ["corpus=c", f"cameras.lens={text}"]).cameras.lens
    assert read == value and type(read) is type(value)


@pytest.mark.parametrize(
    "text",
    [
        'a "red": [cube]',
        "123",
        "no",
        "1e-4",
        "a=b=c",
        "${oc.env:HOME}",
        "${",
        "{a: b",
        "# not a comment",
        " padded ",
        "&x *y !z",
        "2026-01-01",
        "'",
        '<script>alert(1)</script> & "x"',
        "ein roter Würfel",
    ],
)
def test_text_survives_as_typed(text: str, tmp_path: Path) -> None:
    run = load_config(Run, None, ["corpus=c", f"prompt={text}"])
    assert run.prompt == text
    assert load_config(Run, write(tmp_path, config_to_yaml(run))) == run


def test_unquoted_yaml_is_read_by_the_field(tmp_path: Path) -> None:
    run = load_config(Run, write(tmp_path, "corpus: no\nprompt: 123\n"))
    assert (run.corpus, run.prompt) == ("no", "123")
    assert load_config(Run, write(tmp_path, "corpus: c\nprompt: null\n")).prompt is None
    assert load_config(Run, write(tmp_path, "corpus: c\nprompt: 'null'\n")).prompt == "null"
    assert load_config(Run, write(tmp_path, "corpus: c\nprompt: x\n"), ["prompt=null"]).prompt is None


def test_choice_is_made_by_name(tmp_path: Path) -> None:
    path = write(tmp_path, "corpus: c\ngenerator: {name: grid, levels: 4}\n")
    assert load_config(Run, path).generator == Grid(levels=4)
    assert load_config(Run, path, ["generator.growth=2"]).generator == Grid(levels=4, growth=2.0)
    # Another choice starts from its defaults: the settings were meant for the first.
    assert load_config(Run, path, ["generator.name=planes"]).generator == Planes(resolution=8)
    both = load_config(Run, path, ["generator.resolution=2", "generator.name=planes"])
    assert both.generator == Planes(resolution=2)
    # The default object's settings apply where no layer sets them.
    assert load_config(Run, None, ["corpus=c"]).generator == Planes(resolution=8)


def test_bases_are_merged_below(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    write(tmp_path, "corpus: c\nseed: 1\ntrainer: {steps: 5, lr: 0.5}\n", "a.yaml")
    write(tmp_path, "base: ../a.yaml\ntrainer: {steps: 6}\n", "sub/b.yaml")
    path = write(tmp_path, "base: sub/b.yaml\nseed: 2\n", "c.yaml")
    assert load_config(Run, path) == Run(corpus="c", seed=2, trainer=Trainer(steps=6, lr=0.5))


def test_a_section_with_a_shorthand(tmp_path: Path) -> None:
    short, long = write(tmp_path, "corpus: c\nprior: x/y\n"), "corpus: c\nprior: {dtype: half, path: x}\n"
    assert load_config(Run, short).prior == Prior(path="x/y")
    assert load_config(Run, short, ["prior.dtype=half"]).prior == Prior(path="x/y", dtype="half")
    path = write(tmp_path, long)
    assert load_config(Run, path, ["prior=z"]).prior == Prior(path="z", dtype="half")
    assert load_config(Run, path, ["prior=z", "prior.dtype=x"]).prior == Prior(path="z", dtype="x")
    assert load_config(Run, path, ["prior.dtype=x", "prior=z"]).prior == Prior(path="z", dtype="x")


@dataclass(frozen=True, kw_only=True)
class Part:
    size: int = 1
    rate: float = 0.1


@dataclass(frozen=True, kw_only=True)
class Recipe:
    templates: ClassVar = ("method", {"plain": {}, "rich": {"steps": 9, "part": {"size": 5}}})
    steps: int = 1
    part: Part | None = None


@dataclass(frozen=True, kw_only=True)
class Kitchen:
    recipe: Recipe = field(default_factory=lambda: Recipe(steps=7))


def test_a_section_may_start_from_named_settings(tmp_path: Path) -> None:
    assert load_config(Kitchen).recipe == Recipe(steps=7)
    rich = load_config(Kitchen, None, ["recipe.method=rich"])
    assert rich.recipe == Recipe(steps=9, part=Part(size=5))
    # Other settings override them, in any order and from any layer, section by section.
    assert load_config(Kitchen, None, ["recipe.part.rate=2", "recipe.method=rich"]).recipe.part == Part(
        size=5, rate=2.0
    )
    path = write(tmp_path, "recipe: {method: rich, steps: 3}\n")
    assert load_config(Kitchen, path).recipe == Recipe(steps=3, part=Part(size=5))
    assert load_config(Kitchen, path, ["recipe.method=plain"]).recipe == Recipe(steps=3)
    assert load_config(Kitchen, path, ["recipe.part=null"]).recipe == Recipe(steps=3)
    # Written back, the settings stand where the name was.
    assert "method" not in config_to_yaml(rich)
    assert load_config(Kitchen, write(tmp_path, config_to_yaml(rich), "back.yaml")) == rich
    with pytest.raises(ConfigError, match="recipe.method must be one of plain, rich, got 'poor'"):
        load_config(Kitchen, None, ["recipe.method=poor"])
    with pytest.raises(
        ConfigError, match="unknown key recipe.methd in the overrides; did you mean recipe.method"
    ):
        load_config(Kitchen, None, ["recipe.methd=rich"])


@dataclass(frozen=True, kw_only=True)
class Named(Recipe):
    method: str | None = None


@dataclass(frozen=True, kw_only=True)
class NamedKitchen:
    recipe: Named = field(default_factory=Named)


def test_a_field_records_the_name_that_a_section_starts_from(tmp_path: Path) -> None:
    rich = load_config(NamedKitchen, None, ["recipe.method=rich", "recipe.steps=3"])
    assert rich.recipe == Named(method="rich", steps=3, part=Part(size=5))
    assert "method: rich" in config_to_yaml(rich)
    for config in (rich, NamedKitchen()):  # a recorded name changes no value, and none is null
        assert load_config(NamedKitchen, write(tmp_path, config_to_yaml(config), "back.yaml")) == config
    with pytest.raises(ConfigError, match="recipe.method must be one of plain, rich, got 'poor'"):
        load_config(NamedKitchen, None, ["recipe.method=poor"])


def test_build_takes_python_values() -> None:
    data = {"corpus": "c", "trainer": {"lr": 1, "steps": 2}, "cameras": {"distance": [1, 2]}}
    run = build_config(Run, data)
    assert run.trainer == Trainer(lr=1.0, steps=2) and isinstance(run.trainer.lr, float)
    assert run.cameras.distance == (1.0, 2.0)
    for key, wrong in (
        ("steps", True),
        ("steps", 2.0),
        ("ema", 1),
        ("lr", "1"),
        ("lr", math.nan),
        ("lr", 10**400),
    ):
        with pytest.raises(ConfigError, match=rf"^trainer\.{key} must be"):
            build_config(Trainer, {key: wrong}, "trainer")


def test_digest_tells_settings_apart() -> None:
    one, same = Run(corpus="c"), load_config(Run, None, ["corpus=c", "seed=0"])
    assert config_digest(one) == config_digest(same) and len(config_digest(one)) == 16
    others = [Run(corpus="d"), Run(corpus="c", seed=1), Run(corpus="c", generator=Grid())]
    assert len({config_digest(run) for run in [one, *others]}) == 4
    assert config_digest(Run(corpus="c")) == "85b8eadba3a1a4fe"  # the same on every machine and Python


# ---- for any input --------------------------------------------------------------------------

KEYS = (
    "corpus output seed prompt base trainer trainer.steps trainer.lr trainer.ema trainer.optimizer generator "
    "generator.name generator.levels cameras cameras.distance cameras.views cameras.lens cameras.views.x"
).split()
VALUES = [
    "3",
    "-1",
    "1e3",
    "true",
    "null",
    "grid",
    "planes",
    "[1, 2]",
    "[a, [b]]",
    "{a: 1}",
    "&a [*a]",
    "*a",
    "[",
    "!!x",
    "9" * 500,
    "--- a\n--- b",
    "[" * 1500,
    "\0",
]
overrides = st.builds(
    "{}={}".format, st.sampled_from(KEYS) | st.text(max_size=8), st.sampled_from(VALUES) | st.text()
)


@given(st.lists(overrides | st.text(), max_size=4))
@example(["cameras.views=" + "[" * 1500])
@example([".".join("a" * 5000) + "=1"])
def test_any_overrides_give_a_config_or_a_config_error(given_overrides: list[str]) -> None:
    try:
        run = load_config(Run, None, ["corpus=c", *given_overrides])
    except ConfigError as error:
        assert str(error)
    else:
        assert build_config(Run, config_to_dict(run)) == run


number = st.floats(-1e18, 1e18)
text = st.text().filter(lambda one: "\0" not in one)
path = text.filter(lambda one: one.strip() and not one.startswith("~"))
runs = st.builds(
    Run,
    corpus=text,
    output=path.map(Path),
    seed=st.integers(1 - 2**63, 2**63 - 1),
    prompt=st.none() | text | st.sampled_from(["null", "1e-4", "1.", "true", "~", "a\n b\n"]),
    trainer=st.builds(
        Trainer, steps=st.integers(1, 2**63 - 1), lr=st.floats(1e-300, 1e18), ema=st.booleans()
    ),
    generator=st.builds(Grid, levels=st.integers(-9, 9), growth=number) | st.builds(Planes),
    cameras=st.builds(Cameras, distance=st.tuples(number, number), views=st.lists(text).map(tuple)),
)


@given(runs)
@example(Run(corpus="\x85", output=Path("next\x85line")))
def test_yaml_round_trip(tmp_path_factory: pytest.TempPathFactory, run: Run) -> None:
    path = write(tmp_path_factory.getbasetemp(), config_to_yaml(run), "round.yaml")
    again = load_config(Run, path)
    assert again == run and config_digest(again) == config_digest(run)
