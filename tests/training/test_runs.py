"""A run's folder, opened anew and again."""

from __future__ import annotations

import pytest

from amortized.training import World, open_run

CONFIG = "seed: 0\ntrainer:\n  steps: 5\n"


def test_how_processes_share_a_run_may_change_and_nothing_else(tmp_path):
    folder = tmp_path / "run"
    open_run(folder, CONFIG, World(), resume=False)
    with pytest.raises(ValueError, match="already holds a run: continue it with --resume"):
        open_run(folder, CONFIG, World(), resume=False)
    sharded = CONFIG + "distributed:\n  strategy: fsdp2\n"
    open_run(folder, sharded, World(), resume=True)
    assert (folder / "config.yaml").read_text() == sharded
    with pytest.raises(ValueError, match="other settings .was 'steps: 5', now 'steps: 6'.: give the same"):
        open_run(folder, sharded.replace("5", "6"), World(), resume=True)
    assert (folder / "config.yaml").read_text() == sharded
