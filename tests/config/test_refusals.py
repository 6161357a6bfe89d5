"""Files and overrides that cannot be read: each is one sentence with the place and the remedy."""

from __future__ import annotations

from pathlib import Path

import pytest

from amortized.config import ConfigError, load_config
from tests.config.settings import Run, write


def refusal(*overrides: str, path: Path | None = None) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(Run, path, ["corpus=c", *overrides] if path is None else overrides)
    message = str(caught.value)
    assert "\n" not in message and len(message) < 400
    return message


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("trainer.stps=3", "unknown key trainer.stps in the overrides; did you mean trainer.steps?"),
        ("steps=3", "unknown key steps in the overrides; did you mean trainer.steps?"),
        ("trainr.steps=3", "unknown key trainr.steps in the overrides; did you mean trainer.steps?"),
        ("optimizer.lr=3", "unknown key optimizer.lr in the overrides; did you mean trainer.lr?"),
        (
            "trainer.zzz=3",
            "unknown key trainer.zzz in the overrides; the keys here are trainer.ema, trainer.lr, "
            "trainer.optimizer, trainer.steps",
        ),
        (
            "generator.resolutio=3",
            "unknown key generator.resolutio in the overrides; did you mean generator.resolution?",
        ),
        (
            "generator.levels=3",
            "generator.levels in the overrides is a setting of generator.name=grid, but "
            "generator.name is planes",
        ),
        ("generator.name=gird", "generator.name must be one of grid, planes, got 'gird'"),
        ("trainer.steps=many", "trainer.steps must be an integer, got 'many'"),
        ("trainer.steps=1.0", "trainer.steps must be an integer, got '1.0'"),
        ("trainer.steps=", "trainer.steps must be an integer, got ''"),
        ("trainer.lr=nan", "trainer.lr must be a finite number, got 'nan'"),
        ("trainer.lr=1e999", "trainer.lr must be a finite number, got '1e999'"),
        ("trainer.ema=yes", "trainer.ema must be true or false, got 'yes'"),
        ("trainer.optimizer=sgd", "trainer.optimizer must be one of adam, adamw, got 'sgd'"),
        (
            "cameras.distance=3",
            "cameras.distance must be a list of 2 ([a finite number, a finite number]), got '3'",
        ),
        ("cameras.distance=[1,x]", "cameras.distance[1] must be a finite number, got 'x'"),
        (
            "cameras.lens=wide",
            "cameras.lens must be a finite number or a list of 2 ([a finite number, a finite "
            "number]), got 'wide'",
        ),
        ("trainer=3", "trainer is a section: set its keys (trainer.steps=VALUE), not '3'"),
        ("seed.x=3", 'seed must be an integer, got {"x": "3"}'),
        ("output=", "output must be a path, got ''"),
        ("trainer.steps 3", "the override 'trainer.steps 3' must have the form KEY=VALUE"),
        ("=3", "the override '=3' must have the form KEY=VALUE"),
        ("trainer..steps=3", "the override 'trainer..steps=3' must have the form KEY=VALUE"),
        ("trainer.steps=-1", "trainer.steps must be positive, got -1"),
        ("trainer.lr=0", "trainer.lr must be positive, got 0.0"),
    ],
)
def test_refusals(override: str, message: str) -> None:
    assert refusal(override) == message


def test_missing_key() -> None:
    with pytest.raises(ConfigError, match=r"^missing required key corpus \(text\): set it in the preset"):
        load_config(Run)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "preset.yaml is empty"),
        ("# only a comment\n", "preset.yaml is empty"),
        ("- a\n", "preset.yaml holds no settings"),
        ("corpus: c\ntrainer: {steps: 3\n", "preset.yaml, line 3: not valid YAML"),
        ("corpus: c\n\tseed: 1\n", "preset.yaml, line 2: not valid YAML"),
        ("corpus: c\nseed: 1\nseed: 2\n", "preset.yaml, line 3: the key seed appears twice"),
        ("corpus: c\ntrainer:\n  stps: 3\n", "preset.yaml; did you mean trainer.steps?"),
        ("corpus: c\ncameras: {views: &a [*a]}\n", "an alias contains itself"),
        ("corpus: \0\n", "not valid YAML"),
        ("corpus: c\ntrainer: {steps: '3'}\n", "trainer.steps must be an integer, got '3'"),
        ("base: none.yaml\n", "there is no preset"),
        ("base: [a, b]\n", "base must be one file's path"),
        ("corpus: !!python/object/apply:os.system [true]\n", "corpus must be text"),
    ],
)
def test_bad_files(text: str, message: str, tmp_path: Path) -> None:
    assert message in refusal(path=write(tmp_path, text))


def test_unreadable_files(tmp_path: Path) -> None:
    write(tmp_path, "corpus: c", "quickstart.yaml")
    assert refusal(path=tmp_path / "quikstart.yaml").endswith(f"did you mean {tmp_path / 'quickstart.yaml'}?")
    assert "not a regular file" in refusal(path=tmp_path)
    (tmp_path / "latin.yaml").write_bytes(b"corpus: W\xfcrfel")
    assert "not UTF-8" in refusal(path=tmp_path / "latin.yaml")


def test_bases_in_a_circle(tmp_path: Path) -> None:
    write(tmp_path, "base: b.yaml\n", "a.yaml")
    path = write(tmp_path, "base: a.yaml\n", "b.yaml")
    assert "form a cycle" in refusal(path=path)
