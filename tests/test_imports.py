"""The imports between rooms, the cost of an import, and constructs that no file may contain."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import time
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.draw_rooms import PICTURE, draw
from tests.rooms import (
    CORPORA,
    GENERATORS,
    GROUND,
    PACKAGES,
    RECIPES,
    ROOMS,
    ROOT,
    import_graph,
    imports,
    inside,
    module_name,
    sources,
    tree,
)

CUDA_ONLY = ("tinycudann", "triton", "nerfacc", "gsplat", "nvdiffrast", "deepspeed", "xformers", "flash_attn")
# Modules that only their user imports, once it knows that their package is there.
ON_DEMAND = {"amortized.encodings.triton_grid", "amortized.parallel.zero"}
HEAVY = ("diffusers", "transformers", "open_clip", "torchvision", "tensorboard")


def allowed(module: str) -> tuple[str, ...]:
    """Prefixes of our own modules that `module` may import."""
    if module.startswith("amortized"):
        if inside(module, GROUND) or module == "amortized":
            return tuple(GROUND)
        room = ".".join(module.split(".")[:2])
        assert room in ROOMS, f"{room} is a new room: state in tests/rooms.py what it may import"
        return (room, *GROUND, *ROOMS[room])
    if module == "corpora.__main__":  # a command composes, as train.py does
        return ("corpora", "amortized")
    package = ".".join(module.split(".")[:2])
    if module.startswith("generators"):
        return ("generators", *GENERATORS)
    return ("corpora", package, *(RECIPES if ".recipe" in module else CORPORA))


def test_the_reader_of_imports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.rooms.ROOT", tmp_path)
    room = tmp_path / "amortized" / "room"
    room.mkdir(parents=True)
    (room / "b.py").touch()
    (room / "a.py").write_text(
        "import os, generators.x as g\nfrom . import b\nfrom ..types import T\nfrom amortized.room import b\n"
        "def f():\n    from amortized import room\n    from amortized.room.b import name\n"
    )
    assert [name for _, name in imports(room / "a.py")] == [
        "os",
        "generators.x",
        "amortized.room.b",
        "amortized.types",
        "amortized.room.b",
        "amortized.room",
        "amortized.room.b",
    ]


def test_rooms_are_in_order() -> None:
    """A room may import only rooms above it in the table, so there are no cycles."""
    above = {"generators", "corpora"}
    for room, may_import in ROOMS.items():
        assert set(may_import) <= above, room
        above.add(room)


def test_the_graph_of_rooms_has_no_cycle() -> None:
    """The same, from the imports themselves, generators and corpora included."""
    graph = {room: set(imported) for room, imported in import_graph().items()}
    while leaves := {room for room, imported in graph.items() if not imported & graph.keys()}:
        graph = {room: imported for room, imported in graph.items() if room not in leaves}
    assert not graph, f"these rooms import each other: {graph}"
    assert len(import_graph()) > 15


def test_every_permission_is_used() -> None:
    """The table lists no import that the code does not have."""
    graph = import_graph()
    unused = {room: set(may) - graph[room] for room, may in ROOMS.items() if set(may) - graph[room]}
    assert not unused


def test_no_file_is_too_long() -> None:
    files = sources(*PACKAGES, "benchmarks")
    lengths = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in files}
    assert not {name: length for name, length in lengths.items() if length > 350}
    assert max(lengths["train.py"], lengths["evaluate.py"]) <= 110


@pytest.mark.parametrize("package", PACKAGES)
def test_rooms(package: str) -> None:
    wrong = [
        f"{path.relative_to(ROOT)}:{line} imports {imported}"
        for path in sorted((ROOT / package).rglob("*.py"))
        for line, imported in imports(path)
        if imported.split(".")[0] in (*PACKAGES, "train", "evaluate", "tests", "benchmarks")
        and imported != "amortized"
        and not inside(imported, allowed(module_name(path)))
    ]
    assert not wrong, "\n".join(wrong)


def test_optional_extensions_are_imported_inside_functions() -> None:
    """At module level neither what needs a GPU build nor what takes seconds to import."""
    wrong = []
    for path in sources("amortized", "generators"):
        if module_name(path) in ON_DEMAND:
            continue
        for node in ast.walk(ast.Module([n for n in tree(path).body if not _is_lazy(n)], [])):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            wrong += [f"{path}: {n}" for n in names if n.split(".")[0] in (*CUDA_ONLY, *HEAVY)]
    assert not wrong, "\n".join(wrong)


def _is_lazy(node: ast.stmt) -> bool:
    checking = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
    return checking or isinstance(node, (ast.FunctionDef, ast.ClassDef, ast.AsyncFunctionDef))


IMPORT_EVERYTHING = """
import importlib, socket, sys

def refuse(*args, **kwargs):
    raise AssertionError(f"an import reached for the network: {args[1:]}")

for name in ("connect", "connect_ex", "sendto"):
    setattr(socket.socket, name, refuse)
socket.getaddrinfo = refuse
for name in sys.argv[2:]:
    importlib.import_module(name)
loaded = {name.split(".")[0] for name in sys.modules}
print("LOADED", *sorted(loaded & set(sys.argv[1].split(","))))
import torch
assert not torch.cuda.is_initialized(), "an import initialized CUDA"
"""


def test_importing_every_module_needs_no_cuda_build_and_no_network() -> None:
    modules = [
        module_name(path)
        for package in ("amortized", "generators")
        for path in sorted((ROOT / package).rglob("*.py"))
        if path.stem != "__main__"
    ]
    assert ON_DEMAND <= set(modules)
    modules = [name for name in modules if name not in ON_DEMAND]
    names = ",".join((*CUDA_ONLY, *HEAVY))
    command = [sys.executable, "-c", IMPORT_EVERYTHING, names, *modules]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.splitlines()[-1].split() == ["LOADED"], done.stdout


WITHOUT_UNIX = """
import importlib, signal, sys
for name in ("fcntl", "resource", "termios", "pwd", "grp"):
    sys.modules[name] = None
