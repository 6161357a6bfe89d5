"""Counted nouns, times, and commands that can be pasted into a shell."""

from __future__ import annotations

import ast
import re
import shlex

import pytest
from hypothesis import given
from hypothesis import strategies as st

from amortized.wording import command, count, duration
from tests.rooms import ROOT, sources, tree


@pytest.mark.parametrize(
    ("number", "noun", "plural", "text"),
    [
        (0, "prompt", None, "0 prompts"),
        (1, "prompt", None, "1 prompt"),
        (1200, "prompt", None, "1,200 prompts"),
        (1, "process", "processes", "1 process"),
        (2, "process", "processes", "2 processes"),
    ],
)
def test_count(number: int, noun: str, plural: str | None, text: str) -> None:
    assert count(number, noun, plural) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.354, "0.35 s"),
        (9.96, "10 s"),
        (59.9, "59 s"),
        (60, "1 min"),
        (125, "2 min 5 s"),
        (7500, "2 h 5 min"),
    ]
    + [(86400, "1 day"), (86400 * 3 + 3600 * 4.4, "3 days 4 h"), (3599.9, "1 h"), (86399, "1 day")],
)
def test_durations_read_naturally(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@given(st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\0")), max_size=4))
def test_a_shell_reads_a_printed_command_as_it_was(words: list[str]) -> None:
    assert shlex.split(command(*words)) == ["amortized", *words]


def messages() -> list[tuple[str, str]]:
    """(place, text) of every string in the code that is not a docstring."""
    found = []
    for path in sources("amortized", "corpora", "generators"):
        docs = {id(node.value) for node in ast.walk(tree(path)) if isinstance(node, ast.Expr)}
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docs:
                found.append((f"{path.relative_to(ROOT)}:{node.lineno}", node.value))
    return found


def test_hints_name_the_amortized_command() -> None:
    """One way everywhere, which works in every folder; a script needs the right folder and interpreter."""
    wrong = [
        f"{place}: {text}"
        for place, text in messages()
        if re.search(
            r"python (?:train|evaluate)\.py|python -m (?:amortized|corpora)(?!\.shapes)[\w.]* \S", text
        )
    ]
    assert not wrong, "\n".join(wrong)
