"""The prose of the code is plain English: no word is used in a sense that readers must decode."""

from __future__ import annotations

import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.rooms import ROOT

# Words in the sense that is retired. A pattern that also matches good uses names the bad ones more closely.
RETIRED = {
    "told": r"\btold\b",
    "said": r"\bsaid\b|\bto be said\b",
    "asked": r"\b(?:is|was|are|were|be) asked\b|\basked (?:for|of|to|again|elsewhere)\b",
    "found": r"\bwhat (?:is|was) found\b|\bfound (?:again|there|of)\b",
    "kept": r"\b(?:is|are|was|were|be) kept\b(?! on)|\bwhat (?:is|was) kept\b",
    "seen": r"\bwhat (?:is|was) seen\b|\bis seen\b",
    "where for if": r"(?:\b(?:None|raise[sd]?|error|0|zero|nothing|Error)|,|^) where "
    r"(?:it|they|there|that|this|none|no|one|some|all|its|their|what|the|a|an)\b|^\W*Where\b",
    "of its own": r"\bof (?:its|their|his|her|one's) own\b",
    "go on": r"\b(?:goes|going|gone|went) on\b|\bgo on (?:from|with|in|as)\b",
    "mend": r"\bmend(?:s|ed|ing)?\b",
    "is to be": r"\b(?:is|are) to be\b",
    "Within,": r"(?:^|[.\"] )\W*Within,",
    "alike": r"\balike\b",
    "what as a noun": r"\b(?:of|with|for|to|from|in|by) what (?:is|was|the|it|they|a|an)\b",
    "is no X": r"\bis no (?:use|longer a|Exception|folder|run)\b",
    "archaic": r"\b(?:otherwise than|worth a word|hardly ever|anew|therein|whence|thus|whom|lest)\b",
    "British spelling": r"\b(?:colour|grey|centre|neighbour|behaviour|licen[c]e|catalogue|favour)\w*|"
    r"\b\w+(?:alis|inis|imis|aris|eris|oris|etris|enis)(?:e[sd]?|ing|ation)\b(?<!promise)(?<!raise)(?<!noise)",
}
PATTERNS = {name: re.compile(pattern, re.IGNORECASE | re.MULTILINE) for name, pattern in RETIRED.items()}
# Uses that stay, each with its reason.
ALLOWED = (
    r"random-grey",  # the old name of a setting's value
    r"background: \{kind: random-grey, colour",  # a key of older versions
    r"unnatural colours",  # a published negative prompt
    r"aria-labelledby",
    r"precis\w+|exercis\w+|compris\w+|otherwis\w+|promis\w+|surpris\w+|likewis\w+|advis\w+|revis\w+|analys\w+",
)
EXCEPTIONS = re.compile("|".join(ALLOWED), re.IGNORECASE)
COVERED = (
    "amortized",
    "benchmarks",
    "generators",
    "corpora",
    "tests",
    "configs",
    "docs",
    "train.py",
    "evaluate.py",
    "Makefile",
    "Dockerfile",
    "README.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
)
SUFFIXES = {".py", ".md", ".yaml", ".sbatch", ".sh"}
# Text that is data: the words of the Shapes world, and the retired words themselves.
DATA = {"corpora/shapes/grammar.py", "tests/test_language.py"}


def prose(path: Path) -> Iterator[tuple[int, str]]:
    """(line number, text) of comments, docstrings and messages; all lines of other files, without `code`."""
    text = path.read_text(encoding="utf-8")
    if path.suffix != ".py":
        yield from enumerate(re.sub(r"`[^`\n]*`", "`code`", text).splitlines(), 1)
        return
    strings = (tokenize.STRING, getattr(tokenize, "FSTRING_MIDDLE", tokenize.STRING))
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        is_text = token.type in strings and " " in token.string.strip()
        if token.type == tokenize.COMMENT or is_text:
            yield from enumerate(token.string.splitlines(), token.start[0])


def retired_uses(text: str) -> list[str]:
    """The names of the patterns that a line of prose matches outside the exceptions."""
    text = EXCEPTIONS.sub("", text)
    return [name for name, pattern in PATTERNS.items() if pattern.search(text)]


@pytest.mark.parametrize("name", COVERED)
def test_no_retired_words(name: str) -> None:
    root = ROOT / name
    files = [root] if root.is_file() else sorted(path for path in root.rglob("*") if path.suffix in SUFFIXES)
    uses = [
        f"{path.relative_to(ROOT)}:{line}: {', '.join(found)}: {text.strip()[:100]}"
        for path in files
        if str(path.relative_to(ROOT)) not in DATA
        for line, text in prose(path)
        if (found := retired_uses(text))
    ]
    assert files and not uses, f"{len(uses)} uses:\n" + "\n".join(uses)


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("The loss, None where there is none.", ["where for if"]),
        ("What is asked of an asset, told once", ["told", "asked"]),
        ("Within, the adapter is off.", ["Within,"]),
        ("The run goes on with it", ["go on"]),
        ("Initialise the colour of what is rendered", ["what as a noun", "British spelling"]),
        ("w(t) * (target - reference), where e_y is the prediction", []),
        ("the folder where checkpoints are; not found; prompts seen; raise the noise", []),
    ],
)
def test_retired_words_are_detected(text: str, names: list[str]) -> None:
    assert retired_uses(text) == names
