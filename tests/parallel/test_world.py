"""Actions that run on all ranks."""

from __future__ import annotations

import pytest

from amortized.parallel import StoppedTogether, World


def test_a_failed_action_stops_its_process_in_one_sentence():
    def fail() -> None:
        raise OSError(28, "No space left on device", "text/shards/000001.tar")

    World().run_on_all(lambda: None)
    with pytest.raises(StoppedTogether, match="No space left on device: 'text/shards/000001.tar'"):
        World().run_on_all(fail)
