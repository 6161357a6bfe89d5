"""The rooms of the code: which may import which, and the imports that there are."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("amortized", "generators", "corpora")
SCRIPTS = ("train.py", "evaluate.py")

# The ground: modules directly in amortized/ (values, cameras, randomness, files), the configs, and the
# readers of model folders. They import each other only. The command line stands above all rooms instead.
GROUND = {f"amortized.{path.stem}" for path in (ROOT / "amortized").glob("*.py")}
GROUND -= {"amortized.__init__", "amortized.cli", "amortized.doctor"}
GROUND |= {"amortized.config", "amortized.model_folders"}
# The rooms that a room may import besides the ground. It sees only rooms above it in this table, so there
# are no cycles. `amortized` never imports `generators` and `corpora`, which are handed to it, except in the
# two rooms that compose: `generation` (a trained generator) and `commands` (everything).
ROOMS = {
    "amortized.pages": (),
    "amortized.encodings": (),
    "amortized.conditioning": (),
    "amortized.priors": ("amortized.conditioning",),
    "amortized.guidance": ("amortized.conditioning", "amortized.priors"),
    "amortized.splats": (),
    "amortized.rendering": ("amortized.splats",),
    "amortized.starts": ("amortized.encodings", "amortized.splats", "amortized.rendering"),
    "amortized.assets": ("amortized.splats",),
    "amortized.evaluation": (
        "amortized.pages",
        "amortized.splats",
        "amortized.rendering",
        "amortized.assets",
    ),
    "amortized.gallery": ("amortized.pages",),
    "amortized.comparison": ("amortized.pages", "amortized.evaluation"),
    "amortized.parallel": ("amortized.guidance",),
    "amortized.checkpointing": ("amortized.parallel",),
    "amortized.monitoring": ("amortized.pages", "amortized.parallel"),
    "amortized.generation": (
        "amortized.conditioning",
        "amortized.splats",
        "amortized.rendering",
        "amortized.checkpointing",
        "generators",
    ),
    "amortized.serve": ("amortized.pages", "amortized.assets", "amortized.generation"),
    "amortized.training": (
        "amortized.encodings",
        "amortized.conditioning",
        "amortized.priors",
        "amortized.guidance",
        "amortized.rendering",
        "amortized.evaluation",
        "amortized.parallel",
        "amortized.checkpointing",
        "amortized.monitoring",
        "amortized.generation",
    ),
    "amortized.cli": ("amortized.parallel", "amortized.monitoring"),
    "amortized.submission": ("amortized.cli",),
    "amortized.runs": ("amortized.pages", "amortized.submission"),
    "amortized.doctor": ("amortized.encodings", "amortized.conditioning", "amortized.cli"),
    "amortized.commands": (
        "amortized.pages",
        "amortized.cli",
        "amortized.splats",
        "amortized.assets",
        "amortized.conditioning",
        "amortized.priors",
        "amortized.guidance",
        "amortized.evaluation",
        "amortized.gallery",
        "amortized.comparison",
        "amortized.parallel",
        "amortized.checkpointing",
        "amortized.splats",
        "amortized.starts",
        "amortized.generation",
        "amortized.serve",
        "amortized.training",
        "amortized.submission",
        "amortized.runs",
        "generators",
        "corpora",
    ),
}
# Plug-ins see the contracts only, not the whole ground.
GENERATORS = ("amortized.types", "amortized.config", "amortized.encodings", "amortized.splats")
CORPORA = (
    "amortized.types",
    "amortized.cameras",
    "amortized.random",
    "amortized.files",
    "amortized.names",
    "amortized.untrusted",
)
# A recipe trains a corpus's embedded models, so it also drives the rooms that load them.
RECIPES = (*CORPORA, "amortized.priors", "amortized.evaluation", "amortized.conditioning")


def sources(*folders: str) -> list[Path]:
    found = [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]
    return found + [ROOT / name for name in SCRIPTS if (ROOT / name).exists()]


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """(line, absolute module) of every import in a file, those inside functions included.

    `from a import b` counts as a.b where that is a module, else as a.
    """
    package = module_name(path) if path.name == "__init__.py" else module_name(path).rpartition(".")[0]
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")
            base = ".".join(above[: len(above) - node.level + 1]) if node.level else ""
            origin = ".".join(filter(None, (base, node.module)))
            for alias in node.names:
                inner = ROOT / origin.replace(".", "/") / alias.name
                is_module = inner.is_dir() or inner.with_suffix(".py").exists()
                yield node.lineno, f"{origin}.{alias.name}" if is_module else origin


def inside(module: str, prefixes: tuple[str, ...] | set[str]) -> bool:
    return any(module == prefix or module.startswith(f"{prefix}.") for prefix in prefixes)


def room_of(module: str) -> str:
    """The room of a module; "ground" for those that every room may import."""
    if module.split(".")[0] != "amortized":
        return module.split(".")[0]
    is_ground = module == "amortized" or inside(module, GROUND)
    return "ground" if is_ground else ".".join(module.split(".")[:2])


def import_graph() -> dict[str, set[str]]:
    """The rooms that each room imports, as the code stands; imports within a room are left out."""
    graph: dict[str, set[str]] = {}
    for path in sources(*PACKAGES):
        if path.stem == "__main__" or path.name in SCRIPTS:
            continue
        room = room_of(module_name(path))
        imported = {room_of(name) for _, name in imports(path) if name.split(".")[0] in PACKAGES}
        graph.setdefault(room, set()).update(imported - {room, "amortized"})
    return graph
