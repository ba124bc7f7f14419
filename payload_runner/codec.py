"""Record dataclasses to JSON and back. Driven by their annotations; knows no record by name."""

from __future__ import annotations

import dataclasses
import functools
import json
import sys
import typing
from typing import Any, Mapping, Tuple, Type, TypeVar, Union

_T = TypeVar("_T")


class BadRecord(ValueError):
    """A record or JSON file that does not have the fields of its kind."""


def to_fields(value: Any) -> Any:
    """The JSON form of a record dataclass; fields at their default are left out."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        out = {}
        for name, default in _defaults(type(value)):
            item = getattr(value, name)
            if item != default or default is dataclasses.MISSING:
                out[name] = to_fields(item)
        return out
    if isinstance(value, Mapping):
        return {str(key): to_fields(item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [to_fields(item) for item in value]
    return value


def from_fields(cls: Type[_T], fields: Any) -> _T:
    """A record dataclass from its JSON form; unknown keys are ignored (newer writers).

    Raises:
        BadRecord: a missing field or one of the wrong type, by name.
    """
    if not isinstance(fields, Mapping):
        raise BadRecord(f"{cls.__name__}: expected an object, got {type(fields).__name__}")
    arguments = {}
    for name, kind in _field_types(cls):  # type: ignore[arg-type]  # Type[_T] is hashable
        if name in fields:
            arguments[name] = _convert(kind, fields[name], f"{cls.__name__}.{name}")
    try:
        return cls(**arguments)
    except TypeError as error:
        raise BadRecord(f"{cls.__name__}: {error}") from None


@functools.cache
def _field_types(cls: Type[Any]) -> Tuple[Tuple[str, Any], ...]:
    hints = typing.get_type_hints(cls, vars(sys.modules[cls.__module__]))
    return tuple((item.name, hints[item.name]) for item in dataclasses.fields(cls))


@functools.cache
def _defaults(cls: Type[Any]) -> Tuple[Tuple[str, Any], ...]:
    pairs = []
    for item in dataclasses.fields(cls):
        default = item.default
        if item.default_factory is not dataclasses.MISSING:
            default = item.default_factory()
        pairs.append((item.name, default))
    return tuple(pairs)


def _convert(kind: Any, value: Any, where: str) -> Any:
    if kind is Any:
        return value
    origin = typing.get_origin(kind)
    if origin is Union:
        if value is None:
            return None
        (inner,) = [arg for arg in typing.get_args(kind) if arg is not type(None)]
        return _convert(inner, value, where)
    if origin is tuple:
        if not isinstance(value, list):
            raise BadRecord(f"{where}: expected a list, got {type(value).__name__}")
        inner = typing.get_args(kind)[0]
        return tuple(_convert(inner, item, where) for item in value)
    if origin is not None:  # Mapping[str, ...]
        if not isinstance(value, Mapping):
            raise BadRecord(f"{where}: expected an object, got {type(value).__name__}")
        inner = typing.get_args(kind)[1]
        return {str(key): _convert(inner, item, where) for key, item in value.items()}
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        return from_fields(kind, value)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise BadRecord(f"{where}: expected {kind.__name__}, got {value!r:.80}")
    return value


def dump_json(value: Any) -> bytes:
    """Whole-file JSON as this project writes it: readable, finite numbers, a final newline."""
    return (json.dumps(to_fields(value), allow_nan=False, indent=1) + "\n").encode()


def load_json(data: bytes, cls: Type[_T]) -> _T:
    """A record dataclass from a whole JSON file.

    Raises:
        BadRecord: not JSON, or not of that shape.
    """
    try:
        value = json.loads(data)
    except ValueError as error:
        raise BadRecord(f"{cls.__name__}: not JSON: {error}") from None
    return from_fields(cls, value)
