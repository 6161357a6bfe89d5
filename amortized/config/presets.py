"""Presets and overrides as trees of untyped text.

Nothing is interpreted here: an unquoted scalar stays `Unquoted` text until the reader parses it by the type
of its field.
"""

from __future__ import annotations

import difflib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import yaml

from amortized.untrusted import read_text, short

# The largest preset has 4 kB and 100 values; a run's config.yaml 6 kB.
MAX_BYTES, MAX_NODES, MAX_DEPTH, MAX_BASES = 2**18, 20_000, 20, 20


class ConfigError(ValueError):
    """A mistake in a config; the message is one sentence that names the key."""


class Unquoted(str):
    """Text without a type yet: an unquoted YAML scalar, or the value of an override."""


def read_presets(path: Path, above: tuple[Path, ...] = ()) -> list[tuple[Path, dict[str, Any]]]:
    """The contents of a preset and of the files it names as `base:`, the lowest base first.

    A base is a path relative to the file that names it.

    Raises:
        ConfigError: a file is missing, unreadable, too large, empty or not YAML, or a cycle of bases.
    """
    data = parse_yaml(_read_text(path), short(path))
    real = Path(os.path.realpath(path))
    if real in above:
        raise ConfigError(f"{short(path)}: its `base:` lines form a cycle; remove one")
    if len(above) == MAX_BASES:
        raise ConfigError(f"{short(path)}: more than {MAX_BASES} presets name each other as `base:`")
    if not isinstance(data, dict):
        what = "is empty" if not data else "holds no settings"
        raise ConfigError(f"{short(path)} {what}: a preset has lines `KEY: VALUE`")
    base = data.pop("base", None)
    if base is None:
        return [(path, data)]
    if not isinstance(base, str):
        raise ConfigError(f"{short(path)}: base must be one file's path, got {show(base)}")
    return [*read_presets(path.parent / base, (*above, real)), (path, data)]


def _read_text(path: Path) -> str:
    try:
        return read_text(path, MAX_BYTES)
    except ValueError as error:
        if not isinstance(error.__cause__, FileNotFoundError):
            raise ConfigError(str(error)) from None
    siblings = [sibling.name for sibling in islice(path.parent.glob("*.yaml"), 1000)]
    near = difflib.get_close_matches(path.name, siblings, 1)
    hint = f"; did you mean {short(path.with_name(near[0]))}?" if near else ""
    raise ConfigError(f"there is no preset {short(path)}{hint}") from None


def parse_yaml(text: str, where: str) -> Any:
    """Parse YAML into dicts, lists and strings; unquoted scalars stay untyped.

    Nodes are composed, never constructed: a tag cannot create an object, and the implicit types of YAML 1.1
    (`no` as false, `1e-4` as text, `12:30` as 750) do not apply. Raises ConfigError for other text, and for
    more than MAX_NODES values or MAX_DEPTH levels, counted where an alias repeats them.
    """
    num_nodes = 0

    def convert(node: yaml.Node | None, above: tuple[yaml.Node, ...] = ()) -> Any:
        nonlocal num_nodes
        if node is None:
            return Unquoted("")
        num_nodes += 1
        line = node.start_mark.line + 1
        if num_nodes > MAX_NODES:
            raise ConfigError(f"{where}, line {line}: more than {MAX_NODES:,} values, with repeated aliases")
        if node in above:
            raise ConfigError(f"{where}, line {line}: an alias contains itself")
        if len(above) > MAX_DEPTH:
            raise ConfigError(f"{where}, line {line}: nested more than {MAX_DEPTH} deep")
        if isinstance(node, yaml.ScalarNode):
            return node.value if node.style else Unquoted(node.value)
        if isinstance(node, yaml.SequenceNode):
            return [convert(item, (*above, node)) for item in node.value]
        mapping = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            if not isinstance(key_node, yaml.ScalarNode):
                raise ConfigError(f"{where}, line {line}: a key must be a name")
            if (key := str(key_node.value)) in mapping:
                raise ConfigError(f"{where}, line {line}: the key {short(key)} appears twice")
            mapping[key] = convert(value_node, (*above, node))
        return mapping

    if len(text) > MAX_BYTES:
        raise ConfigError(f"{where}: more than {MAX_BYTES:,} characters")
    try:
        return convert(yaml.compose(text, Loader=yaml.SafeLoader))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        line = f", line {mark.line + 1}" if mark else ""
        problem = show(error.problem or "")[1:-1]
        raise ConfigError(f"{where}{line}: not valid YAML ({problem})") from None
    except (yaml.YAMLError, RecursionError) as error:
        reason = getattr(error, "reason", "nested too deeply")
        raise ConfigError(f"{where}: not valid YAML ({reason})") from None
    except (ValueError, OverflowError) as error:  # an escape outside Unicode, a directive's version
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"{where}: not valid YAML ({error})") from None


def parse_overrides(overrides: Sequence[str]) -> list[dict[str, Any]]:
    """One nested mapping for each KEY=VALUE, in order, except that choices by `name` come first.

    So `generator.levels=4 generator.name=grid` means the same in either order.
    """
    trees = []
    for override in overrides:
        key, equals, value = override.partition("=")
        parts = key.strip().split(".")
        if not equals or not all(parts) or len(parts) > 20:
            raise ConfigError(f"the override {show(override)} must have the form KEY=VALUE")
        # An empty value is an empty text and not null: KEY=$UNSET is a mistake.
        tree: Any = Unquoted(value) if value else ""
        for part in reversed(parts):
            tree = {part: tree}
        trees.append((parts[-1] != "name", tree))
    return [tree for _, tree in sorted(trees, key=lambda pair: pair[0])]


def flatten(data: Mapping[str, Any], where: str = "") -> dict[str, Any]:
    """Nested mappings as one, from the dotted keys of the leaves to their values."""
    flat: dict[str, Any] = {}
    for key, value in data.items():
        dotted = join(where, key)
        flat |= flatten(value, dotted) if isinstance(value, Mapping) and value else {dotted: value}
    return flat


def dotted_leaves(data: Mapping[str, Any]) -> Iterator[str]:
    """The dotted keys of the leaves of nested mappings."""
    yield from flatten(data)


def join(where: str, key: str) -> str:
    return f"{where}.{key}" if where else key


def show(value: Any) -> str:
    """A value for an error message: on one line, at most 80 characters."""
    text = repr(str(value)) if isinstance(value, (str, Path)) else json.dumps(value, default=str)
    return text if len(text) <= 80 else f"{text[:77]}..."
