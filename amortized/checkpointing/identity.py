"""What a run is: an id, its defining settings, and a digest of the corpus that it trains on.

    RUN/run.json

The id is drawn at a run's first start and stays with its folder. A copy of the file lies beside uploaded
checkpoints, so that no run takes, replaces or removes those of another one.
"""

from __future__ import annotations

import hashlib
import json
import re
import secrets
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from amortized.checkpointing.settings import defining_settings, differing, listed
from amortized.files import atomic_write_text
from amortized.types import Corpus
from amortized.untrusted import MiB, read_json_object, short

FILE = "run.json"
FORMAT = 1
LIMIT = MiB


@dataclass(frozen=True, kw_only=True)
class RunIdentity:
    """The identity of a run."""

    id: str  # 16 hexadecimal digits, random
    corpus: str = ""  # see `corpus_digest`; empty: unknown
    settings: Mapping[str, Any]  # the settings that define the run, by dotted key


def new_identity(config_yaml: str = "{}", corpus: str = "") -> RunIdentity:
    """The identity of a run that starts now."""
    return RunIdentity(id=secrets.token_hex(8), corpus=corpus, settings=defining_settings(config_yaml))


def load_identity(run: Path) -> RunIdentity | None:
    """The identity in a run's folder; None without one, as before this release. Raises ValueError."""
    path = run / FILE
    if not path.exists() and not path.is_symlink():
        return None
    try:
        return identity_from(read_json_object(path, LIMIT))
    except ValueError as error:
        raise ValueError(
            f"{short(path)} is damaged ({error}): restore it, or remove it to give the run a new identity"
        ) from error


def save_identity(run: Path, identity: RunIdentity) -> None:
    """Write the identity into a run's folder."""
    atomic_write_text(run / FILE, identity_text(identity))


def identity_text(identity: RunIdentity) -> str:
    """The contents of run.json."""
    return json.dumps({"format": FORMAT, **asdict(identity)}, indent=1, default=str) + "\n"


def identity_from(data: Mapping[str, Any]) -> RunIdentity:
    """The identity in the data of a run.json. Raises ValueError."""
    if data.get("format") != FORMAT:
        raise ValueError("another version of this program wrote it")
    id, corpus, settings = data.get("id"), data.get("corpus"), data.get("settings")
    if not isinstance(id, str) or not re.fullmatch("[0-9a-f]{16}", id):
        raise ValueError("it has no valid id")
    if not isinstance(corpus, str) or not re.fullmatch("([0-9a-f]{32})?", corpus):
        raise ValueError("it has no valid digest of the corpus")
    if not isinstance(settings, dict):
        raise ValueError("it has no settings")
    return RunIdentity(id=id, corpus=corpus, settings=settings)


def difference(one: RunIdentity, other: RunIdentity) -> str | None:
    """What makes two runs differ, in a few words; None if they compute the same."""
    if changed := differing(one.settings, other.settings):
        return listed(list(changed.values()))
    if one.corpus and other.corpus and one.corpus != other.corpus:
        return "the prompts of the corpus or their splits differ"
    return None


# ---- the corpus -------------------------------------------------------------------------------


def corpus_digest(corpus: Corpus) -> str:
    """32 hexadecimal digits of all texts of a corpus, in order, with their splits and multiplicities."""
    digest = hashlib.sha256()
    for index in range(len(corpus)):
        prompt = corpus[index]
        text = prompt.text.encode("utf-8", "surrogatepass")
        digest.update(b"%d %s " % (len(text), prompt.split.encode()) + text)
    digest.update(b"trained")
    digest.update(np.asarray(corpus.trained, dtype="<i8").tobytes())
    if corpus.repeats is not None:
        digest.update(b"repeats")
        digest.update(np.fromiter(corpus.repeats, dtype="<i8").tobytes())
    return digest.hexdigest()[:32]


def check_corpus(run: Path, corpus: Corpus) -> None:
    """Raise ValueError if `corpus` is not the one that a run trained on, though its name is the same."""
    identity = load_identity(run)
    if identity is not None and identity.corpus and identity.corpus != corpus_digest(corpus):
        raise ValueError(
            f"the corpus {corpus.name} has other prompts or splits than those that {short(run)} trained on: "
            "restore its files, or accept the new ones by resuming the run with --resume changed"
        )
