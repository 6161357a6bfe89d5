"""What a generator was trained on: its corpus, the words in it, and a bounded list of its prompts.

An exported folder has it as prompts.json, so that a service can show it without the corpus.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from amortized.untrusted import MiB, read_json_object, short

if TYPE_CHECKING:
    from amortized.types import Corpus

PROMPTS = "prompts.json"
MAX_PROMPTS = 2_000  # that are listed
MAX_WORDS = 20_000
MAX_CHARACTERS = 400  # of a listed prompt
MAX_READ = 200_000  # prompts from which the words are taken
LIMIT = 8 * MiB  # of the file


@dataclass(frozen=True, kw_only=True)
class Knowledge:
    """What a generator was trained on."""

    corpus: str  # its name, or that of its file
    number: int  # of its training prompts
    prompts: tuple[str, ...]  # of these, at most MAX_PROMPTS, evenly spaced
    words: tuple[str, ...]  # lower-case, the most frequent first


def knowledge_of(corpus: Corpus) -> Knowledge:
    """What a generator knows that was trained on a corpus."""
    trained = corpus.trained
    listed = [corpus[trained[i]].text for i in _evenly(len(trained), MAX_PROMPTS)]
    words = Counter[str]()
    for i in _evenly(len(trained), MAX_READ):
        words.update(words_of(corpus[trained[i]].text))
    return Knowledge(
        corpus=Path(corpus.name).name,  # a path would say where the files of its owner are
        number=len(trained),
        prompts=tuple(text for text in listed if len(text) <= MAX_CHARACTERS),
        words=tuple(word for word, _ in words.most_common(MAX_WORDS)),
    )


def words_of(text: str) -> list[str]:
    """The words of a text in lower case, without punctuation."""
    return re.findall(r"[^\W_]+(?:['\u2019][^\W_]+)*", text.casefold())


def to_json(knowledge: Knowledge) -> dict[str, Any]:
    """The contents of prompts.json."""
    return asdict(knowledge)


def read_knowledge(folder: Path) -> Knowledge | None:
    """What prompts.json of an exported folder says; None if there is none. Raises ValueError."""
    path = folder / PROMPTS
    if not path.exists():
        return None
    data = read_json_object(path, LIMIT)
    texts = {key: data.get(key) for key in ("prompts", "words")}
    number, corpus = data.get("number"), data.get("corpus")
    for key, most in (("prompts", MAX_PROMPTS), ("words", MAX_WORDS)):
        value = texts[key]
        if (
            not isinstance(value, list)
            or len(value) > most
            or not all(isinstance(text, str) and 0 < len(text) <= MAX_CHARACTERS for text in value)
        ):
            raise ValueError(
                f"{short(path)}: {key} must be at most {most:,} texts of 1 to {MAX_CHARACTERS} characters"
            )
    if type(number) is not int or number < 0 or not isinstance(corpus, str) or len(corpus) > MAX_CHARACTERS:
        raise ValueError(f"{short(path)}: it needs corpus, a name, and number, of prompts")
    return Knowledge(
        corpus=corpus, number=number, prompts=tuple(texts["prompts"] or ()), words=tuple(texts["words"] or ())
    )


def _evenly(number: int, most: int) -> list[int]:
    """At most `most` of the numbers from 0 to `number` - 1, evenly spaced."""
    return [i * number // most for i in range(most)] if number > most else list(range(number))
