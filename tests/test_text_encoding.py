"""All text is UTF-8 whatever the locale: every file and process that is opened as text names its encoding."""

from __future__ import annotations

import ast
from collections.abc import Iterator

import pytest

from tests.rooms import PACKAGES, ROOT, sources, tree

PROCESSES = ("run", "Popen", "check_output", "check_call")


def in_the_locale(node: ast.AST) -> Iterator[int]:
    """Lines of a syntax tree at which text is read or written in the encoding of the locale."""
    for call in (node for node in ast.walk(node) if isinstance(node, ast.Call)):
        function = call.func
        owner = ast.unparse(function.value) if isinstance(function, ast.Attribute) else ""
        name = function.attr if isinstance(function, ast.Attribute) else ast.unparse(function)
        keywords = {keyword.arg for keyword in call.keywords}
        constants = [a.value for a in (*call.args, *(k.value for k in call.keywords if k.arg == "mode"))
                     if isinstance(a, ast.Constant) and isinstance(a.value, str)]  # fmt: skip
        binary = any("b" in mode and len(mode) <= 3 for mode in constants)
        is_file = not (name == "open" and owner in ("os", "av", "tarfile", "tokenize", "Image"))
        is_text_file = (
            (name in ("read_text", "write_text") and owner != "untrusted")
            or (name == "open" and is_file and not binary)
            or (name in PROCESSES and "text" in keywords)
            or (name in ("TextIOWrapper", "NamedTemporaryFile") and not binary)
        )
        # `read_text(path)`, without an object, is that of amortized.untrusted, which reads UTF-8.
        if is_text_file and "encoding" not in keywords and not (name == "read_text" and not owner):
            yield call.lineno


def test_every_text_file_names_its_encoding() -> None:
    wrong = [
        f"{path.relative_to(ROOT)}:{line}"
        for path in sources(*PACKAGES, "benchmarks")
        for line in in_the_locale(tree(path))
    ]
    assert not wrong, f"add encoding='utf-8' in {', '.join(wrong)}"


@pytest.mark.parametrize(
    ("code", "wrong"),
    [
        ("path.read_text()", True),
        ("path.read_text(errors='replace')", True),
        ("path.read_text(encoding='utf-8')", False),
        ("path.write_text('x')", True),
        ("open(path)", True),
        ("path.open('a')", True),
        ("path.open('rb')", False),
        ("open(path, mode='wb')", False),
        ("os.open(path, os.O_RDONLY)", False),
        ("subprocess.run(command, text=True)", True),
        ("subprocess.run(command)", False),
        ("read_text(path)", False),
    ],
)
def test_the_check(code: str, wrong: bool) -> None:
    assert bool(list(in_the_locale(ast.parse(code)))) == wrong
