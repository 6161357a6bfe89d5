"""Read YAML presets and dotted overrides into frozen dataclasses, strictly.

A preset is a YAML file; `base: other.yaml` in it loads that file first. An override is `trainer.steps=200`.
Nothing is guessed: the *type of the field* decides how a value is parsed, so an unquoted `1e-4` is a number
in a float field, and `no`, `123`, `${x}` or `a "red": [cube]` stay text in a str field. Every mistake of the
user is a `ConfigError` of one sentence that names the dotted key.

Field types: bool, int, float (finite), str, PathText, Path, Literal, X | None, tuple[T, ...], tuple[A, B],
dataclasses, and unions. Three conventions:

    choice     a union of dataclasses, each with a `name: Literal["..."] = "..."`; the key `name` selects one
    shorthand  a dataclass with `shorthand: ClassVar[str] = "path"` may be given as that one value:
               `prior=DIR` is `prior.path=DIR`
    templates  a dataclass with `templates: ClassVar = ("method", {"asd": {...}, ...})` accepts one more key,
               `method`, that selects the values its own keys start from; `config_to_yaml` writes those
               values, and the name too if the class has a field `method`

The root class may declare `renamed: ClassVar[dict[str, str]]`, old dotted key to new: an old key works for
one release, with a warning that names the new one.
"""

from __future__ import annotations

import dataclasses
import difflib
import logging
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin

from amortized.config.presets import (
    ConfigError,
    Unquoted,
    dotted_leaves,
    join,
    parse_overrides,
    parse_yaml,
    read_presets,
    show,
)
from amortized.config.renamed import rename_keys
from amortized.config.schema import (
    PathText,
    default_of,
    describe,
    dotted_keys,
    expand_shorthand,
    fields_of,
    hints_of,
    is_null,
    keys_of,
    merge,
    options_of,
    parse_number,
    sections_of,
    written,
)
from amortized.files import check_text, checked_path

T = TypeVar("T")

# Beyond these, arithmetic overflows somewhere: int64, and the square of a float32.
MAX_MAGNITUDE = {int: 2**63 - 1, float: 1e18}
MAX_ITEMS = 10_000  # of a list


def load_config(cls: type[T], path: str | Path | None = None, overrides: Sequence[str] = ()) -> T:
    """Load a preset (None: all defaults) with `KEY=VALUE` overrides as a `cls`; later values win.

    Raises:
        ConfigError: unreadable file, unknown or missing key, wrong type, value out of range.
    """
    layers: list[tuple[Path | str, dict]] = [] if path is None else [*read_presets(Path(path))]
    layers += [("the overrides", layer) for layer in parse_overrides(overrides)]
    data, origins = {}, {}
    for origin, layer in layers:
        layer = _current_keys(cls, layer)
        data = merge((cls,), data, layer)
        origins |= {key: str(origin) for key in dotted_leaves(layer)}
    return _Reader(cls, origins).section((cls,), data, "")


def build_config(cls: type[T], data: Mapping[str, Any], where: str = "") -> T:
    """Build a `cls` from nested mappings; `where` is the dotted key that error messages start from."""
    return _Reader(cls, {}, where).section((cls,), _current_keys(cls, data), where)


def _current_keys(cls: type, data: Mapping[str, Any]) -> dict[str, Any]:
    """`data` under the keys of this release; one warning names all old ones."""
    current, used = rename_keys(data, getattr(cls, "renamed", {}))
    if used:
        names = ", ".join(f"{old} is now {new}" for old, new in used)
        logging.getLogger("amortized").warning("please rename these settings: %s", names)
    return current


