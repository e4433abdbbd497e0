"""Mapping (YAML, JSON, keyword arguments) -> frozen dataclass, strictly: a misspelt key is an error, not a silent default."""

from __future__ import annotations

import copy
import dataclasses
import difflib
import functools
import itertools
import json
import math
import types
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")


class ConfigError(ValueError):
    """A configuration value that cannot be used. The message names the value, what is allowed and the fix."""


def from_dict(cls: type[T], values: Mapping[str, Any], path: str = "", base: T | None = None) -> T:
    """Builds the dataclass `cls` from `values`; what they leave out comes from `base`, or from the defaults.

    A field that is a dataclass (or one or None) with a default takes that default as its base: of `plan: {horizon: 3}`, the
    rest stays the agent's own plan.

    Raises:
        ConfigError: unknown key (with the nearest known one), missing key, or a value of the wrong type.
    """
    hints = _hints(cls)
    fields = {f.name: f for f in dataclasses.fields(cls) if f.init}  # type: ignore[arg-type]
    for key in values:
        if key not in fields:
            raise ConfigError(f"unknown key {join(path, key)!r}{did_you_mean(str(key), fields)}; known: {', '.join(fields)}")
    kwargs = {key: _convert(hints[key], value, join(path, key), _default(fields[key], base)) for key, value in values.items()}
    if base is not None:
        kwargs = {name: getattr(base, name) for name in fields} | kwargs
    required = [name for name, f in fields.items() if f.default is f.default_factory is dataclasses.MISSING]
    if missing := [name for name in required if name not in kwargs]:
        raise ConfigError(f"missing key {join(path, missing[0])!r} ({_name(hints[missing[0]])})")
    try:
        return cls(**kwargs)
    except ConfigError as error:
        raise ConfigError(f"{path + ': ' if path else ''}{error}") from None


def read_json(path: Path, way_out: str) -> dict[str, Any]:
    """The mapping in a JSON file. Raises ConfigError, one line with `way_out`, for a damaged one."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # also of bytes that are no UTF-8
        raise ConfigError(f"{path} is damaged ({error}); {way_out}") from error
    check(isinstance(values, dict), f"{path} is damaged (it holds a {type(values).__name__}, not an object); {way_out}")
    return values


def to_dict(config: Any) -> dict[str, Any]:
    """The plain nested dict of a dataclass: what `from_dict` takes back, and what JSON can hold."""
    return _plain(dataclasses.asdict(config))


def with_key(values: Mapping[str, Any], dotted: str, value: Any) -> dict[str, Any]:
    """A tree like `values` with `value` at the dotted key `a.b`; mappings on the way are made.

    Nothing is written into `values`: what was read once may stand in many runs' settings.
    """
    head, _, rest = dotted.partition(".")
    if not rest:
        return {**values, head: copy.deepcopy(value)}
    below = values.get(head, {})
    if not isinstance(below, Mapping):
        raise ConfigError(f"cannot set {dotted!r}: {head!r} is not a mapping but {below!r}")
    return {**values, head: with_key(below, rest, value)}


def merged(below: Mapping[str, Any], *layers: Mapping[str, Any]) -> dict[str, Any]:
    """A tree like `below` with the settings of each layer over it, the last one's last; none of them is written into."""
    values = dict(below)
    for key, value in itertools.chain.from_iterable(map(flatten, layers)):
        values = with_key(values, key, value)
    return values


def flatten(values: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    """("agent.plan.horizon", 5), ... for a nested mapping; an empty one inside it yields nothing."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from flatten(value, join(path, key))
        else:
            yield join(path, key), value


def check(condition: bool, message: str) -> None:
    """Raises `ConfigError(message)` unless `condition`; for `__post_init__`."""
    if not condition:
        raise ConfigError(message)


def did_you_mean(word: str, known: typing.Iterable[str]) -> str:
    """` (did you mean 'x'?)` for the nearest known word, or nothing."""
    near = difflib.get_close_matches(word, list(known), n=1)
    return f" (did you mean {near[0]!r}?)" if near else ""


def join(path: str, key: object) -> str:
    return f"{path}.{key}" if path else str(key)


@functools.cache
def _hints(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return value


def _default(field: dataclasses.Field, base: Any) -> Any:
    """What a mapping for this field is laid over, or None."""
    if base is not None:
        return getattr(base, field.name)
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return None if field.default is dataclasses.MISSING else field.default


def _convert(hint: Any, value: Any, path: str, base: Any = None) -> Any:
    """`value` as `hint`, or a ConfigError that names both. base: of a dataclass."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if dataclasses.is_dataclass(hint):
        if isinstance(value, hint):  # type: ignore[arg-type]
            return value
        if isinstance(value, Mapping):
            return from_dict(typing.cast(type, hint), value, path, base if isinstance(base, hint) else None)  # type: ignore[arg-type]
        check(value is not None, f"{path} is empty; write {path.rpartition('.')[2]}: {{}} for its defaults")
    elif origin in (typing.Union, types.UnionType):
        arms = [arm for arm in args if arm is not type(None)]
        if len(arms) == 1 and value is not None:
            inside = dataclasses.is_dataclass(arms[0]) and isinstance(value, Mapping)
            if inside or typing.get_origin(arms[0]) in (typing.Literal, list, tuple, dict):
                return _convert(arms[0], value, path, base)  # Why: its error names the key inside, or what is allowed
        for arm in args:
            try:
                return _convert(arm, value, path, base)
            except ConfigError:
                continue
    elif origin is typing.Literal:
        if value in args:
            return value
        raise ConfigError(
            f"{path} = {value!r}{did_you_mean(str(value), map(str, args))}; allowed: {', '.join(map(repr, args))}"
        )
    elif origin in (list, tuple) and isinstance(value, list | tuple):
        inner = args[0] if args else Any
        return origin(_convert(inner, v, f"{path}[{i}]") for i, v in enumerate(value))
    elif origin is dict and isinstance(value, Mapping):
        return {str(k): _convert(args[1], v, join(path, k)) for k, v in value.items()}
    elif hint is float:
        if isinstance(value, int | float | str) and not isinstance(value, bool):  # PyYAML reads 3e-4 as a string
            try:
                number = float(value)
            except ValueError:
                number = None
            if number is not None:
                check(math.isfinite(number), f"{path} = {number}; it must be a finite number")
                return number
    elif hint is int:
        if isinstance(value, int) and not isinstance(value, bool):
            return value
        if isinstance(value, float) and value.is_integer():
            return int(value)
    elif hint is bool:
        if isinstance(value, bool):
            return value
    elif hint is None or hint is type(None):
        if value is None:
            return None
    elif isinstance(hint, type) and isinstance(value, hint):
        return value
    raise ConfigError(f"{path} = {value!r} is a {type(value).__name__}; expected {_name(hint)}")


def _name(hint: Any) -> str:
    return getattr(hint, "__name__", None) or str(hint).replace("typing.", "")
