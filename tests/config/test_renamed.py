"""Keys and values of older versions: they work, with one warning."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal

import pytest

from amortized.config import config_to_dict, load_config
from amortized.config.renamed import rename_keys
from tests.config.settings import Trainer, write


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
    path = write(tmp_path, "loop: {steps: 7}\nrate: 0.5")
    config = load_config(Renamed, path)
    assert config.trainer == Trainer(steps=7, lr=0.5)
    assert [record.getMessage() for record in caplog.records] == [
        "please rename these settings: loop is now trainer, rate is now trainer.lr",
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
    value = {"trainer.log=often": "monitor.every=1"}
    assert rename_keys({"trainer": {"log": "often"}}, value)[0] == {"trainer": {}, "monitor": {"every": "1"}}
    assert rename_keys({"trainer": {"log": 5}}, value) == ({"trainer": {"log": 5}}, [])
    misplaced = {"rate": 0.5, "trainer": 3}  # reading reports that trainer is a section
    assert rename_keys(misplaced, Renamed.renamed)[0]["trainer"] == 3
