"""What all tests share: repeatable, offline, and without a clock on hypothesis' examples."""

from __future__ import annotations

import os

from hypothesis import settings

# Before any test imports a hub client: a test that reaches for the network fails at once.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("DS_ACCELERATOR", "cpu")

settings.register_profile("suite", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("suite")
