"""A training as data: what a service may accept from a client. Never a path, a command or a URL.

    {"preset": "quickstart", "corpus": "at2520", "prior": null, "overrides": {"trainer.steps": 300}}

Presets, corpora and priors are names in a `Catalog` of the server; overrides are a closed list of settings,
each with its type and range. `arguments` are those of train.py.
"""

from __future__ import annotations

import hashlib
import json
import math
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from amortized.cli import PRESETS, preset_paths
from amortized.files import PROJECT, check_text
from amortized.untrusted import short

T = TypeVar("T")
MAX_PROMPT = 400  # characters
METHODS = ("asd", "sds", "csd", "vsd", "ism", "sdi", "dsd", "lods-embedding", "lods-lora")


@dataclass(frozen=True)
class Whole:
    """An integer in a range, both ends included."""

    low: int
    high: int

    def read(self, value: Any) -> int:
        if type(value) is not int or not self.low <= value <= self.high:
            raise ValueError(f"must be an integer from {self.low:,} to {self.high:,}")
        return value


@dataclass(frozen=True)
class Number:
    """A number in a range, both ends included."""

    low: float
    high: float

    def read(self, value: Any) -> float:
        valid = type(value) in (int, float) and self.low <= value <= self.high and math.isfinite(value)
        if not valid:
            raise ValueError(f"must be a number from {self.low:g} to {self.high:g}")
        return value


@dataclass(frozen=True)
class Choice:
    """One of a few names."""

    names: tuple[str, ...]

    def read(self, value: Any) -> str:
        if not isinstance(value, str) or value not in self.names:
            raise ValueError(f"must be one of {', '.join(self.names)}")
        return value


@dataclass(frozen=True)
class Text:
    """A sentence."""

    limit: int

    def read(self, value: Any) -> str:
        if not isinstance(value, str) or len(value) > 4 * self.limit:
            raise ValueError(f"must be a text of at most {self.limit} characters")
        text = unicodedata.normalize("NFC", value).strip()
        check_text(text)
        if not 0 < len(text) <= self.limit:
            raise ValueError(f"must be a text of 1 to {self.limit} characters")
        if any(unicodedata.category(one) in ("Cc", "Cs", "Zl", "Zp") for one in text):
            raise ValueError("must not have line breaks or other control characters")
        if text in ("null", "~"):
            raise ValueError("must be a sentence")  # as a setting it would mean: no prompt
        return text


OVERRIDES: Mapping[str, Whole | Number | Choice | Text] = {
    "prompt": Text(MAX_PROMPT),
    "seed": Whole(0, 2**31 - 1),
    "held_out": Number(0.01, 0.9),
    "trainer.steps": Whole(1, 1_000_000),
    "trainer.prompts_per_process": Whole(1, 64),
    "trainer.views_per_prompt": Whole(1, 16),
    "trainer.render_size": Whole(16, 512),
    "guidance.method": Choice(METHODS),
    "optimizer.learning_rate": Number(1e-7, 1.0),
    "optimizer.encoding_learning_rate": Number(1e-7, 1.0),
    "checkpointing.every": Whole(1, 1_000_000),
    "monitoring.preview_every": Whole(1, 1_000_000),
}


@dataclass(frozen=True, kw_only=True)
class Catalog:
    """What a server lets clients train with: names, and what each stands for here."""

    presets: Mapping[str, str]  # to the path of the preset
    corpora: Mapping[str, str]  # to the value of `corpus`
    priors: Mapping[str, str]  # to the value of `prior`


@dataclass(frozen=True, kw_only=True)
class TrainingRequest:
    """A valid request. Made by `read_request`."""

    preset: str
    overrides: Mapping[str, int | float | str] = field(default_factory=dict)
    corpus: str | None = None  # null: that of the preset
    prior: str | None = None

    @property
    def id(self) -> str:
        """32 hexadecimal digits: equal requests have equal ids."""
        data = [self.preset, sorted(self.overrides.items()), self.corpus, self.prior]
        return hashlib.sha256(json.dumps(data).encode()).hexdigest()[:32]

    def arguments(self, catalog: Catalog, outputs: Path) -> list[str]:
        """The arguments of train.py: the preset, then KEY=VALUE. The run's folder is `outputs`/ID."""
        values = dict(self.overrides)
        if self.corpus is not None:
            values["corpus"] = catalog.corpora[self.corpus]
        if self.prior is not None:
            values["prior"] = catalog.priors[self.prior]
        values["output"] = str(outputs / self.id)
        return [catalog.presets[self.preset], *(f"{key}={value}" for key, value in values.items())]

    def config(self, catalog: Catalog, outputs: Path, load: Callable[[str, Sequence[str]], T]) -> T:
        """The validated config; `load` is that of the run's config. Raises ValueError."""
        preset, *overrides = self.arguments(catalog, outputs)
        return load(preset, overrides)


def read_request(data: Any, catalog: Catalog) -> TrainingRequest:
    """The request in decoded JSON. Raises ValueError for anything that is not on the closed lists."""
    if not isinstance(data, dict):
        raise ValueError("the request must be an object")
    known = ("preset", "overrides", "corpus", "prior")
    if unknown := [key for key in data if key not in known]:
        raise ValueError(f"unknown key {short(str(unknown[0])[:80])}: a request has {', '.join(known)}")
    overrides = {} if data.get("overrides") is None else data["overrides"]
    if not isinstance(overrides, dict):
        raise ValueError("overrides must be an object")
    values = {}
    for key, value in overrides.items():
        if key not in OVERRIDES:
            raise ValueError(f"overrides has {short(str(key)[:80])}, and may have {', '.join(OVERRIDES)}")
        try:
            values[key] = OVERRIDES[key].read(value)
        except ValueError as error:
            raise ValueError(f"{key} {error}") from None
    return TrainingRequest(
        preset=_name("preset", data.get("preset"), catalog.presets),
        overrides=values,
        corpus=_optional("corpus", data.get("corpus"), catalog.corpora),
        prior=_optional("prior", data.get("prior"), catalog.priors),
    )


def _name(key: str, value: Any, allowed: Mapping[str, str]) -> str:
    if not isinstance(value, str) or value not in allowed:
        raise ValueError(f"{key} must be one of {', '.join(sorted(allowed))}")
    return value


def _optional(key: str, value: Any, allowed: Mapping[str, str]) -> str | None:
    return None if value is None else _name(key, value, allowed)


def embedded_catalog(corpora: Iterable[str]) -> Catalog:
    """The presets of configs/, the models of checkpoints/ that are priors, and `corpora` by their names."""
    presets = {path.relative_to(PRESETS).with_suffix("").as_posix(): str(path) for path in preset_paths()}
    indexes = sorted((PROJECT / "checkpoints").glob("*/model_index.json"))
    multi_view = sorted((PROJECT / "checkpoints").glob("*/multi_view.json"))
    priors = {path.parent.name: str(path.parent) for path in [*indexes, *multi_view]}
    return Catalog(presets=presets, corpora={name: name for name in corpora}, priors=priors)
