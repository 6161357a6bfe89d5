"""How the reader sees a config class: its fields and defaults, its sections and choices, types in words."""

from __future__ import annotations

import dataclasses
import json
import re
import types
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from amortized.config.presets import Unquoted, join

# The type of a field that holds a path, or a name or URL in its place: not empty, `~` expanded by the reader.
PathText = Annotated[str, "path"]


@cache
def hints_of(cls: type) -> dict[str, Any]:
    """The resolved type of each field."""
    return get_type_hints(cls, include_extras=True)


def fields_of(cls: type) -> dict[str, dataclasses.Field]:
    """The fields that the constructor takes."""
    return {f.name: f for f in dataclasses.fields(cls) if f.init}


def keys_of(cls: type) -> list[str]:
    """The keys a section of this class accepts: its fields, and the key that selects a template."""
    return list(dict.fromkeys([*fields_of(cls), *getattr(cls, "templates", ())[:1]]))


def default_of(field: dataclasses.Field) -> Any:
    """The default value of a field, or dataclasses.MISSING."""
    made = field.default_factory is not dataclasses.MISSING
    return field.default_factory() if made else field.default  # pyright: ignore[reportCallIssue]


def options_of(hint: Any) -> tuple[Any, ...]:
    """The members of a union; a single type is its only member."""
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


def sections_of(hint: Any) -> tuple[type, ...]:
    """The dataclasses among the options of a type."""
    return tuple(o for o in options_of(hint) if isinstance(o, type) and dataclasses.is_dataclass(o))


def dotted_keys(cls: type, where: str = "") -> Iterator[str]:
    """All dotted keys under `cls`, including those of every choice."""
    for name in keys_of(cls):
        key = join(where, name)
        yield key
        for section in sections_of(hints_of(cls).get(name)):
            yield from dotted_keys(section, key)


def describe(hint: Any) -> str:
    """The type in words, as in "must be an integer"."""
    options = options_of(hint)
    if len(options) > 1:
        return " or ".join(describe(o) for o in options)
    if get_origin(hint) is Literal:
        return "one of " + ", ".join(written(c) for c in get_args(hint))
    if get_origin(hint) is tuple:
        kinds = get_args(hint)
        if kinds[-1] is Ellipsis:
            return f"a list [...], each {describe(kinds[0])}"
        return f"a list of {len(kinds)} ([{', '.join(describe(k) for k in kinds)}])"
    names = {bool: "true or false", int: "an integer", float: "a finite number", str: "text"}
    return names.get(hint) or {PathText: "a path", Path: "a path", type(None): "null"}.get(hint, "a section")


def parse_number(text: str, kind: type) -> int | float | None:
    """The text as a number, or None if it is not one; a float may be written as an integer."""
    if re.fullmatch(r"[-+]?[0-9]+(_[0-9]+)*", text) and len(text) < 400:
        return int(text)
    floating = r"[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?"
    return float(text) if kind is float and re.fullmatch(floating, text) else None


def is_null(value: Any) -> bool:
    """Whether an unquoted scalar is YAML's null."""
    return isinstance(value, Unquoted) and value in ("", "null", "~")


def written(value: Any) -> str:
    """A literal as a user writes it in YAML."""
    return json.dumps(value) if value is None or isinstance(value, bool) else str(value)


def expand_shorthand(kinds: tuple[type, ...], data: Any) -> Any:
    """A single value as the section it is short for, if one of `kinds` has a shorthand; else `data`."""
    key = next((kind.shorthand for kind in kinds if hasattr(kind, "shorthand")), None)
    single = isinstance(data, (str, Path)) and not is_null(data)
    return {key: data} if key is not None and single else data


def merge(kinds: tuple[type, ...], base: Any, new: Any, default_name: str | None = None) -> Any:
    """`new` merged over `base`, section by section. Choosing another `name` discards `base`."""
    base, new = expand_shorthand(kinds, base), expand_shorthand(kinds, new)
    if not (isinstance(base, Mapping) and isinstance(new, Mapping)):
        return new
    if len(kinds) > 1 and "name" in new and new["name"] != base.get("name", default_name):
        return new
    merged = dict(base)
    for key, value in new.items():
        owners = [kind for kind in kinds if key in fields_of(kind)]
        inner = tuple(s for kind in owners for s in sections_of(hints_of(kind)[key]))
        name = getattr(default_of(fields_of(owners[0])[key]), "name", None) if inner else None
        merged[key] = merge(inner, base[key], value, name) if key in base else value
    return merged
