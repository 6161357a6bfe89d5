"""Configs as nested data, as YAML, and as a config_digest: the way back from dataclasses."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from pathlib import Path
from typing import Any

import yaml


def config_to_dict(config: Any) -> dict[str, Any]:
    """Nested dicts, lists, numbers and strings that `build_config` turns back into an equal config."""
    return {f.name: _plain_data(getattr(config, f.name)) for f in dataclasses.fields(config)}


def config_to_yaml(config: Any) -> str:
    """YAML that `load_config` reads back into an equal config."""
    return yaml.dump(config_to_dict(config), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)


def config_digest(config: Any) -> str:
    """16 hexadecimal digits, equal on every machine if and only if all values are equal."""
    text = json.dumps(config_to_dict(config), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _plain_data(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return config_to_dict(value)
    if isinstance(value, tuple):
        return [_plain_data(item) for item in value]
    return str(value) if isinstance(value, Path) else value


class _Dumper(yaml.SafeDumper):
    """Lists of scalars on one line; text that looks like a number in quotes."""


def _list_node(dumper: _Dumper, items: list) -> yaml.SequenceNode:
    flat = not any(isinstance(item, (list, dict)) for item in items)
    return dumper.represent_sequence("tag:yaml.org,2002:seq", items, flow_style=flat)


def _text_node(dumper: _Dumper, text: str) -> yaml.ScalarNode:
    # PyYAML reads an unescaped next-line character back as a space; double quotes escape it.
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style='"' if "\x85" in text else None)


_Dumper.add_representer(list, _list_node)
_Dumper.add_representer(str, _text_node)
_Dumper.add_implicit_resolver(  # PyYAML alone would write the text 1e-4 without quotes
    "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9.]+([eE][-+]?[0-9]+)?$"), list("-+.0123456789")
)
