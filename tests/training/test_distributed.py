"""Values that travel between devices and processes."""

from __future__ import annotations

import pytest

from amortized.training.distributed import StoppedTogether, World, join_world


def test_what_one_process_meets_stops_it():
    def fail() -> None:
        raise OSError(28, "No space left on device", "text/shards/000001.tar")

    World().together(lambda: None)
    with pytest.raises(StoppedTogether, match="No space left on device: 'text/shards/000001.tar'"):
        World().together(fail)


def test_an_unknown_device_is_one_sentence():
    with pytest.raises(ValueError, match="device must be auto, cpu or cuda, got 'gpu0'"), join_world("gpu0"):
        pass
