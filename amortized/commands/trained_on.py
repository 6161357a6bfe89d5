"""What a run was trained on, from its corpus: for its export, and for a service."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from amortized.knowledge import Knowledge


def knowledge_of_run(run: Path) -> Knowledge | None:
    """What a run's generator knows; None if its corpus cannot be opened, or is another one by now."""
    from amortized.checkpointing import check_corpus
    from amortized.commands.compose import load_corpus, load_stored_config
    from amortized.knowledge import knowledge_of

    try:
        config = load_stored_config(run)
        corpus = load_corpus(config)
        check_corpus(run, corpus)
        return knowledge_of(corpus)
    except (ValueError, OSError):
        return None
