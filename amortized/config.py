"""Strict settings: YAML presets and dotted overrides, read into frozen dataclasses.

A preset is a YAML file; `base: other.yaml` in it takes that file's settings first. An override is
`trainer.steps=200`. Nothing is guessed: the *type of the field* decides how a value is read, so an
unquoted `1e-4` is a number where a number is wanted, and `no`, `123`, `${x}` or `a "red": [cube]`
stay text where text is wanted. Every mistake of the user is a `ConfigError` of one sentence.

Field types: bool, int, float (finite), str, Path, Literal, X | None, tuple[T, ...], tuple[A, B],
dataclasses, and unions. A union of dataclasses is a *choice*: each has its own
`name: Literal["..."] = "..."`, and the key `name` selects which one is built. A dataclass with
`shorthand: ClassVar[str] = "path"` may be given as that one value: `prior=DIR` is `prior.path=DIR`.
One with `starts: ClassVar = ("method", {"asd": {...}, ...})` takes a key more, `method`, that names the
settings its own keys start from; written back, those stand in its place.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
import math
import re
import types
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml

from amortized.presets import (
    ConfigError,
    Unquoted,
    dotted,
    join,
    parse_overrides,
    parse_yaml,
    read_presets,
    show,
)

__all__ = ["ConfigError", "build", "digest", "load", "to_dict", "to_yaml"]

T = TypeVar("T")


def load(cls: type[T], path: str | Path | None = None, overrides: Sequence[str] = ()) -> T:
    """The `cls` that a preset (None: all defaults) and `KEY=VALUE` overrides describe; later ones win.

    Raises:
        ConfigError: unreadable file, unknown or missing key, wrong type, value out of range.
    """
    layers: list[tuple[Path | str, dict]] = [] if path is None else [*read_presets(Path(path))]
    data, origins = {}, {}
    layers += [("the overrides", layer) for layer in parse_overrides(overrides)]
    for origin, layer in layers:
        data = _merge((cls,), data, layer)
        origins |= {key: str(origin) for key in dotted(layer)}
    return _Reader(cls, origins).section((cls,), data, "")


def build(cls: type[T], data: Mapping[str, Any], where: str = "") -> T:
    """The `cls` described by nested mappings; `where` is the dotted key that errors start from."""
    return _Reader(cls, {}, where).section((cls,), data, where)


def to_dict(config: Any) -> dict[str, Any]:
    """Nested dicts, lists, numbers and strings that `build` turns back into an equal config."""
    return {f.name: _plain_data(getattr(config, f.name)) for f in dataclasses.fields(config)}


def to_yaml(config: Any) -> str:
    """YAML that `load` reads back into an equal config."""
    return yaml.dump(to_dict(config), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)


def digest(config: Any) -> str:
    """16 hexadecimal digits that are equal exactly where all settings are, on every machine."""
    text = json.dumps(to_dict(config), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


# ---- from data to dataclasses ----------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Reader:
    root: type
    origins: Mapping[str, str]  # dotted key -> where the user wrote it
    prefix: str = ""

    def section(self, kinds: tuple[type, ...], data: Any, where: str, default: Any = None) -> Any:
        """An instance of one of the dataclasses `kinds`; keys left out are taken from `default`."""
        data = _spelt_out(kinds, data)
        if not isinstance(data, Mapping):
            example = join(where, next(iter(_fields(kinds[0])), "KEY"))
            raise ConfigError(f"{where} is a section: set its keys ({example}=VALUE), not {show(data)}")
        cls = self._chosen(kinds, data, where, default)
        data = self._started(cls, data, where)
        default = default if type(default) is cls else None
        fields, hints = _fields(cls), _hints(cls)
        for key, value in data.items():
            if key not in fields:
                raise ConfigError(self._unknown_key(key, value, cls, kinds, where))
        values = {}
        for name, field in fields.items():
            start = getattr(default, name) if default is not None else _default(field)
            if name in data:
                values[name] = self.value(hints[name], data[name], join(where, name), start)
            elif start is not dataclasses.MISSING:
                values[name] = start
            elif sections := _sections(hints[name]):
                # A section without a default of its own: required only as far as its keys are.
                values[name] = self.section(sections, {}, join(where, name))
            else:
                key = join(where, name)
                raise ConfigError(
                    f"missing required key {key} ({_describe(hints[name])}): "
                    f"set it in the preset or as {key}=VALUE"
                )
        try:
            return cls(**values)
        except ConfigError:
            raise
        except ValueError as error:
            text = str(error)
            named = not where or text.startswith(where)
            raise ConfigError(text if named else f"{where}: {text}") from error

    def value(self, hint: Any, value: Any, where: str, default: Any = None) -> Any:
        """`value` as the type `hint`; raises ConfigError where it is none."""
        options = _options(hint)
        if type(None) in options and (value is None or _is_null(value)):
            return None
        if sections := _sections(hint):
            if isinstance(value, Mapping) or len(sections) == len(set(options) - {type(None)}):
                return self.section(sections, value, where, default)
        errors = []
        for option in options:
            try:
                if option is not type(None) and not dataclasses.is_dataclass(option):
                    return self._single(option, value, where)
            except ConfigError as error:
                errors.append(error)
        if len(errors) == 1:
            raise errors[0]
        raise ConfigError(f"{where} must be {_describe(hint)}, got {show(value)}")

    def _single(self, hint: Any, value: Any, where: str) -> Any:
        if get_origin(hint) is tuple:
            return self._tuple(hint, value, where)
        text = value if isinstance(value, Unquoted) else None
        if get_origin(hint) is Literal:
            for choice in get_args(hint):
                if (type(choice) is type(value) and choice == value) or text == _written(choice):
                    return choice
        elif hint in (str, Path):
            if isinstance(value, (str, Path)) and (hint is str or str(value)):
                return hint(str(value))
        elif hint is bool:
            if isinstance(value, bool):
                return value
            if text is not None and text.lower() in ("true", "false"):
                return text.lower() == "true"
        elif hint in (int, float):
            number = _number(text, hint) if text is not None else value
            if type(number) is int or (hint is float and type(number) is float):
                try:
                    if math.isfinite(number := hint(number)):
                        return number
                except OverflowError:
                    pass
        else:
            raise TypeError(f"{where}: settings cannot have the type {hint}")
        raise ConfigError(f"{where} must be {_describe(hint)}, got {show(value)}")

    def _tuple(self, hint: Any, value: Any, where: str) -> tuple:
        items = parse_yaml(value, where) if isinstance(value, Unquoted) else value
        kinds = get_args(hint)
        if isinstance(items, (list, tuple)):
            if kinds[-1] is Ellipsis:
                kinds = (kinds[0],) * len(items)
            if len(items) == len(kinds):
                pairs = enumerate(zip(kinds, items, strict=True))
                return tuple(self.value(kind, item, f"{where}[{i}]") for i, (kind, item) in pairs)
        raise ConfigError(f"{where} must be {_describe(hint)}, got {show(value)}")

    def _chosen(self, kinds: tuple[type, ...], data: Mapping, where: str, default: Any) -> type:
        if len(kinds) == 1:
            return kinds[0]
        by_name = {_default(_fields(kind)["name"]): kind for kind in kinds}
        name = data.get("name", getattr(default, "name", None))
        if isinstance(name, str) and name in by_name:
            return by_name[name]
        key, names = join(where, "name"), ", ".join(by_name)
        if name is None:
            raise ConfigError(f"missing required key {key}: one of {names}")
        raise ConfigError(f"{key} must be one of {names}, got {show(name)}")

    def _started(self, cls: type, data: Mapping, where: str) -> Mapping:
        """`data` over the settings that it says its class should start from."""
        key, starts = getattr(cls, "starts", ("", {}))
        if key not in data:
            return data
        name = data[key]
        if not isinstance(name, str) or name not in starts:
            raise ConfigError(f"{join(where, key)} must be one of {', '.join(starts)}, got {show(name)}")
        return _merge((cls,), starts[name], {k: v for k, v in data.items() if k != key})

    def _unknown_key(self, key: str, value: Any, cls: type, kinds: tuple, where: str) -> str:
        tail = next(dotted({key: value}))  # trainr: {steps: 3} is reported as trainr.steps
        wrong = join(where, tail)
        origin = self.origins.get(wrong)
        place = f" in {origin}" if origin else ""
        for other in kinds:
            if key in _fields(other):
                name = join(where, "name")
                of, has = _default(_fields(other)["name"]), _default(_fields(cls)["name"])
                return f"{wrong}{place} is a setting of {name}={of}, but {name} is {has}"
        own = {join(where, name) for name in _keys(cls)}
        inside = [k for k in _schema(self.root, self.prefix) if _valid(k, where, own)]
        near = _nearest(wrong, inside)
        hint = f"did you mean {near}?" if near else f"the keys here are {', '.join(sorted(own))}"
        return f"unknown key {wrong}{place}; {hint}"


def _valid(key: str, where: str, own: set[str]) -> bool:
    """Whether `key` exists beside the choice made at `where`, whose own keys are `own`."""
    if where and not key.startswith(f"{where}."):
        return True
    return any(key == k or key.startswith(f"{k}.") for k in own)


def _nearest(wrong: str, keys: Sequence[str]) -> str | None:
    """The most alike key, by whole name and by last part (`steps` finds trainer.steps), or None."""

    def likeness(key: str) -> float:
        pairs = ((wrong, key), (wrong.rpartition(".")[2], key.rpartition(".")[2]))
        return sum(difflib.SequenceMatcher(None, *pair).ratio() for pair in pairs) / 2

    best = max(keys, key=likeness, default=None)
    return best if best is not None and likeness(best) > 0.65 else None


# ---- the types ------------------------------------------------------------------------------


@cache
def _hints(cls: type) -> dict[str, Any]:
    return get_type_hints(cls)


def _fields(cls: type) -> dict[str, dataclasses.Field]:
    return {f.name: f for f in dataclasses.fields(cls) if f.init}


def _keys(cls: type) -> list[str]:
    """What a section of this class may be given: its fields, and the key that names its start."""
    return [*_fields(cls), *getattr(cls, "starts", ())[:1]]


def _default(field: dataclasses.Field) -> Any:
    made = field.default_factory is not dataclasses.MISSING
    return field.default_factory() if made else field.default  # pyright: ignore[reportCallIssue]


def _options(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


def _sections(hint: Any) -> tuple[type, ...]:
    return tuple(o for o in _options(hint) if isinstance(o, type) and dataclasses.is_dataclass(o))


def _schema(cls: type, where: str = "") -> Iterator[str]:
    """All dotted keys under `cls`, those of every choice included."""
    for name in _keys(cls):
        key = join(where, name)
        yield key
        for section in _sections(_hints(cls).get(name)):
            yield from _schema(section, key)


def _describe(hint: Any) -> str:
    """The type in words, as in "must be an integer"."""
    options = _options(hint)
    if len(options) > 1:
        return " or ".join(_describe(o) for o in options)
    if get_origin(hint) is Literal:
        return "one of " + ", ".join(_written(c) for c in get_args(hint))
    if get_origin(hint) is tuple:
        kinds = get_args(hint)
        if kinds[-1] is Ellipsis:
            return f"a list [...], each {_describe(kinds[0])}"
        return f"a list of {len(kinds)} ([{', '.join(_describe(k) for k in kinds)}])"
    names = {bool: "true or false", int: "an integer", float: "a finite number", str: "text"}
    return names.get(hint) or {Path: "a path", type(None): "null"}.get(hint, "a section")


def _number(text: str, kind: type) -> int | float | None:
    """The number that the whole text is, or None; an integer's form is also a float's."""
    if re.fullmatch(r"[-+]?[0-9]+(_[0-9]+)*", text) and len(text) < 400:
        return int(text)
    floating = r"[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?"
    return float(text) if kind is float and re.fullmatch(floating, text) else None


def _is_null(value: Any) -> bool:
    return isinstance(value, Unquoted) and value in ("", "null", "~")


def _written(value: Any) -> str:
    return json.dumps(value) if value is None or isinstance(value, bool) else str(value)


def _spelt_out(kinds: tuple[type, ...], data: Any) -> Any:
    """The section that `data` is short for, where it is one value and a kind has a shorthand."""
    key = next((kind.shorthand for kind in kinds if hasattr(kind, "shorthand")), None)
    single = isinstance(data, (str, Path)) and not _is_null(data)
    return {key: data} if key is not None and single else data


def _merge(kinds: tuple[type, ...], base: Any, new: Any, default_name: str | None = None) -> Any:
    """`new` over `base`, section by section; a choice of another name starts from its defaults."""
    base, new = _spelt_out(kinds, base), _spelt_out(kinds, new)
    if not (isinstance(base, Mapping) and isinstance(new, Mapping)):
        return new
    if len(kinds) > 1 and "name" in new and new["name"] != base.get("name", default_name):
        return new
    merged = dict(base)
    for key, value in new.items():
        owners = [kind for kind in kinds if key in _fields(kind)]
        inner = tuple(s for kind in owners for s in _sections(_hints(kind)[key]))
        name = getattr(_default(_fields(owners[0])[key]), "name", None) if inner else None
        merged[key] = _merge(inner, base[key], value, name) if key in base else value
    return merged


# ---- writing --------------------------------------------------------------------------------


def _plain_data(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return to_dict(value)
    if isinstance(value, tuple):
        return [_plain_data(item) for item in value]
    return str(value) if isinstance(value, Path) else value


class _Dumper(yaml.SafeDumper):
    """Lists of scalars on one line; text that looks like a number in quotes."""


def _list_node(dumper: _Dumper, items: list) -> yaml.SequenceNode:
    flat = not any(isinstance(item, (list, dict)) for item in items)
    return dumper.represent_sequence("tag:yaml.org,2002:seq", items, flow_style=flat)


def _text_node(dumper: _Dumper, text: str) -> yaml.ScalarNode:
    # PyYAML reads the next-line character back as a space, unless it stands escaped in double quotes.
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style='"' if "\x85" in text else None)


_Dumper.add_representer(list, _list_node)
_Dumper.add_representer(str, _text_node)
_Dumper.add_implicit_resolver(  # PyYAML alone would write the text 1e-4 without quotes
    "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9.]+([eE][-+]?[0-9]+)?$"), list("-+.0123456789")
)
