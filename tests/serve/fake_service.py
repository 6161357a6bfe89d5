"""A service with the fake engine, as a process: python -m tests.serve.fake_service STORE SECONDS GRACE."""

from __future__ import annotations

import sys
from pathlib import Path

from amortized.serve.app import Settings
from amortized.serve.logs import logging_to_stderr
from amortized.serve.server import Engines, ServiceConfig, run
from tests.serve.fakes import FakeEngine, fake_maker


def main() -> None:
    store, seconds, grace_s = sys.argv[1:4]
    config = ServiceConfig(
        store=Path(store), port=0, grace_s=float(grace_s), requests=Settings(body_s=0.5), asset_limit_s=20
    )
    engine = FakeEngine(seconds=float(seconds))
    with logging_to_stderr():
        left = run(
            config,
            Engines(engines=[("fake", engine, 4)], maker=fake_maker),
            lambda address: print(address, flush=True),
        )
    print(len(engine.calls), left, flush=True)


if __name__ == "__main__":
    main()