@dataclasses.dataclass(frozen=True)
class _Reader:
    root: type
    origins: Mapping[str, str]  # dotted key -> where the user wrote it
    prefix: str = ""

    def section(self, kinds: tuple[type, ...], data: Any, where: str, default: Any = None) -> Any:
        """An instance of one of the dataclasses `kinds`; missing keys come from `default`."""
        data = expand_shorthand(kinds, data)
        if not isinstance(data, Mapping):
            example = join(where, next(iter(fields_of(kinds[0])), "KEY"))
            raise ConfigError(f"{where} is a section: set its keys ({example}=VALUE), not {show(data)}")
        cls = self._chosen(kinds, data, where, default)
        data = self._from_template(cls, data, where)
        default = default if type(default) is cls else None
        fields, hints = fields_of(cls), hints_of(cls)
        for key, value in data.items():
            if key not in fields:
                raise ConfigError(self._unknown_key(key, value, cls, kinds, where))
        values = {}
        for name, field in fields.items():
            start = getattr(default, name) if default is not None else default_of(field)
            if name in data:
                values[name] = self.value(hints[name], data[name], join(where, name), start)
            elif start is not dataclasses.MISSING:
                values[name] = start
            elif sections := sections_of(hints[name]):
                # A section without a default is required only if one of its keys is.
                values[name] = self.section(sections, {}, join(where, name))
            else:
                key = join(where, name)
                raise ConfigError(
                    f"missing required key {key} ({describe(hints[name])}): "
                    f"set it in the preset or as {key}=VALUE"
                )
        try:
            return cls(**values)
        except ConfigError:
            raise
        except ValueError as error:
            raise ConfigError(_with_section(str(error), where, fields)) from error

    def value(self, hint: Any, value: Any, where: str, default: Any = None) -> Any:
        """`value` parsed as the type `hint`; raises ConfigError if it does not fit."""
        options = options_of(hint)
        if type(None) in options and (value is None or is_null(value)):
            return None
        if sections := sections_of(hint):
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
        raise ConfigError(f"{where} must be {describe(hint)}, got {show(value)}")

    def _single(self, hint: Any, value: Any, where: str) -> Any:
        if get_origin(hint) is tuple:
            return self._tuple(hint, value, where)
        text = value if isinstance(value, Unquoted) else None
        if get_origin(hint) is Literal:
            for choice in get_args(hint):
                if (type(choice) is type(value) and choice == value) or text == written(choice):
                    return choice
        elif hint in (str, PathText, Path):
            if isinstance(value, (str, Path)):
                return self._text(hint, str(value), where)
        elif hint is bool:
            if isinstance(value, bool):
                return value
            if text is not None and text.lower() in ("true", "false"):
                return text.lower() == "true"
        elif hint in (int, float):
            number = parse_number(text, hint) if text is not None else value
            if type(number) is int or (hint is float and type(number) is float):
                if abs(number) <= MAX_MAGNITUDE[hint]:  # not so for infinity and NaN
                    return hint(number)
                if type(number) is int or math.isfinite(number):
                    limit = f"of at most {MAX_MAGNITUDE[hint]:.3g}"
                    raise ConfigError(f"{where} must be {describe(hint)} {limit}, got {show(value)}")
        else:
            raise TypeError(f"{where}: configs cannot have the type {hint}")
        raise ConfigError(f"{where} must be {describe(hint)}, got {show(value)}")

    def _text(self, hint: Any, text: str, where: str) -> Any:
        if hint is Path and not text:
            raise ConfigError(f"{where} must be {describe(hint)}, got {show(text)}")
        try:
            if hint is str:
                check_text(text)
                return text
            path = checked_path(text)
        except ValueError as error:
            raise ConfigError(f"{where} {error}") from None
        return Path(path) if hint is Path else path

    def _tuple(self, hint: Any, value: Any, where: str) -> tuple:
        items = parse_yaml(value, where) if isinstance(value, Unquoted) else value
        kinds = get_args(hint)
        if isinstance(items, (list, tuple)):
            if len(items) > MAX_ITEMS:
                raise ConfigError(f"{where} has {len(items):,} items: at most {MAX_ITEMS:,} are allowed")
            if kinds[-1] is Ellipsis:
                kinds = (kinds[0],) * len(items)
            if len(items) == len(kinds):
                pairs = enumerate(zip(kinds, items, strict=True))
                return tuple(self.value(kind, item, f"{where}[{i}]") for i, (kind, item) in pairs)
        raise ConfigError(f"{where} must be {describe(hint)}, got {show(value)}")

    def _chosen(self, kinds: tuple[type, ...], data: Mapping, where: str, default: Any) -> type:
        if len(kinds) == 1:
            return kinds[0]
        by_name = {default_of(fields_of(kind)["name"]): kind for kind in kinds}
        name = data.get("name", getattr(default, "name", None))
        if isinstance(name, str) and name in by_name:
            return by_name[name]
        key, names = join(where, "name"), ", ".join(by_name)
        if name is None:
            raise ConfigError(f"missing required key {key}: one of {names}")
        raise ConfigError(f"{key} must be one of {names}, got {show(name)}")

    def _from_template(self, cls: type, data: Mapping, where: str) -> Mapping:
        """`data` merged over the template it selects, if any."""
        key, templates = getattr(cls, "templates", ("", {}))
        if key not in data:
            return data
        name = data[key]
        recorded = key in fields_of(cls)
        if recorded and (name is None or is_null(name)):
            return data
        if not isinstance(name, str) or name not in templates:
            raise ConfigError(f"{join(where, key)} must be one of {', '.join(templates)}, got {show(name)}")
        return merge((cls,), templates[name], {k: v for k, v in data.items() if recorded or k != key})

    def _unknown_key(self, key: str, value: Any, cls: type, kinds: tuple, where: str) -> str:
        tail = next(dotted_leaves({key: value}))  # trainr: {steps: 3} is reported as trainr.steps
        wrong = join(where, tail)
        origin = self.origins.get(wrong)
        wrong = wrong if len(wrong) <= 80 else f"{wrong[:77]}..."
        wrong = wrong if wrong.isprintable() else repr(wrong)
        place = f" in {origin}" if origin else ""
        for other in kinds:
            if key in fields_of(other):
                name = join(where, "name")
                of, has = default_of(fields_of(other)["name"]), default_of(fields_of(cls)["name"])
                return f"{wrong}{place} is a setting of {name}={of}, but {name} is {has}"
        siblings = {join(where, name) for name in keys_of(cls)}
        valid = [k for k in dotted_keys(self.root, self.prefix) if _is_valid(k, where, siblings)]
        near = _nearest(wrong, valid)
        hint = f"did you mean {near}?" if near else f"the keys here are {', '.join(sorted(siblings))}"
        return f"unknown key {wrong}{place}; {hint}"


def _with_section(message: str, where: str, fields: Mapping[str, Any]) -> str:
    """A config's error message with the dotted key in front: configs do not know which section they are."""
    if not where or message.startswith(where):
        return message
    name = re.match(r"\w*", message)
    first = name[0] if name else ""
    return f"{where}.{message}" if first in fields else f"{where}: {message}"


def _is_valid(key: str, where: str, siblings: set[str]) -> bool:
    """Whether `key` exists, given the choice made at `where`, whose keys are `siblings`."""
    if where and not key.startswith(f"{where}."):
        return True
    return any(key == sibling or key.startswith(f"{sibling}.") for sibling in siblings)


def _nearest(wrong: str, keys: Sequence[str]) -> str | None:
    """The most similar key, by whole name and by last part (`steps` finds trainer.steps), or None."""

    def similarity(key: str) -> float:
        pairs = ((wrong, key), (wrong.rpartition(".")[2], key.rpartition(".")[2]))
        return sum(difflib.SequenceMatcher(None, *pair).ratio() for pair in pairs) / 2

    best = max(keys, key=similarity, default=None)
    return best if best is not None and similarity(best) > 0.65 else None
