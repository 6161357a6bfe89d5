"""Settings: what is read, what is refused, and in which words."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from amortized.config import (
    ConfigError,
    build_config,
    check,
    config_digest,
    config_to_dict,
    config_to_yaml,
    load_config,
)
from amortized.config.renamed import rename_keys


@dataclass(frozen=True, kw_only=True)
class Trainer:
    steps: int = 100
    lr: float = 1e-3
    optimizer: Literal["adam", "adamw"] = "adamw"
    ema: bool = True

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps must be positive, got {self.steps}")
        if not self.lr > 0:
            raise ValueError(f"trainer.lr must be positive, got {self.lr}")


@dataclass(frozen=True, kw_only=True)
class Grid:
    name: Literal["grid"] = "grid"
    levels: int = 16
    growth: float = 1.5


@dataclass(frozen=True, kw_only=True)
class Planes:
    name: Literal["planes"] = "planes"
    resolution: int = 64


@dataclass(frozen=True, kw_only=True)
class Cameras:
    distance: tuple[float, float] = (1.0, 1.5)
    views: tuple[str, ...] = ("front",)
    lens: float | tuple[float, float] = 50.0


@dataclass(frozen=True, kw_only=True)
class Prior:
    shorthand: ClassVar[str] = "path"
    path: str = "a/b"
    dtype: str = "float32"


@dataclass(frozen=True, kw_only=True)
class Run:
    corpus: str
    output: Path = Path("outputs/run")
    seed: int = 0
    prompt: str | None = None
    prior: Prior = Prior()
    trainer: Trainer = Trainer()
    generator: Grid | Planes = Planes(resolution=8)
    cameras: Cameras = field(default_factory=lambda: Cameras(distance=(2.0, 3.0)))


def write(folder: Path, text: str, name: str = "preset.yaml") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def refusal(*overrides: str, path: Path | None = None) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(Run, path, ["corpus=c", *overrides] if path is None else overrides)
    message = str(caught.value)
    assert "\n" not in message and len(message) < 400
    return message


# ---- what is read ---------------------------------------------------------------------------


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


@pytest.mark.parametrize(("text", "value"), [
    ("2", 2.0), ("1e-4", 1e-4), ("-.5", -0.5), ("[1, 2e1]", (1.0, 20.0)),
])  # fmt: skip
def test_a_union_takes_the_first_type_that_fits(text: str, value: object) -> None:
    read = load_config(Run, None, ["corpus=c", f"cameras.lens={text}"]).cameras.lens
    assert read == value and type(read) is type(value)


@pytest.mark.parametrize("text", [
    'a "red": [cube]', "123", "no", "1e-4", "a=b=c", "${oc.env:HOME}", "${", "{a: b", "# not a comment",
    " padded ", "&x *y !z", "2026-01-01", "'", "<script>alert(1)</script> & \"x\"", "ein roter Würfel",
])  # fmt: skip
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
    assert "trainer.steps must be an integer, got '3'" in refusal(
        path=write(tmp_path, "corpus: c\ntrainer: {steps: '3'}\n")
    )


def test_choice_is_made_by_name(tmp_path: Path) -> None:
    path = write(tmp_path, "corpus: c\ngenerator: {name: grid, levels: 4}\n")
    assert load_config(Run, path).generator == Grid(levels=4)
    assert load_config(Run, path, ["generator.growth=2"]).generator == Grid(levels=4, growth=2.0)
    # Another choice starts from its defaults: the settings were meant for the first.
    assert load_config(Run, path, ["generator.name=planes"]).generator == Planes(resolution=8)
    both = load_config(Run, path, ["generator.resolution=2", "generator.name=planes"])
    assert both.generator == Planes(resolution=2)
    # The default object's settings hold where nothing is said.
    assert load_config(Run, None, ["corpus=c"]).generator == Planes(resolution=8)


def test_bases_are_merged_below(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    write(tmp_path, "corpus: c\nseed: 1\ntrainer: {steps: 5, lr: 0.5}\n", "a.yaml")
    write(tmp_path, "base: ../a.yaml\ntrainer: {steps: 6}\n", "sub/b.yaml")
    path = write(tmp_path, "base: sub/b.yaml\nseed: 2\n", "c.yaml")
    assert load_config(Run, path) == Run(corpus="c", seed=2, trainer=Trainer(steps=6, lr=0.5))


def test_bases_in_a_circle(tmp_path: Path) -> None:
    write(tmp_path, "base: b.yaml\n", "a.yaml")
    path = write(tmp_path, "base: a.yaml\n", "b.yaml")
    assert "form a cycle" in refusal(path=path)


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
    # What is said besides goes over them, in any order and from any layer, section by section.
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


# ---- what is refused, and in which words -------------------------------------------------------


@pytest.mark.parametrize(("override", "message"), [
    ("trainer.stps=3", "unknown key trainer.stps in the overrides; did you mean trainer.steps?"),
    ("steps=3", "unknown key steps in the overrides; did you mean trainer.steps?"),
    ("trainr.steps=3", "unknown key trainr.steps in the overrides; did you mean trainer.steps?"),
    ("optimizer.lr=3", "unknown key optimizer.lr in the overrides; did you mean trainer.lr?"),
    ("trainer.zzz=3", "unknown key trainer.zzz in the overrides; the keys here are trainer.ema, trainer.lr, "
                      "trainer.optimizer, trainer.steps"),
    ("generator.resolutio=3", "unknown key generator.resolutio in the overrides; did you mean "
                              "generator.resolution?"),
    ("generator.levels=3", "generator.levels in the overrides is a setting of generator.name=grid, but "
                           "generator.name is planes"),
    ("generator.name=gird", "generator.name must be one of grid, planes, got 'gird'"),
    ("trainer.steps=many", "trainer.steps must be an integer, got 'many'"),
    ("trainer.steps=1.0", "trainer.steps must be an integer, got '1.0'"),
    ("trainer.steps=", "trainer.steps must be an integer, got ''"),
    ("trainer.lr=nan", "trainer.lr must be a finite number, got 'nan'"),
    ("trainer.lr=1e999", "trainer.lr must be a finite number, got '1e999'"),
    ("trainer.ema=yes", "trainer.ema must be true or false, got 'yes'"),
    ("trainer.optimizer=sgd", "trainer.optimizer must be one of adam, adamw, got 'sgd'"),
    ("cameras.distance=3", "cameras.distance must be a list of 2 ([a finite number, a finite number]), "
                           "got '3'"),
    ("cameras.distance=[1,x]", "cameras.distance[1] must be a finite number, got 'x'"),
    ("cameras.lens=wide", "cameras.lens must be a finite number or a list of 2 ([a finite number, a finite "
                          "number]), got 'wide'"),
    ("trainer=3", "trainer is a section: set its keys (trainer.steps=VALUE), not '3'"),
    ("seed.x=3", 'seed must be an integer, got {"x": "3"}'),
    ("output=", "output must be a path, got ''"),
    ("trainer.steps 3", "the override 'trainer.steps 3' must have the form KEY=VALUE"),
    ("=3", "the override '=3' must have the form KEY=VALUE"),
    ("trainer..steps=3", "the override 'trainer..steps=3' must have the form KEY=VALUE"),
    ("trainer.steps=-1", "trainer.steps must be positive, got -1"),
    ("trainer.lr=0", "trainer.lr must be positive, got 0.0"),
])  # fmt: skip
def test_refusals(override: str, message: str) -> None:
    assert refusal(override) == message


def test_missing_key() -> None:
    with pytest.raises(ConfigError, match=r"^missing required key corpus \(text\): set it in the preset"):
        load_config(Run)


@pytest.mark.parametrize(("text", "message"), [
    ("", "preset.yaml is empty"),
    ("# only a comment\n", "preset.yaml is empty"),
    ("- a\n", "preset.yaml holds no settings"),
    ("corpus: c\ntrainer: {steps: 3\n", "preset.yaml, line 3: not valid YAML"),
    ("corpus: c\n\tseed: 1\n", "preset.yaml, line 2: not valid YAML"),
    ("corpus: c\nseed: 1\nseed: 2\n", "preset.yaml, line 3: the key seed appears twice"),
    ("corpus: c\ntrainer:\n  stps: 3\n", "preset.yaml; did you mean trainer.steps?"),
    ("corpus: c\ncameras: {views: &a [*a]}\n", "an alias contains itself"),
    ("corpus: \0\n", "not valid YAML"),
    ("base: none.yaml\n", "there is no preset"),
    ("base: [a, b]\n", "base must be one file's path"),
    ("corpus: !!python/object/apply:os.system [true]\n", "corpus must be text"),
])  # fmt: skip
def test_bad_files(text: str, message: str, tmp_path: Path) -> None:
    assert message in refusal(path=write(tmp_path, text))


def test_unreadable_files(tmp_path: Path) -> None:
    write(tmp_path, "corpus: c", "quickstart.yaml")
    assert refusal(path=tmp_path / "quikstart.yaml").endswith(f"did you mean {tmp_path / 'quickstart.yaml'}?")
    assert "Is a directory" in refusal(path=tmp_path)
    (tmp_path / "latin.yaml").write_bytes(b"corpus: W\xfcrfel")
    assert "not UTF-8" in refusal(path=tmp_path / "latin.yaml")


# ---- for any input --------------------------------------------------------------------------

KEYS = [
    "corpus", "output", "seed", "prompt", "trainer", "trainer.steps", "trainer.lr", "trainer.ema",
    "trainer.optimizer", "generator", "generator.name", "generator.levels", "cameras", "cameras.distance",
    "cameras.views", "cameras.lens", "cameras.views.x", "base",
]  # fmt: skip
VALUES = [
    "3", "-1", "1e3", "true", "null", "grid", "planes", "[1, 2]", "[a, [b]]", "{a: 1}", "&a [*a]", "*a", "[",
    "!!x", "9" * 500, "--- a\n--- b", "[" * 1500, "\0",
]  # fmt: skip
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


number = st.floats(allow_nan=False, allow_infinity=False)
runs = st.builds(
    Run,
    corpus=st.text(),
    output=st.text(min_size=1).map(Path),
    seed=st.integers(-(10**30), 10**30),
    prompt=st.none() | st.text() | st.sampled_from(["null", "1e-4", "1.", "true", "~", "\ud800", "a\n b\n"]),
    trainer=st.builds(Trainer, steps=st.integers(1), lr=st.floats(1e-300, 1e300), ema=st.booleans()),
    generator=st.builds(Grid, levels=st.integers(-9, 9), growth=number) | st.builds(Planes),
    cameras=st.builds(Cameras, distance=st.tuples(number, number), views=st.lists(st.text()).map(tuple)),
)


@given(runs)
@example(Run(corpus="\x85", output=Path("next\x85line")))
def test_yaml_round_trip(tmp_path_factory: pytest.TempPathFactory, run: Run) -> None:
    path = write(tmp_path_factory.getbasetemp(), config_to_yaml(run), "round.yaml")
    again = load_config(Run, path)
    assert again == run and config_digest(again) == config_digest(run)


# ---- renamed keys ------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Renamed:
    renamed: ClassVar[dict[str, str]] = {
        "loop": "trainer",
        "trainer.log": "monitor.every",
        "rate": "trainer.lr",
    }
    trainer: Trainer = field(default_factory=Trainer)
    monitor: Literal["none"] | Trainer = "none"


def test_old_keys_work_and_warn(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write(tmp_path, "loop: {steps: 7}")
    config = load_config(Renamed, path, ["rate=0.5"])
    assert config.trainer == Trainer(steps=7, lr=0.5)
    assert [record.getMessage() for record in caplog.records] == [
        "the setting loop is now trainer: please rename it",
        "the setting rate is now trainer.lr: please rename it",
    ]
    assert load_config(Renamed, None, ["loop.steps=3", "trainer.steps=4"]).trainer.steps == 4
    assert config_to_dict(config)["trainer"]["steps"] == 7


def test_rename_keys_moves_between_sections_and_prefers_the_new_key() -> None:
    old = {"trainer": {"log": 5, "steps": 2}}
    assert rename_keys(old, Renamed.renamed) == (
        {"trainer": {"steps": 2}, "monitor": {"every": 5}},
        [("trainer.log", "monitor.every")],
    )
    assert old == {"trainer": {"log": 5, "steps": 2}}  # the caller's data is not changed
    both = {"trainer": {"log": 5}, "monitor": {"every": 6}}
    assert rename_keys(both, Renamed.renamed)[0]["monitor"] == {"every": 6}
    assert rename_keys({"trainer": 3}, Renamed.renamed) == ({"trainer": 3}, [])


# ---- range checks ------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Ranges:
    count: int = 1
    share: float | None = 0.5
    betas: tuple[float, ...] = (0.9, 0.99)


@pytest.mark.parametrize(
    ("values", "limits", "message"),
    [
        ({"count": 0}, {"at_least": 1}, "count must be at least 1, got 0"),
        ({"count": 0}, {"above": 0}, "count must be positive, got 0"),
        ({"count": 2}, {"above": 2}, "count must be above 2, got 2"),
        ({"count": 3}, {"at_most": 2}, "count must be at most 2, got 3"),
        ({"count": 3}, {"below": 3}, "count must be below 3, got 3"),
        ({"share": 0.0}, {"above": 0, "at_most": 1}, "share must lie in (0, 1] or be null, got 0.0"),
        ({"share": 1.0}, {"at_least": 0, "below": 1}, "share must lie in [0, 1) or be null, got 1.0"),
        ({"betas": (0.5, 1.0)}, {"at_least": 0, "below": 1}, "betas must lie in [0, 1), got [0.5, 1.0]"),
        ({"share": math.nan}, {"above": 0}, "share must be positive or be null, got nan"),
    ],
)
def test_check(values: dict, limits: dict, message: str) -> None:
    name = next(iter(values))
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        check(Ranges(**values), name, **limits)


def test_check_passes_null_and_values_in_range() -> None:
    check(Ranges(share=None), "share", above=0)
    check(Ranges(count=1, share=1.0), "count", "share", at_least=1)
