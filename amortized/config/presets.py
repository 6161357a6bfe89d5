"""Presets and overrides as trees of untyped text.

Nothing is interpreted here: an unquoted scalar stays `Unquoted` text until the reader parses it by the type
of its field.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml


class ConfigError(ValueError):
    """A mistake in a config; the message is one sentence that names the key."""


class Unquoted(str):
    """Text without a type yet: an unquoted YAML scalar, or the value of an override."""


def read_presets(path: Path, above: tuple[Path, ...] = ()) -> list[tuple[Path, dict[str, Any]]]:
    """The contents of a preset and of the files it names as `base:`, the lowest base first.

    A base is a path relative to the file that names it.

    Raises:
        ConfigError: a file is missing, unreadable, empty or not YAML, or a cycle of bases.
    """
    if path.resolve() in above:
        raise ConfigError(f"{path}: its `base:` lines form a cycle; remove one")
    data = parse_yaml(_read_text(path), str(path))
    if not isinstance(data, dict):
        what = "is empty" if not data else "holds no settings"
        raise ConfigError(f"{path} {what}: a preset has lines `KEY: VALUE`")
    base = data.pop("base", None)
    if base is None:
        return [(path, data)]
    if not isinstance(base, str):
        raise ConfigError(f"{path}: base must be one file's path, got {show(base)}")
    return [*read_presets(path.parent / base, (*above, path.resolve())), (path, data)]


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        near = difflib.get_close_matches(path.name, [p.name for p in path.parent.glob("*.yaml")], 1)
        hint = f"; did you mean {path.with_name(near[0])}?" if near else ""
        raise ConfigError(f"there is no preset {path}{hint}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 text (byte {error.start})") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(f"cannot read {str(path)!r}: {reason}") from None


def parse_yaml(text: str, where: str) -> Any:
    """Parse YAML into dicts, lists and strings; unquoted scalars stay untyped.

    Nodes are composed, never constructed: a tag cannot create an object, and the implicit types of YAML 1.1
    (`no` as false, `1e-4` as text, `12:30` as 750) do not apply.
    """

    def convert(node: yaml.Node | None, above: tuple[yaml.Node, ...] = ()) -> Any:
        if node is None:
            return Unquoted("")
        if node in above:
            raise ConfigError(f"{where}, line {node.start_mark.line + 1}: an alias contains itself")
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
                raise ConfigError(f"{where}, line {line}: the key {key} appears twice")
            mapping[key] = convert(value_node, (*above, node))
        return mapping

    try:
        return convert(yaml.compose(text, Loader=yaml.SafeLoader))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        line = f", line {mark.line + 1}" if mark else ""
        raise ConfigError(f"{where}{line}: not valid YAML ({error.problem})") from None
    except (yaml.YAMLError, RecursionError) as error:
        reason = getattr(error, "reason", "nested too deeply")
        raise ConfigError(f"{where}: not valid YAML ({reason})") from None


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
        tree: Any = Unquoted(value)
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