import torch  # on Windows it has other files; here it needs the signals
for name in ("SIGUSR1", "SIGHUP"):
    delattr(signal, name)
for name in sys.argv[1:]:
    importlib.import_module(name)
from amortized.training.signals import catch_signals
with catch_signals(print, launched=False) as stop:
    assert not stop()
"""


def test_importing_needs_no_module_that_windows_lacks() -> None:
    modules = [module_name(path) for path in sources("amortized", "generators", "corpora")]
    modules = [name for name in modules if name not in ON_DEMAND and not name.endswith("__main__")]
    command = [sys.executable, "-c", WITHOUT_UNIX, *modules]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]


def test_import_amortized_is_quick() -> None:
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", "import amortized"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert time.perf_counter() - start < 3.0
    assert "diffusers" not in done.stderr


FORBIDDEN = {
    "a wildcard import": lambda node: isinstance(node, ast.ImportFrom) and node.names[0].name == "*",
    "a bare except": lambda node: isinstance(node, ast.ExceptHandler) and node.type is None,
    "weights_only=False": lambda node: (
        isinstance(node, ast.keyword)
        and node.arg == "weights_only"
        and not (isinstance(node.value, ast.Constant) and node.value.value is True)
    ),
    "torch.load without weights_only=True": lambda node: (
        isinstance(node, ast.Call)
        and ast.unparse(node.func) == "torch.load"
        and "weights_only" not in [k.arg for k in node.keywords]
    ),
    "pickle": lambda node: (
        (isinstance(node, ast.Import) and "pickle" in [a.name for a in node.names])
        or (isinstance(node, ast.ImportFrom) and node.module == "pickle")
    ),
    "allow_pickle": lambda node: (
        isinstance(node, ast.keyword)
        and node.arg == "allow_pickle"
        and not (isinstance(node.value, ast.Constant) and node.value.value is False)
    ),
    "eval, exec or os.system": lambda node: (
        isinstance(node, ast.Call) and ast.unparse(node.func) in ("eval", "exec", "os.system")
    ),
    "yaml.load": lambda node: (
        isinstance(node, ast.Call)
        and ast.unparse(node.func) in ("yaml.load", "yaml.unsafe_load", "yaml.full_load")
    ),
}


@pytest.mark.parametrize("what", FORBIDDEN)
def test_no_file_contains(what: str) -> None:
    found = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in sources(*PACKAGES, "benchmarks", "tests")
        for node in ast.walk(tree(path))
        if FORBIDDEN[what](node)
    ]
    assert not found, f"{what} in {', '.join(found)}"


@pytest.mark.parametrize(
    ("what", "code"),
    [
        ("a wildcard import", "from os import *"),
        ("a bare except", "try: pass\nexcept: pass"),
        ("weights_only=False", "load(f, weights_only=flag)"),
        ("torch.load without weights_only=True", "torch.load(f)"),
        ("pickle", "import pickle"),
        ("allow_pickle", "np.load(f, allow_pickle=True)"),
        ("eval, exec or os.system", "os.system('true')"),
        ("yaml.load", "yaml.load(text)"),
    ],
)
def test_what_is_forbidden_is_found(what: str, code: str) -> None:
    assert any(FORBIDDEN[what](node) for node in ast.walk(ast.parse(code)))
    assert not any(
        rule(node)
        for rule in FORBIDDEN.values()
        for node in ast.walk(
            ast.parse("import os\ntry: torch.load(f, weights_only=True)\nexcept ValueError: pass")
        )
    )


def named(path: Path) -> Iterator[int]:
    """Lines that name the embedded world: in code any `shapes`, in prose only what cannot be a tensor's."""
    start_of_statement = True
    with tokenize.open(path) as file:
        for token in tokenize.generate_tokens(file.readline):
            prose = token.type == tokenize.COMMENT or (token.type == tokenize.STRING and start_of_statement)
            if re.search(r"shapes[-_0-9]|Shapes|corpora.shapes" if prose else r"(?i)shapes", token.string):
                yield token.start[0]
            if token.type not in (tokenize.COMMENT, tokenize.NL):
                start_of_statement = token.type in (tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT)


def test_only_the_corpus_knows_its_name() -> None:
    """The embedded world is one corpus among others: no code elsewhere has a case for it."""
    files = sources("amortized", "generators")
    found = [f"{path.relative_to(ROOT)}:{line}" for path in files for line in named(path)]
    assert not found, f"the word of corpora/shapes in {', '.join(found)}"


def test_its_name_is_found(tmp_path: Path) -> None:
    path = tmp_path / "module.py"
    path.write_text(
        '"""Shapes of tensors."""\nx = 1  # broadcasts shapes\ny = "shapes16"\n\n'
        'def f():\n    """The sizes and shapes."""\n    return open_shapes(x)  # shapes16\n'
    )
    assert list(named(path)) == [1, 3, 7, 7]


def test_the_picture_of_the_rooms_is_current() -> None:
    """Redraw it after moving code: python -m tests.draw_rooms."""
    assert PICTURE.read_text(encoding="utf-8") == draw()
