"""Values that travel between devices and processes."""

from __future__ import annotations

import pytest

from amortized.parallel import StoppedTogether, World


def test_what_one_process_meets_stops_it():
    def fail() -> None:
        raise OSError(28, "No space left on device", "text/shards/000001.tar")

    World().run_on_all(lambda: None)
    with pytest.raises(StoppedTogether, match="No space left on device: 'text/shards/000001.tar'"):
        World().run_on_all(fail)
