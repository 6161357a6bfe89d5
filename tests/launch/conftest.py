"""The stub programs as a fixture."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.launch.stubs import StubFolder


@pytest.fixture
def stubs(tmp_path: Path) -> StubFolder:
    return StubFolder(tmp_path)
